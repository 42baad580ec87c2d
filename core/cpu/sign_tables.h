// Products with a matrix of signs by table lookup ("four Russians"). Four entries of ±1 give one of
// 16 sums ±x_0 ± x_1 ± x_2 ± x_3; all 16 are computed once for the tokens in the lanes of a vector,
// and a product with many columns of signs adds table rows instead of multiplying: one load and one
// addition per four dimensions. Derivation and picture: core/README.md. Shape letters: K length of
// the sums, C columns of signs, n tokens, G groups of four.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "macgrad/core/cpu/attention_tile.h"

namespace macgrad::cpu::signs {

using attention::kLanes;
using attention::load;
using attention::store;
using attention::unrolled;
using attention::Vector;

inline constexpr int64_t kGroup = 4;
inline constexpr int64_t kEntries = 16;
/// Tokens of a table: its rows are one vector of 512 bits, or several shorter ones.
inline constexpr int64_t kTokens = 16;
inline constexpr int kVectors = static_cast<int>(kTokens / kLanes<float>);
/// Groups whose tables are in use at a time: 16 KiB, half of a first-level cache.
inline constexpr int64_t kTableGroups = 16;

/// G: a multiple of 4, because look_up() reads four codes at a time; the last groups may be of
/// zeros.
inline int64_t groups_of(int64_t K) {
  return (K + 4 * kGroup - 1) / (4 * kGroup) * 4;
}

/// Which table row a column adds for each group: codes (C, G), in elements from the group's table.
using Code = uint16_t;

/// codes of signs (K, C) with strides row and column; beyond K they are those of zeros.
inline void encode(const float* signs, int64_t row, int64_t column, int64_t K, int64_t C,
                   Code* codes) {
  const int64_t G = groups_of(K);
  std::fill_n(codes, C * G, Code{0});
  for (int64_t k = 0; k < K; ++k)
    for (int64_t c = 0; c < C; ++c)
      if (signs[k * row + c * column] < 0)
        codes[c * G + k / kGroup] += static_cast<Code>(kTokens << (k % kGroup));
}

/// The 16 sums of four rows of kTokens values; missing rows are zeros.
[[gnu::always_inline]] inline void fill_table(const float* const (&rows)[kGroup], float* table) {
  for (int64_t v = 0; v < kTokens; v += kLanes<float>) {
    Vector<float> x[kGroup];
    for (int i = 0; i < kGroup; ++i) x[i] = rows[i] ? load(rows[i] + v) : Vector<float>{};
    const Vector<float> low[4] = {x[0] + x[1], x[1] - x[0], x[0] - x[1], -(x[0] + x[1])};
    const Vector<float> high[4] = {x[2] + x[3], x[3] - x[2], x[2] - x[3], -(x[2] + x[3])};
    unrolled<16>([&](auto e) __attribute__((always_inline)) {
      store(table + e * kTokens + v, low[e & 3] + high[e >> 2]);
    });
  }
}

/// y_c += Σ_g table rows of column c, for R columns at a time.
template <int R, bool kFirst>
[[gnu::always_inline]] inline void look_up(const float* tables, const Code* codes, int64_t stride,
                                           int64_t G, float* y, int64_t ldy) {
  Vector<float> sums[R][kVectors];
  unrolled<R>([&](auto r) __attribute__((always_inline)) {
    unrolled<kVectors>([&](auto v) __attribute__((always_inline)) {
      sums[r][v] = kFirst ? Vector<float>{} : load(y + r * ldy + v * kLanes<float>);
    });
  });
  for (int64_t g = 0; g < G; g += 4) {
    const float* table = tables + g * kEntries * kTokens;
    unrolled<R>([&](auto r) __attribute__((always_inline)) {
      uint64_t four;
      std::memcpy(&four, codes + r * stride + g, sizeof four);
      unrolled<4>([&](auto i) __attribute__((always_inline)) {
        const float* entry = table + i * kEntries * kTokens + (four >> (16 * i) & 0xffff);
        unrolled<kVectors>([&](auto v) __attribute__((always_inline)) {
          sums[r][v] += load(entry + v * kLanes<float>);
        });
      });
    });
  }
  unrolled<R>([&](auto r) __attribute__((always_inline)) {
    unrolled<kVectors>([&](auto v) __attribute__((always_inline)) {
      store(y + r * ldy + v * kLanes<float>, sums[r][v]);
    });
  });
}

/// Elements of the scratch memory of the two products below, of rows of `width`: K of
/// multiply_rows, C of multiply_to_rows.
inline int64_t scratch_size(int64_t width) {
  return kTableGroups * kEntries * kTokens + width * kTokens;
}

/// y (C, kTokens), stride ldy, = signsᵀ x of x (K, kTokens), stride ldx.
inline void multiply(const Code* codes, int64_t K, int64_t C, const float* x, int64_t ldx, float* y,
                     int64_t ldy, float* tables) {
  const int64_t G = groups_of(K);
  for (int64_t first = 0; first < G; first += kTableGroups) {
    const int64_t n = std::min(kTableGroups, G - first);
    for (int64_t g = 0; g < n; ++g) {
      const float* rows[kGroup];
      for (int64_t i = 0; i < kGroup; ++i) {
        const int64_t k = (first + g) * kGroup + i;
        rows[i] = k < K ? x + k * ldx : nullptr;
      }
      fill_table(rows, tables + g * kEntries * kTokens);
    }
    const auto columns = [&]<bool kFirst>() {
      int64_t c = 0;
      const auto tiles = [&]<int R>() {
        for (; c + R <= C; c += R)
          look_up<R, kFirst>(tables, codes + c * G + first, G, n, y + c * ldy, ldy);
      };
      if constexpr (kVectors == 1) tiles.template operator()<8>();
      tiles.template operator()<4>();
      tiles.template operator()<2>();
      tiles.template operator()<1>();
    };
    if (first == 0) {
      columns.template operator()<true>();
    } else {
      columns.template operator()<false>();
    }
  }
}

/// The rows after x, which need not exist: rows far apart are no stream that a processor
/// recognises.
inline void prefetch_rows(const float* x, int64_t ldx, int64_t width) {
  const auto address = reinterpret_cast<uintptr_t>(x);
  for (int64_t i = kTokens; i < 2 * kTokens; ++i)
    for (int64_t c = 0; c < width; c += 16)
      __builtin_prefetch(reinterpret_cast<const void*>(
          address + static_cast<uintptr_t>(i * ldx + c) * sizeof(float)));
}

/// p (C, n), stride ldp, = (x signs)ᵀ of rows x (n, K), stride ldx. p is written up to the next
/// multiple of kTokens.
inline void multiply_rows(const Code* codes, int64_t K, int64_t C, int64_t n, const float* x,
                          int64_t ldx, float* p, int64_t ldp, float* scratch) {
  float* panel = scratch + kTableGroups * kEntries * kTokens;
  for (int64_t t = 0; t < n; t += kTokens) {
    attention::rows_to_panel([&](int64_t i) { return x + (t + i) * ldx; }, std::min(kTokens, n - t),
                             K, 1.0f, panel, kTokens, kTokens);
    prefetch_rows(x + t * ldx, ldx, K);
    multiply(codes, K, C, panel, kTokens, p + t, ldp, scratch);
  }
}

/// Rows y (n, C), stride ldy, = (signsᵀ p)ᵀ of p (K, n), stride ldp, readable up to the next
/// multiple of kTokens.
inline void multiply_to_rows(const Code* codes, int64_t K, int64_t C, int64_t n, const float* p,
                             int64_t ldp, float* y, int64_t ldy, float* scratch) {
  float* panel = scratch + kTableGroups * kEntries * kTokens;
  for (int64_t t = 0; t < n; t += kTokens) {
    multiply(codes, K, C, p + t, ldp, panel, kTokens, scratch);
    attention::panel_to_rows<float>(
        panel, kTokens, nullptr, [&](int64_t i) { return y + (t + i) * ldy; },
        std::min(kTokens, n - t), C);
  }
}

}  // namespace macgrad::cpu::signs
