// Several neighbouring elements, moved by loads and stores of up to 16 bytes.
#pragma once

#include <cstddef>
#include <cstdint>

namespace macgrad::cuda {

template <class T, int lanes>
struct alignas(sizeof(T) * lanes) Packed {
  T v[lanes];
};

/// Elements of 16 bytes.
template <class T>
inline constexpr int kPacked = static_cast<int>(16 / sizeof(T));

/// True when `p` may be read as packs of `bytes`.
inline __host__ __device__ bool aligned_for(const void* p, size_t bytes) {
  return reinterpret_cast<uintptr_t>(p) % bytes == 0;
}

}  // namespace macgrad::cuda
