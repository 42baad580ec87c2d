// Reductions of the middle dimension of (A, R, N), whatever is reduced: the kernel that walks a
// block's part of a ReduceTiling. The results of threads, then of pieces, are merged in a fixed
// order.
//
// A Reducer has: Element, State; x (first element), start(), take(state, value, place, row),
// merge(state, later state), finish(output, state).
#pragma once

#include "macgrad/cuda/device_code.cuh"
#include "macgrad/cuda/launch.h"
#include "macgrad/cuda/pack.cuh"
#include "macgrad/cuda/reduce_tiling.h"

namespace macgrad::cuda {

// Shared memory: a State for each thread and element of its pack, at most 256·4·16 bytes = 16 KB.
template <class Reducer, int pack, bool along>
__global__ void reduce_tile(Reducer reducer, ReduceTiling t) {
  using State = typename Reducer::State;
  using Pack = Packed<typename Reducer::Element, pack>;
  constexpr int kStates = along ? 1 : pack;
  auto* shared = shared_memory<State>();
  const auto thread = static_cast<int>(threadIdx.x);
  const ReduceTiling::Place p = t.place(blockIdx.x, thread);
  const auto* x = reducer.x + p.start;
  State state[pack];
#pragma unroll
  for (int j = 0; j < pack; ++j) state[j] = reducer.start();
  if constexpr (along) {
    const int64_t packed_end = p.begin + (p.end - p.begin) / pack * pack;
#pragma unroll 4
    for (int64_t r = p.begin + p.lane * pack; r < packed_end; r += t.lanes * pack) {
      const Pack in = *reinterpret_cast<const Pack*>(x + r);
#pragma unroll
      for (int j = 0; j < pack; ++j) reducer.take(state[j], load(&in.v[j]), p.start + r + j, r + j);
    }
    for (int64_t r = packed_end + p.lane; r < p.end; r += t.lanes)
      reducer.take(state[0], load(x + r), p.start + r, r);
#pragma unroll
    for (int j = 1; j < pack; ++j) reducer.merge(state[0], state[j]);
  } else {
#pragma unroll 4
    for (int64_t r = p.begin + p.lane; r < p.end; r += t.lanes) {
      const Pack in = *reinterpret_cast<const Pack*>(x + r * t.n);
#pragma unroll
      for (int j = 0; j < pack; ++j)
        reducer.take(state[j], load(&in.v[j]), p.start + r * t.n + j, r);
    }
  }
  // Lane l and lane l + half, halving: neighbouring lanes are `step` threads apart.
  const int step = along ? 1 : t.across;
  if (t.lanes > 1) {
#pragma unroll
    for (int j = 0; j < kStates; ++j) shared[thread * kStates + j] = state[j];
  }
  const bool in_warp = along && t.lanes <= kWarp;
  for (int half = t.lanes / 2; half > 0; half /= 2) {
    if (in_warp) {
      __syncwarp();
    } else {
      __syncthreads();
    }
    if (p.lane < half) {
#pragma unroll
      for (int j = 0; j < kStates; ++j) {
        reducer.merge(state[j], shared[(thread + half * step) * kStates + j]);
        shared[thread * kStates + j] = state[j];
      }
    }
  }
  if (p.lane == 0 && p.output >= 0) {
#pragma unroll
    for (int j = 0; j < kStates; ++j) reducer.finish(p.output + j, state[j]);
  }
}

/// Runs `reducer` on the cut `t`.
template <int pack, class Reducer>
void launch_reduce(const Reducer& reducer, const ReduceTiling& t) {
  const auto start = [&]<int elements, bool along>() {
    const size_t states = static_cast<size_t>(t.threads()) * (along ? 1 : elements);
    launch(reduce_tile<Reducer, elements, along>,
           {blocks_for(t.blocks(), 1), static_cast<unsigned>(t.threads()),
            states * sizeof(typename Reducer::State)},
           reducer, t);
  };
  if (t.along) {
    t.pack == 1 ? start.template operator()<1, true>() : start.template operator()<pack, true>();
  } else {
    t.pack == 1 ? start.template operator()<1, false>() : start.template operator()<pack, false>();
  }
}

}  // namespace macgrad::cuda
