// Two sums (or two moments) for every column of a matrix, taken by teams that walk over its rows: a
// thread keeps its own columns, a block merges its teams in a fixed order and leaves one partial
// result, and a second kernel merges the blocks', in order and in float64. No atomics: the same
// input gives the same bits.
//
// Shape letters: G independent groups of rows (heads), N columns; chunks: blocks of rows, each of
// which left a partial result (2, N).
#pragma once

#include "macgrad/core/tensor.h"
#include "macgrad/core/vector_math.h"
#include "macgrad/cuda/row_chunks.h"
#include "macgrad/cuda/rows.cuh"

namespace macgrad::cuda {

/// Merging of two pairs (a, b): sums.
struct AddPairs {
  template <class C>
  __device__ AddPairs(C, C) {}
  template <class C>
  __device__ void operator()(C& a, C& b, C other_a, C other_b) const {
    a += other_a;
    b += other_b;
  }
};
/// Means and sums of squared differences of n and of m values (Chan, Golub & LeVeque 1979).
template <class C>
struct MergeMoments {
  __device__ MergeMoments(C n, C m) : share(n + m > C(0) ? m / (n + m) : C(0)), cross(n * share) {}
  __device__ void operator()(C& mean, C& squares, C other_mean, C other_squares) const {
    const C delta = other_mean - mean;
    mean += delta * share;
    squares += other_squares + delta * delta * cross;
  }
  C share, cross;
};

inline constexpr int kShortWarps = kShortTeams / kWarp;

/// A thread's pairs: in registers as the rows R are, else in `memory` (2, n), which is shared or
/// the block's partial result itself.
template <class C, class R>
class ColumnPairs {
 public:
  __device__ ColumnPairs(int64_t n, int member, C* memory)
      : memory_(memory), n_(n), member_(member) {
    if constexpr (R::in_registers) {
#pragma unroll
      for (int k = 0; k < R::per; ++k)
#pragma unroll
        for (int j = 0; j < R::vec; ++j) a_[k][j] = b_[k][j] = C(0);
    } else {
      each_column<R>(n, member, [&](int, auto column) {
#pragma unroll
        for (int j = 0; j < R::vec; ++j) memory_[column + j] = memory_[n_ + column + j] = C(0);
      });
    }
  }

  /// f(a, b) for element j of this thread's unit k, which begins at `column`.
  template <class Index, class F>
  __device__ void update(int k, Index column, int j, F f) {
    if constexpr (R::in_registers) {
      f(a_[k][j], b_[k][j]);
    } else {
      f(memory_[column + j], memory_[n_ + column + j]);
    }
  }

  /// Merges the block's teams, writes `partial` (2, n) and returns the block's count. Every thread
  /// of the block calls it. `count`: rows behind this thread's pairs. `shared`: for rows in
  /// registers, room for 2n + kShortWarps values.
  template <class Merge>
  __device__ C finish(C* partial, C* shared, C count = C(0)) {
    if constexpr (R::in_registers) {
      // Teams of one warp, by exchange.
#pragma unroll
      for (int bits = R::width; bits < kWarp; bits *= 2) {
        const C other = __shfl_xor_sync(kFullWarp, count, bits);
        const Merge merge(count, other);
#pragma unroll
        for (int k = 0; k < R::per; ++k)
#pragma unroll
          for (int j = 0; j < R::vec; ++j) {
            const C other_a = __shfl_xor_sync(kFullWarp, a_[k][j], bits);
            const C other_b = __shfl_xor_sync(kFullWarp, b_[k][j], bits);
            merge(a_[k][j], b_[k][j], other_a, other_b);
          }
        count += other;
      }
      // Warps, one after the other.
      const int warp = static_cast<int>(threadIdx.x) / kWarp;
      const bool first_team = static_cast<int>(threadIdx.x) % kWarp < R::width;
      C* counts = shared + 2 * n_;
      if (threadIdx.x % kWarp == 0) counts[warp] = count;
      __syncthreads();
      C before = 0;
      for (int turn = 0; turn < kShortWarps; ++turn) {
        if (turn == warp && first_team) {
          const Merge merge(before, count);
          each_column<R>(n_, member_, [&](int k, int column) {
#pragma unroll
            for (int j = 0; j < R::vec; ++j) {
              C a = turn == 0 ? C(0) : shared[column + j];
              C b = turn == 0 ? C(0) : shared[n_ + column + j];
              merge(a, b, a_[k][j], b_[k][j]);
              shared[column + j] = a;
              shared[n_ + column + j] = b;
            }
          });
        }
        before += counts[turn];
        __syncthreads();
      }
      for (int64_t i = threadIdx.x; i < 2 * n_; i += kShortTeams) partial[i] = shared[i];
      return before;
    } else {
      if (memory_ != partial)
        each_column<R>(n_, member_, [&](int, auto column) {
#pragma unroll
          for (int j = 0; j < R::vec; ++j) {
            partial[column + j] = memory_[column + j];
            partial[n_ + column + j] = memory_[n_ + column + j];
          }
        });
      return count;
    }
  }

