// CUDA's language on the CPU: keywords, built-in variables, barriers, warp collectives and atomics
// as g++ can compile them, each running on the emulated device (machine.h).
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <tuple>
#include <type_traits>

#include "cuda_runtime_api.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __noinline__
// The threads of a launch bound become a NOP per warp at the kernel's entry, where the launch
// counts them: a macro between a function's return type and its name cannot leave them anywhere
// else.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define EMULATION_LAUNCH_BOUNDS
#define EMULATION_FIRST(first, ...) (first)
#define __launch_bounds__(...) \
  __attribute__((patchable_function_entry((EMULATION_FIRST(__VA_ARGS__, 0) + 31) / 32)))
#else
#define __launch_bounds__(...)
#endif
#define __restrict__ __restrict
#define __constant__ static
#define __grid_constant__
#define __align__(n) alignas(n)

// Set by the machine whenever a thread runs.
extern const emulation::Index &threadIdx, &blockIdx, &blockDim, &gridDim;

struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
inline float2 make_float2(float x, float y) {
  return {x, y};
}
inline float4 make_float4(float x, float y, float z, float w) {
  return {x, y, z, w};
}
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) {
  return {x, y, z, w};
}

// ---- launches

struct cudaLaunchAttribute {};
struct cudaLaunchConfig_t {
  dim3 gridDim;
  dim3 blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
  cudaLaunchAttribute* attrs = nullptr;
  unsigned numAttrs = 0;
};
template <class... P, class... A>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(P...),
                               A&&... args) {
  const cudaError_t status =
      emulation::check_launch(config->gridDim, config->blockDim, config->dynamicSmemBytes,
                              reinterpret_cast<const void*>(kernel));
  if (status != cudaSuccess) return status;
  // Arguments are copied at the launch, as the real one does; each thread gets its own copy.
  const std::tuple<std::remove_cvref_t<P>...> values(std::forward<A>(args)...);
  const auto index = [](const dim3& d) { return emulation::Index{d.x, d.y, d.z}; };
  const emulation::Index grid = index(config->gridDim), block = index(config->blockDim);
  const size_t shared = config->dynamicSmemBytes;
  emulation::enqueue(config->stream, [=] {
    emulation::count_launch();
    emulation::run_grid(grid, block, shared, [&] { std::apply(kernel, values); });
  });
  return emulation::launched();
}

// ---- barriers and warp collectives

inline void __syncthreads() {
  emulation::block_barrier();
}
inline int __syncthreads_count(int predicate) {
  return emulation::block_count(predicate != 0);
}
inline int __syncthreads_or(int predicate) {
  return emulation::block_count(predicate != 0) > 0;
}
inline void __syncwarp(unsigned mask = 0xffffffffu) {
  const char nothing = 0;
  emulation::warp_exchange(mask, &nothing, 1);
}
inline void __threadfence() {}

namespace emulation {
inline unsigned lane() {
  return ((threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x) % 32;
}
template <class T>
T read_lane(unsigned mask, T value, unsigned source) {
  static_assert(std::is_trivially_copyable_v<T>);
  const auto* board = static_cast<const char*>(warp_exchange(mask, &value, sizeof(T)));
  T result;
  std::memcpy(&result, board + source * sizeof(T), sizeof(T));
  return result;
}
}  // namespace emulation

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
  const unsigned lane = emulation::lane(), w = static_cast<unsigned>(width);
  return emulation::read_lane(mask, value, lane / w * w + static_cast<unsigned>(source) % w);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32) {
  const unsigned lane = emulation::lane(), w = static_cast<unsigned>(width);
  const unsigned other = lane ^ static_cast<unsigned>(bits);
  return emulation::read_lane(mask, value, other / w == lane / w ? other : lane);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32) {
  const unsigned lane = emulation::lane(), w = static_cast<unsigned>(width);
  const unsigned other = lane + by;
  return emulation::read_lane(mask, value, other / w == lane / w ? other : lane);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32) {
  const unsigned lane = emulation::lane(), w = static_cast<unsigned>(width);
  const bool inside = lane >= by && (lane - by) / w == lane / w;
  return emulation::read_lane(mask, value, inside ? lane - by : lane);
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
  const char value = predicate != 0;
  const auto* board = static_cast<const char*>(emulation::warp_exchange(mask, &value, 1));
  unsigned bits = 0;
  for (unsigned i = 0; i < 32; ++i)
    if ((mask >> i & 1) && board[i]) bits |= 1u << i;
  return bits;
}
inline int __any_sync(unsigned mask, int predicate) {
  return __ballot_sync(mask, predicate) != 0;
}
inline int __all_sync(unsigned mask, int predicate) {
  return __ballot_sync(mask, predicate) == mask;
}

// ---- atomics: one fiber runs at a time

template <class T>
T atomicAdd(T* at, std::type_identity_t<T> value) {
  const T old = *at;
  *at = old + value;
  return old;
}
template <class T>
T atomicMax(T* at, std::type_identity_t<T> value) {
  const T old = *at;
  *at = std::max(old, value);
  return old;
}
template <class T>
T atomicMin(T* at, std::type_identity_t<T> value) {
  const T old = *at;
  *at = std::min(old, value);
  return old;
}
template <class T>
T atomicExch(T* at, std::type_identity_t<T> value) {
  const T old = *at;
  *at = value;
  return old;
}
template <class T>
T atomicCAS(T* at, std::type_identity_t<T> expected, std::type_identity_t<T> value) {
  const T old = *at;
  if (old == expected) *at = value;
  return old;
}

// ---- a few intrinsics

inline int __popc(unsigned x) {
  return __builtin_popcount(x);
}
inline int __ffs(int x) {
  return __builtin_ffs(x);
}
inline float __uint_as_float(unsigned x) {
  float y;
  std::memcpy(&y, &x, 4);
  return y;
}
inline unsigned __float_as_uint(float x) {
  unsigned y;
  std::memcpy(&y, &x, 4);
  return y;
}
template <class T>
T __ldg(const T* at) {
  return *at;
}
using std::max;
using std::min;
