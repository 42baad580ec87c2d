// Tensor-core products of one warp: D = A·B + C with float32 sums (PTX ISA, "mma.sync.aligned").
// The host branch computes the same from the same fragments, for the emulator of the tests.
//
// Fragments, with g = lane/4 and t = lane%4:
//   C, D (16×8):  c[0] (g, 2t)   c[1] (g, 2t+1)   c[2] (g+8, 2t)   c[3] (g+8, 2t+1)
//   tf32, A (16×8): a[0] (g, t)  a[1] (g+8, t)    a[2] (g, t+4)    a[3] (g+8, t+4)
//         B (8×8):  b[0] (t, g)  b[1] (t+4, g)
//   bf16, A (16×16), two values a register, the first in the low half:
//                   a[0] (g, 2t…)  a[1] (g+8, 2t…)  a[2] (g, 2t+8…)  a[3] (g+8, 2t+8…)
//         B (16×8): b[0] (2t…, g)  b[1] (2t+8…, g)
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "macgrad/core/dtype.h"
#include "macgrad/cuda/device_code.cuh"

namespace macgrad::cuda {

/// x rounded to tf32 (10 bits of mantissa, ties away from zero), as a register of a fragment.
__device__ inline uint32_t to_tf32(float x) {
#if defined(__CUDA_ARCH__)
  uint32_t r;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(r) : "f"(x));
  return r;
#else
  const uint32_t bits = bit_copy<uint32_t>(x);
  return (bits & 0x7f800000u) == 0x7f800000u ? bits : (bits + 0x1000u) & 0xffffe000u;
#endif
}

/// Two values rounded to bfloat16 (nearest even), `low` in the low half.
__device__ inline uint32_t to_bf16_pair(float low, float high) {
#if defined(__CUDA_ARCH__)
  uint32_t r;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
#else
  return static_cast<uint32_t>(bfloat16(low).bits) | static_cast<uint32_t>(bfloat16(high).bits)
                                                         << 16;
#endif
}

#if !defined(__CUDA_ARCH__)
#if defined(MACGRAD_CUDA_EMULATED)
namespace detail {

struct MmaLane {
  uint32_t a[4], b[2];
};

// D of this lane from everybody's fragments; element(m, k) and (k, n) find the lane and register.
template <int K, class Left, class Right>
inline void host_mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Left left,
                     Right right) {
  MmaLane mine{{a[0], a[1], a[2], a[3]}, {b[0], b[1]}};
  const auto* board =
      static_cast<const MmaLane*>(::emulation::warp_exchange(kFullWarp, &mine, sizeof(mine)));
  MmaLane all[32];
  memcpy(all, board, sizeof(all));
  const int lane = static_cast<int>(threadIdx.x) % kWarp, g = lane / 4, t = lane % 4;
  for (int i = 0; i < 4; ++i) {
    const int m = g + (i / 2) * 8, n = 2 * t + i % 2;
    float total = c[i];
    for (int k = 0; k < K; ++k) total += left(all, m, k) * right(all, k, n);
    c[i] = total;
  }
}

}  // namespace detail
#endif
#endif

/// c += A (16×8) · B (8×8) in tf32.
__device__ inline void mma_tf32(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if defined(__CUDA_ARCH__)
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#elif defined(MACGRAD_CUDA_EMULATED)
  detail::host_mma<8>(
      c, a, b,
      [](const detail::MmaLane* all, int m, int k) {
        return bit_copy<float>(all[m % 8 * 4 + k % 4].a[m / 8 + k / 4 * 2]);
      },
      [](const detail::MmaLane* all, int k, int n) {
        return bit_copy<float>(all[n * 4 + k % 4].b[k / 4]);
      });
#endif
}

/// c += A (16×16) · B (16×8) in bf16.
__device__ inline void mma_bf16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if defined(__CUDA_ARCH__)
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#elif defined(MACGRAD_CUDA_EMULATED)
  const auto half = [](uint32_t pair, int which) {
    return bit_copy<float>(which ? pair & 0xffff0000u : pair << 16);
  };
  detail::host_mma<16>(
      c, a, b,
      [half](const detail::MmaLane* all, int m, int k) {
        return half(all[m % 8 * 4 + k % 8 / 2].a[m / 8 + k / 8 * 2], k % 2);
      },
      [half](const detail::MmaLane* all, int k, int n) {
        return half(all[n * 4 + k % 8 / 2].b[k / 8], k % 2);
      });
#endif
}

}  // namespace macgrad::cuda