 private:
  C a_[R::slots][R::vec], b_[R::slots][R::vec];
  C* memory_;
  int64_t n_;
  int member_;
};

/// Shared memory of a block with column pairs; `caches` as in team_memory.
template <class C, class R>
TeamMemory pair_memory(int64_t n, int64_t row_bytes, int caches) {
  const auto pairs = static_cast<size_t>(2 * n) * sizeof(C);
  if (R::in_registers) return {false, true, pairs + kShortWarps * sizeof(C)};
  return team_memory(true, row_bytes, caches, pairs);
}
/// Where a long row's pairs live on the device.
template <class C, class R>
__device__ inline C* pair_place(const TeamMemory& memory, int64_t n, C* partial) {
  if constexpr (R::in_registers) return nullptr;
  if (!memory.keep_more) return partial;
  return reinterpret_cast<C*>(shared_memory<unsigned char>() + memory.bytes) - 2 * n;
}

// ---- merging of chunks: partial (G, chunks, 2, N)

inline constexpr int kMergeGroups = 16;  // warps of a merging block, each with every 16th chunk

/// Where a column result goes: (G, N) of any floating dtype, or one number, the sum over columns.
struct ColumnOutput {
  void* data = nullptr;
  DType dtype = DType::float32;
  bool single = false;
};
template <class C>
__device__ inline void store_column(const ColumnOutput& out, int64_t i, C value) {
  if (out.dtype == DType::float64) {
    static_cast<double*>(out.data)[i] = static_cast<double>(value);
  } else if (out.dtype == DType::float32) {
    static_cast<float*>(out.data)[i] = static_cast<float>(value);
  } else {
    static_cast<bfloat16*>(out.data)[i] = bfloat16(static_cast<float>(value));
  }
}

template <class C>
__device__ inline C load_column(const ColumnOutput& out, int64_t i) {
  if (out.dtype == DType::float64) return static_cast<C>(static_cast<const double*>(out.data)[i]);
  if (out.dtype == DType::float32) return static_cast<C>(static_cast<const float*>(out.data)[i]);
  return static_cast<C>(static_cast<float>(static_cast<const bfloat16*>(out.data)[i]));
}

/// Sums; with `counts` (chunks), divided by their sum (0 when that is 0). Grid (G·tiles, 2).
template <class C>
__global__ void __launch_bounds__(kMergeGroups* kWarp)
    merge_sums(const C* __restrict__ partial, int64_t chunks, int64_t n,
               const double* __restrict__ counts, ColumnOutput first, ColumnOutput second) {
  auto* sums = shared_memory<double>();
  const int64_t tiles = (n + kWarp - 1) / kWarp;
  const int64_t group = blockIdx.x / tiles, tile = blockIdx.x % tiles;
  const int which = static_cast<int>(blockIdx.y);
  const ColumnOutput out = which == 0 ? first : second;
  if (out.single && tile > 0) return;
  const int lane = static_cast<int>(threadIdx.x) % kWarp,
            warp = static_cast<int>(threadIdx.x) / kWarp;
  const int64_t column = tile * kWarp + lane;
  double total = 0;
  for (int64_t c = column; c < (out.single ? n : ::min(n, column + 1)); c += kWarp)
    for (int64_t chunk = warp; chunk < chunks; chunk += kMergeGroups)
      total += static_cast<double>(partial[((group * chunks + chunk) * 2 + which) * n + c]);
  sums[threadIdx.x] = total;
  __syncthreads();
  if (warp != 0) return;
  for (int w = 1; w < kMergeGroups; ++w) total += sums[w * kWarp + lane];
  if (counts) {
    double count = 0;
    for (int64_t chunk = lane; chunk < chunks; chunk += kWarp) count += counts[chunk];
    count = warp_sum(count);
    total = count > 0 ? total * (1.0 / count) : 0.0;
  }
  if (out.single) {
    total = warp_sum(total);
    if (lane == 0) store_column(out, 0, static_cast<C>(total));
  } else if (column < n) {
    store_column(out, group * n + column, static_cast<C>(total));
  }
}

template <class C>
void launch_merge_sums(const C* partial, int64_t groups, int64_t chunks, int64_t n,
                       const double* counts, ColumnOutput first, ColumnOutput second) {
  const int64_t tiles = (n + kWarp - 1) / kWarp;
  launch(merge_sums<C>,
         {dim3(blocks_for(groups * tiles, 1), 2), kMergeGroups * kWarp,
          sizeof(double) * kMergeGroups * kWarp},
         partial, chunks, n, counts, first, second);
}

/// Running statistics (G, N) of any floating dtype, or absent, that follow those of a merge:
/// running = (1 - momentum)·running + momentum·now. Both products are rounded before they are
/// added, as on the CPU.
struct Running {
  ColumnOutput mean, var;
  double momentum = 0.0;
};
template <class C>
__device__ inline void follow(const ColumnOutput& running, int64_t i, C now, double momentum) {
  if (!running.data) return;
  const C kept = math::fma(load_column<C>(running, i), static_cast<C>(1.0 - momentum), C(0));
  store_column(running, i, kept + math::fma(now, static_cast<C>(momentum), C(0)));
}

/// Mean and biased variance from moments and `counts` (chunks); 0 and 1 when nothing was counted.
/// Grid (G·tiles).
template <class C>
__global__ void __launch_bounds__(kMergeGroups* kWarp)
    merge_moments(const C* __restrict__ partial, int64_t chunks, int64_t n,
                  const double* __restrict__ counts, C* __restrict__ mean, C* __restrict__ var,
                  Running running) {
  auto* means = shared_memory<double>();
  double* squares = means + kMergeGroups * kWarp;
  double* totals = squares + kMergeGroups * kWarp;
  const int64_t tiles = (n + kWarp - 1) / kWarp;
  const int64_t group = blockIdx.x / tiles;
  const int lane = static_cast<int>(threadIdx.x) % kWarp,
            warp = static_cast<int>(threadIdx.x) / kWarp;
  const int64_t column = blockIdx.x % tiles * kWarp + lane;
  double total = 0, m = 0, s = 0;
  for (int64_t chunk = warp; chunk < chunks && column < n; chunk += kMergeGroups) {
    const double count = counts[chunk];
    const C* p = partial + (group * chunks + chunk) * 2 * n + column;
    const MergeMoments<double> merge(total, count);
    merge(m, s, static_cast<double>(p[0]), static_cast<double>(p[n]));
    total += count;
  }
  means[threadIdx.x] = m;
  squares[threadIdx.x] = s;
  totals[threadIdx.x] = total;
  __syncthreads();
  if (warp != 0 || column >= n) return;
  for (int w = 1; w < kMergeGroups; ++w) {
    const int at = w * kWarp + lane;
    const MergeMoments<double> merge(total, totals[at]);
    merge(m, s, means[at], squares[at]);
    total += totals[at];
  }
  const int64_t at = group * n + column;
  const C centre = static_cast<C>(m), variance = total > 0 ? static_cast<C>(s / total) : C(1);
  mean[at] = centre;
  var[at] = variance;
  follow(running.mean, at, centre, running.momentum);
  follow(running.var, at, variance, running.momentum);
}

template <class C>
void launch_merge_moments(const C* partial, int64_t groups, int64_t chunks, int64_t n,
                          const double* counts, C* mean, C* var, const Running& running) {
  const int64_t tiles = (n + kWarp - 1) / kWarp;
  launch(merge_moments<C>,
         {blocks_for(groups * tiles, 1), kMergeGroups * kWarp,
          3 * sizeof(double) * kMergeGroups * kWarp},
         partial, chunks, n, counts, mean, var, running);
}

}  // namespace macgrad::cuda
