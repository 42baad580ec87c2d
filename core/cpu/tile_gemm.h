// Products of blocks that fit a cache, in register tiles: a library call spends more time on
// packing than on a product of 128 tokens. Shape letters: m × k times k × n.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "macgrad/core/cpu/attention_tile.h"
#include "macgrad/core/cpu/gemm.h"

namespace macgrad::cpu {
namespace tile {

using namespace attention;

/// Rows and vectors of a tile: their sums, a row of B and an entry of A fill the registers.
inline constexpr int kRows = 6;
inline constexpr int kVectors = kVectorBytes == 64 ? 4 : 2;

/// c (m, NV vectors) = alpha·a·b + beta·c.
template <class T, int NV, bool kTransposed>
void columns(int64_t m, int64_t k, T alpha, const T* a, int64_t lda, const T* b, int64_t ldb,
             T beta, T* c, int64_t ldc) {
  for_row_tiles<kRows>(
      m, [&]<int MR>(int64_t r) __attribute__((always_inline)) {
        Vector<T> sums[MR][NV] = {};
        accumulate<T, MR, NV, kTransposed>(a + (kTransposed ? r : r * lda), lda, b, ldb, k, sums);
        for_tile<MR, NV>([&](auto i, auto v) __attribute__((always_inline)) {
          T* y = c + (r + i) * ldc + v * kLanes<T>;
          store(y, beta == T(0) ? alpha * sums[i][v] : alpha * sums[i][v] + beta * load(y));
        });
      });
}

}  // namespace tile

/// With a sanitizer, which checks every access, larger products run in the library; smaller ones
/// still cover the tiles, and the lookup of signs (core/cpu/rmfa_problem.h).
#ifdef MACGRAD_EXACT_ALLOC
inline constexpr int64_t kMostTileWork = 1 << 15;
#else
inline constexpr int64_t kMostTileWork = std::numeric_limits<int64_t>::max();
#endif

/// c (m, n) = alpha·op(a)·b + beta·c: op(a) (m, k) is a or, with `transposed`, the transpose of a.
template <class T>
void block_gemm(bool transposed, int64_t m, int64_t n, int64_t k, T alpha, const T* a, int64_t lda,
                const T* b, int64_t ldb, T beta, T* c, int64_t ldc) {
  using namespace tile;
  if (n % kLanes<T> != 0 || m * n * k > kMostTileWork)
    return gemm(transposed, false, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
  const auto run = [&]<int NV>(int64_t j) {
    const auto f = transposed ? columns<T, NV, true> : columns<T, NV, false>;
    f(m, k, alpha, a, lda, b + j, ldb, beta, c + j, ldc);
  };
  int64_t j = 0;
  for (; j + tile::kVectors * kLanes<T> <= n; j += tile::kVectors * kLanes<T>)
    run.template operator()<tile::kVectors>(j);
  if (tile::kVectors > 2)
    for (; j + 2 * kLanes<T> <= n; j += 2 * kLanes<T>) run.template operator()<2>(j);
  for (; j < n; j += kLanes<T>) run.template operator()<1>(j);
}

}  // namespace macgrad::cpu
