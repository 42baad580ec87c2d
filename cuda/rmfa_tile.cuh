// Products of tiles in shared memory by a block of 128 threads: 64 rows by 64·W columns, in plain
// float32 or float64 or, from float32, on tensor cores. All products of RMFA and of linear
// attention are this one, with either operand read along its rows or its columns, so that every
// tile stays in the layout in which it was loaded.
//
// Four warps hold 32×32 each (of every 64 columns). Exactly rounded: a thread has 8×4 sums, rows in
// two groups of four. Its columns are `packed` (4 neighbours: one 16-byte load of an operand stored
// by k) or `spread` (8 apart: loads of an operand stored by columns meet no bank twice). On tensor
// cores the fragments of mma.cuh decide, and operands are rounded as they are read.
#pragma once

#include "macgrad/cuda/mma.cuh"
#include "macgrad/cuda/rmfa_memory.h"

namespace macgrad::cuda::rmfa {

inline constexpr int kBlocks = 2;  // that shared memory lets a multiprocessor have: 255 registers

enum class Rounding { exact, tf32, bf16 };
enum class Columns { packed, spread };

__device__ inline int lane_index() {
  return static_cast<int>(threadIdx.x) % kWarp;
}
__device__ inline int warp_index() {
  return static_cast<int>(threadIdx.x) / kWarp;
}

/// Four neighbouring values, moved at once.
template <class E>
struct alignas(4 * sizeof(E)) Four {
  E v[4];
};

/// The thread's share of a 64×(64·W) tile of sums of V, float or, exactly rounded, double.
template <Rounding rounding, int W, Columns columns = Columns::packed, class V = float>
struct Sums {
  static_assert(rounding == Rounding::exact || sizeof(V) == sizeof(float));
  static constexpr int kCount = 32 * W;
  static constexpr int kGroup = rounding == Rounding::exact ? 4 : 16;  // neighbours of 64 columns
  static constexpr bool kPacked = columns == Columns::packed;
  V v[kCount];

  __device__ void clear() {
#pragma unroll
    for (int e = 0; e < kCount; ++e) v[e] = V(0);
  }
  __device__ static int row(int e) {
    const int base = warp_index() / 2 * 32;
    if constexpr (rounding == Rounding::exact) {
      const int i = e / (4 * W);
      return base + i / 4 * 16 + lane_index() / 8 * 4 + i % 4;
    } else {
      return base + e / (16 * W) * 16 + e % 4 / 2 * 8 + lane_index() / 4;
    }
  }
  __device__ static int column(int e) {
    const int base = warp_index() % 2 * 32;
    if constexpr (rounding == Rounding::exact) {
      const int j = e % (4 * W);
      return j / 4 * 64 + base +
             (kPacked ? lane_index() % 8 * 4 + j % 4 : lane_index() % 8 + j % 4 * 8);
    } else {
      const int n = e % (16 * W) / 4;
      return n / 4 * 64 + base + n % 4 * 8 + lane_index() % 4 * 2 + e % 2;
    }
  }
  /// f(row, column, value) for every element of this thread.
  template <class F>
  __device__ void each(F&& f) {
#pragma unroll
    for (int e = 0; e < kCount; ++e) f(row(e), column(e), v[e]);
  }
  __device__ void store(V* tile, int ld) {
    if constexpr (rounding == Rounding::exact && kPacked) {
#pragma unroll
      for (int e = 0; e < kCount; e += 4)
        *reinterpret_cast<Four<V>*>(tile + row(e) * ld +
                                    column(e)) = {{v[e], v[e + 1], v[e + 2], v[e + 3]}};
    } else {
      each([&](int r, int c, V x) { tile[r * ld + c] = x; });
    }
  }
};

template <class V>
__device__ inline void load4(V (&y)[4], const V* x) {
  const Four<V> four = *reinterpret_cast<const Four<V>*>(x);
#pragma unroll
  for (int i = 0; i < 4; ++i) y[i] = four.v[i];
}

/// sums += A·B over k in [0, K), K a multiple of 16. A is read as a[row·lda + k] when rows_a, else
/// a[k·lda + row]; B as b[column·ldb + k] when rows_b, else b[k·ldb + column].
template <bool rows_a, bool rows_b, int W, Columns columns, class V>
__device__ inline void multiply_add(Sums<Rounding::exact, W, columns, V>& sums,
                                    const V* __restrict__ a, int lda, const V* __restrict__ b,
                                    int ldb, int K) {
  constexpr bool packed = columns == Columns::packed;
  static_assert(!(rows_b && packed), "an operand stored by columns wants spread sums");
  constexpr int J = 4 * W;
  const int r0 = sums.row(0), c0 = sums.column(0);
#pragma unroll 1
  for (int k = 0; k < K; k += 4) {
    V y[4][J];
    if constexpr (rows_b) {
#pragma unroll
      for (int j = 0; j < J; ++j) {
        V four[4];
        load4(four, b + (c0 + j / 4 * 64 + j % 4 * 8) * ldb + k);
#pragma unroll
        for (int kk = 0; kk < 4; ++kk) y[kk][j] = four[kk];
      }
    } else {
#pragma unroll
      for (int kk = 0; kk < 4; ++kk) {
#pragma unroll
        for (int w = 0; w < W; ++w) {
          const V* from = b + (k + kk) * ldb + c0 + w * 64;
          V four[4];
          if constexpr (packed) {
            load4(four, from);
          } else {
#pragma unroll
            for (int j = 0; j < 4; ++j) four[j] = from[j * 8];
          }
#pragma unroll
          for (int j = 0; j < 4; ++j) y[kk][w * 4 + j] = four[j];
        }
      }
    }
    if constexpr (rows_a) {
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        V x[4];
        load4(x, a + (r0 + i / 4 * 16 + i % 4) * lda + k);
#pragma unroll
        for (int kk = 0; kk < 4; ++kk) {
#pragma unroll
          for (int j = 0; j < J; ++j) sums.v[i * J + j] += x[kk] * y[kk][j];
        }
      }
    } else {
#pragma unroll
      for (int kk = 0; kk < 4; ++kk) {
        V x[2][4];
        load4(x[0], a + (k + kk) * lda + r0);
        load4(x[1], a + (k + kk) * lda + r0 + 16);
#pragma unroll
        for (int i = 0; i < 8; ++i) {
#pragma unroll
          for (int j = 0; j < J; ++j) sums.v[i * J + j] += x[i / 4][i % 4] * y[kk][j];
        }
      }
    }
  }
}

