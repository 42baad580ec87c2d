// Places in order of where they go: the list of (destination, place) pairs, each a 64-bit number
// with the destination in the high half, sorted. All numbers differ, so the order is one and the
// same whatever runs when, and places of one destination stand in order. Tiles are sorted in shared
// memory by a bitonic network (Batcher 1968), then runs are merged in pairs: a number's place in
// the merged run is its place in its own plus the count of smaller ones in the other.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <utility>

#include "macgrad/core/tensor.h"
#include "macgrad/cuda/device_code.cuh"
#include "macgrad/cuda/launch.h"

namespace macgrad::cuda {

inline constexpr int kSortTile = 4096;  // 32 KB of shared memory
inline constexpr int kSortThreads = 512;

MACGRAD_HD inline uint64_t placed(uint64_t destination, uint64_t place) {
  return destination << 32 | place;
}

/// The two elements of a tile that comparison `pair` of a step of distance `stride` looks at are
/// `lower` and lower + stride.
MACGRAD_HD inline int bitonic_lower(int pair, int stride) {
  return 2 * pair - (pair & (stride - 1));
}

// make(i) is number i < count; sorted tiles of `tile` (a power of two) numbers go to out.
template <class Make>
__global__ void sort_tiles(Make make, uint64_t* out, int64_t count, int tile) {
  auto* shared = shared_memory<uint64_t>();
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * tile;
  const auto thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  for (int i = thread; i < tile; i += threads)
    shared[i] = begin + i < count ? make(begin + i) : ~uint64_t{0};
  for (int size = 2; size <= tile; size *= 2) {
    for (int stride = size / 2; stride > 0; stride /= 2) {
      __syncthreads();
      for (int pair = thread; pair < tile / 2; pair += threads) {
        const int i = bitonic_lower(pair, stride);
        const uint64_t a = shared[i], b = shared[i + stride];
        const bool ascending = (i & size) == 0;
        if ((a > b) == ascending) {
          shared[i] = b;
          shared[i + stride] = a;
        }
      }
    }
  }
  __syncthreads();
  for (int i = thread; i < tile && begin + i < count; i += threads) out[begin + i] = shared[i];
}

// Where number i of sorted runs of length `run` goes when neighbouring runs are merged.
MACGRAD_HD inline int64_t merged_place(const uint64_t* in, int64_t count, int64_t run, int64_t i) {
  const int64_t mine = i / run * run;
  const bool left = i / run % 2 == 0;
  const int64_t other = left ? mine + run : mine - run;
  int64_t low = other < count ? other : count;
  int64_t high = other + run < count ? other + run : count;
  if (high < low) high = low;
  const int64_t begin = low;
  const uint64_t value = in[i];
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (in[middle] < value) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return (left ? mine : other) + (i - mine) + (low - begin);
}

static __global__ void merge_runs(const uint64_t* in, uint64_t* out, int64_t count, int64_t run) {
  for (int64_t i = thread_index(); i < count; i += thread_count())
    out[merged_place(in, count, run, i)] = in[i];
}

/// The sorted numbers make(0) … make(count - 1), as an int64 tensor (count).
template <class Make>
Tensor sorted_numbers(const Make& make, int64_t count, Device device) {
  const auto numbers = [](const Tensor& t) { return static_cast<uint64_t*>(t.raw()); };
  Tensor now = Tensor::empty({count}, DType::int64, device);
  if (count == 0) return now;
  const int tile = static_cast<int>(
      std::bit_ceil(static_cast<uint64_t>(std::clamp<int64_t>(count, 2 * kWarp, kSortTile))));
  launch(sort_tiles<Make>,
         {blocks_for(count, tile), static_cast<unsigned>(std::min(kSortThreads, tile / 2)),
          sizeof(uint64_t) * static_cast<size_t>(tile)},
         make, numbers(now), count, tile);
  Tensor next;
  for (int64_t run = tile; run < count; run *= 2) {
    if (!next.defined()) next = Tensor::empty({count}, DType::int64, device);
    launch(merge_runs, {blocks_strided(count, 256), 256}, numbers(now), numbers(next), count, run);
    std::swap(now, next);
  }
  return now;
}

}  // namespace macgrad::cuda
