// Random Maclaurin features of one block of tokens: phi(x)_m = w_m Π_l (x Ω_l)_m, and their
// gradient. Projections and features are stored feature by token (a row is one feature over the
// tokens of the block), so that products run along contiguous tokens whatever the degrees are.
//
// Level l holds the l-th factor of the first levels[l] features (descending); the columns of Ω are
// level after level. The linear block sqrt(linear)·x and the constant are no rows here: they are x
// itself and two sums (core/cpu/rmfa_state.h).
// Shape letters: n tokens of a block, d head dimension, M features, P projections, ld row stride.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <type_traits>

#include "macgrad/core/cpu/gemm.h"
#include "macgrad/core/cpu/sign_tables.h"

namespace macgrad::cpu::rmfa {

template <class T>
struct FeatureMap {
  int64_t d = 0;
  int64_t M = 0;
  int64_t P = 0;
  int64_t width = 0;  // of omega, at least P
  std::span<const int64_t> levels;
  std::span<const int64_t> first_row;  // of each level
  const T* omega = nullptr;            // (d, width)
  const T* weight = nullptr;           // (M)
  T linear = 0;
  T constant = 0;
  /// Of an Ω of ±1, for float: codes of its columns and of its rows (core/cpu/sign_tables.h), and
  /// the scratch memory of products with them.
  const signs::Code* column_codes = nullptr;
  const signs::Code* row_codes = nullptr;
  T* sign_scratch = nullptr;

  /// Refers to both lists.
  FeatureMap(int64_t dim, std::span<const int64_t> level_sizes, std::span<const int64_t> first_rows,
             double linear_weight, double constant_weight)
      : d(dim),
        M(level_sizes.empty() ? 0 : level_sizes[0]),
        P(level_sizes.empty() ? 0 : first_rows.back() + level_sizes.back()),
        levels(level_sizes),
        first_row(first_rows),
        linear(static_cast<T>(linear_weight)),
        constant(static_cast<T>(constant_weight)) {}

  int64_t max_degree() const { return static_cast<int64_t>(levels.size()); }
  bool has_linear() const { return linear > T(0); }
  /// Rows of a state: the features, then the dimensions of the linear block.
  int64_t rows() const { return M + (has_linear() ? d : 0); }
};

/// Calls f(m, degree) for every feature in order; degrees descend, so one walk finds them all.
template <class T, class F>
void for_each_feature(const FeatureMap<T>& map, F&& f) {
  int64_t degree = map.max_degree();
  for (int64_t m = 0; m < map.M; ++m) {
    while (degree > 0 && map.levels[static_cast<size_t>(degree - 1)] <= m) --degree;
    f(m, degree);
  }
}

/// dx (n, d) = (Ω dp)ᵀ of dp (P, n).
template <class T>
void project_back(const FeatureMap<T>& map, int64_t n, const T* dp, int64_t ld, T* dx,
                  int64_t lddx) {
  if constexpr (std::is_same_v<T, float>) {
    if (map.row_codes)
      return signs::multiply_to_rows(map.row_codes, map.P, map.d, n, dp, ld, dx, lddx,
                                     map.sign_scratch);
  }
  gemm(true, true, n, map.d, map.P, T(1), dp, ld, map.omega, map.width, T(0), dx, lddx);
}

/// p (P, n) = (x Ω)ᵀ, perhaps written up to the next multiple of signs::kTokens.
template <class T>
void project(const FeatureMap<T>& map, int64_t n, const T* x, int64_t ldx, T* p, int64_t ld) {
  if constexpr (std::is_same_v<T, float>) {
    if (map.column_codes)
      return signs::multiply_rows(map.column_codes, map.d, map.P, n, x, ldx, p, ld,
                                  map.sign_scratch);
  }
  gemm(true, true, map.P, n, map.d, T(1), map.omega, map.width, x, ldx, T(0), p, ld);
}

/// phi (M, n) from p (P, n); phi may be the first M rows of p when p is not needed again.
template <class T>
void multiply(const FeatureMap<T>& map, int64_t n, const T* p, T* phi, int64_t ld) {
  for_each_feature(map, [&](int64_t m, int64_t degree) {
    const T w = map.weight[m];
    const T* p0 = p + m * ld;
    T* out = phi + m * ld;
    if (degree == 1) {
#pragma omp simd
      for (int64_t t = 0; t < n; ++t) out[t] = w * p0[t];
      return;
    }
    const T* p1 = p + (map.first_row[1] + m) * ld;
#pragma omp simd
    for (int64_t t = 0; t < n; ++t) out[t] = w * p0[t] * p1[t];
    for (int64_t l = 2; l < degree; ++l) {
      const T* pl = p + (map.first_row[static_cast<size_t>(l)] + m) * ld;
#pragma omp simd
      for (int64_t t = 0; t < n; ++t) out[t] *= pl[t];
    }
  });
}

/// dp (P, n), the gradient of the projections: dp_l = dphi·w·Π_{j≠l} p_j by prefix and suffix
/// products, never by division. `suffix` holds one row.
template <class T>
void multiply_backward(const FeatureMap<T>& map, int64_t n, const T* dphi, const T* p, T* dp,
                       T* suffix, int64_t ld) {
  for_each_feature(map, [&](int64_t m, int64_t degree) {
    const T w = map.weight[m];
    const T* g = dphi + m * ld;
    T* d0 = dp + m * ld;
    if (degree == 2) {
      const int64_t second = (map.first_row[1] + m) * ld;
      const T *p0 = p + m * ld, *p1 = p + second;
      T* d1 = dp + second;
#pragma omp simd
      for (int64_t t = 0; t < n; ++t) {
        const T wg = w * g[t];
        d0[t] = wg * p1[t];
        d1[t] = wg * p0[t];
      }
      return;
    }
#pragma omp simd
    for (int64_t t = 0; t < n; ++t) d0[t] = w * g[t];
    if (degree == 1) return;
    auto row = [&](int64_t l) { return (map.first_row[static_cast<size_t>(l)] + m) * ld; };
    for (int64_t l = 1; l < degree; ++l) {
      const T *before = dp + row(l - 1), *pl = p + row(l - 1);
      T* here = dp + row(l);
#pragma omp simd
      for (int64_t t = 0; t < n; ++t) here[t] = before[t] * pl[t];
    }
    std::fill_n(suffix, n, T(1));
    for (int64_t l = degree - 1; l >= 0; --l) {
      const T* pl = p + row(l);
      T* here = dp + row(l);
#pragma omp simd
      for (int64_t t = 0; t < n; ++t) {
        here[t] *= suffix[t];
        suffix[t] *= pl[t];
      }
    }
  });
}

}  // namespace macgrad::cpu::rmfa