/// Element (r, k) of an operand that is stored by rows or by k.
template <bool rows>
__device__ inline float element(const float* tile, int ld, int r, int k) {
  return rows ? tile[r * ld + k] : tile[k * ld + r];
}
/// Register of a fragment: one value in tf32, two neighbours along k in bf16.
template <Rounding rounding, bool rows>
__device__ inline uint32_t fragment(const float* tile, int ld, int r, int k) {
  if constexpr (rounding == Rounding::tf32) {
    return to_tf32(element<rows>(tile, ld, r, k));
  } else if constexpr (rows) {
    // k is even and rows are 16-byte aligned.
    const float2 two = *reinterpret_cast<const float2*>(tile + r * ld + k);
    return to_bf16_pair(two.x, two.y);
  } else {
    return to_bf16_pair(element<rows>(tile, ld, r, k), element<rows>(tile, ld, r, k + 1));
  }
}

template <bool rows_a, bool rows_b, Rounding rounding, int W, Columns columns>
requires(rounding != Rounding::exact) __device__
    inline void multiply_add(Sums<rounding, W, columns>& sums, const float* __restrict__ a, int lda,
                             const float* __restrict__ b, int ldb, int K) {
  constexpr int step = rounding == Rounding::tf32 ? 8 : 16;
  constexpr int each = rounding == Rounding::tf32 ? 1 : 2;  // values of k a register
  const int g = lane_index() / 4, t = lane_index() % 4 * each;
  const int r0 = warp_index() / 2 * 32 + g, c0 = warp_index() % 2 * 32 + g;
#pragma unroll 1
  for (int k = t; k < K; k += step) {
    uint32_t x[2][4];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int part = 0; part < 4; ++part)
        x[i][part] =
            fragment<rounding, rows_a>(a, lda, r0 + i * 16 + part % 2 * 8, k + part / 2 * 4 * each);
    }
#pragma unroll
    for (int n = 0; n < 4 * W; ++n) {
      uint32_t y[2];
#pragma unroll
      for (int part = 0; part < 2; ++part)
        y[part] =
            fragment<rounding, rows_b>(b, ldb, c0 + n / 4 * 64 + n % 4 * 8, k + part * 4 * each);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float* v = sums.v + i * 16 * W + n * 4;
        float c[4] = {v[0], v[1], v[2], v[3]};
        if constexpr (rounding == Rounding::tf32) {
          mma_tf32(c, x[i], y);
        } else {
          mma_bf16(c, x[i], y);
        }
#pragma unroll
        for (int e = 0; e < 4; ++e) v[e] = c[e];
      }
    }
  }
}

}  // namespace macgrad::cuda::rmfa
