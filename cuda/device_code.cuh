// What kernels share on the device: shared memory, loads and stores in the compute type, and
// reductions over a warp and a block in a fixed order, so that the same input gives the same bits.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "macgrad/core/dtype.h"

namespace macgrad::cuda {

inline constexpr unsigned kFullWarp = 0xffffffffu;
inline constexpr int kWarp = 32;

/// The block's dynamic shared memory as a struct (or an array: shared_memory<float>() is its first
/// element's address). The launch asks for its size.
template <class T>
__device__ inline T* shared_memory() {
#if defined(MACGRAD_CUDA_EMULATED)
  return static_cast<T*>(::emulation::shared());
#else
  extern __shared__ __align__(128) unsigned char macgrad_shared_bytes[];
  return reinterpret_cast<T*>(macgrad_shared_bytes);
#endif
}

template <class T>
__device__ inline compute_t<T> load(const T* p) {
  return static_cast<compute_t<T>>(*p);
}
template <class T>
__device__ inline void store(T* p, compute_t<T> value) {
  *p = static_cast<T>(value);
}

struct Sum {
  template <class T>
  __device__ T operator()(T a, T b) const {
    return a + b;
  }
};
/// NaN wins, as in torch.amax.
struct Max {
  template <class T>
  __device__ T operator()(T a, T b) const {
    return (a > b || a != a) ? a : b;
  }
};
struct Min {
  template <class T>
  __device__ T operator()(T a, T b) const {
    return (a < b || a != a) ? a : b;
  }
};

/// Reduction over aligned groups of `width` lanes (a power of two); every lane has the result.
template <int width = kWarp, class T, class Op>
__device__ inline T warp_reduce(T value, Op op) {
#pragma unroll
  for (int bits = width / 2; bits > 0; bits /= 2)
    value = op(value, __shfl_xor_sync(kFullWarp, value, bits));
  return value;
}
template <int width = kWarp, class T>
__device__ inline T warp_sum(T value) {
  return warp_reduce<width>(value, Sum{});
}

/// Reduction over a one-dimensional block of `threads` (a multiple of 32); every thread has the
/// result. `scratch`: threads/32 values of shared memory, free again after the next barrier.
template <int threads, class T, class Op>
__device__ inline T block_reduce(T value, T* scratch, Op op) {
  constexpr int warps = threads / kWarp;
  value = warp_reduce(value, op);
  if constexpr (warps == 1) return value;
  const int lane = static_cast<int>(threadIdx.x) % kWarp,
            warp = static_cast<int>(threadIdx.x) / kWarp;
  __syncthreads();
  if (lane == 0) scratch[warp] = value;
  __syncthreads();
  T total = scratch[0];
#pragma unroll
  for (int w = 1; w < warps; ++w) total = op(total, scratch[w]);
  return total;
}
template <int threads, class T>
__device__ inline T block_sum(T value, T* scratch) {
  return block_reduce<threads>(value, scratch, Sum{});
}

/// Index of this thread in a one-dimensional grid, and the number of its threads.
__device__ inline int64_t thread_index() {
  return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}
__device__ inline int64_t thread_count() {
  return static_cast<int64_t>(gridDim.x) * blockDim.x;
}

}  // namespace macgrad::cuda
