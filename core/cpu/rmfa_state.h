// The running state of RMFA and its four uses. With phī = [phi, sqrt(linear) x, c_0] and v̄ = [v, u]
// a state is Σ_t phī_tᵀ v̄_t over the tokens seen so far. The same sum serves both directions:
// forward it runs over keys (values v, u = 1), backward over queries (values dO/den, u = the
// gradient of the denominator), nn/README.md.
//
// The constant never enters a GEMM: its row is the plain sum of the values and of u. The column of
// u is kept apart too, as sums in float64: a GEMM of dv + 1 columns would waste a vector of lanes.
// Shape letters: n tokens of a block, R = M (+ d when there is a linear block) rows, dv values.
#pragma once

#include <cstddef>
#include <cstdint>

#include "macgrad/core/cpu/arena.h"
#include "macgrad/core/cpu/rmfa_features.h"
#include "macgrad/core/cpu/tile_gemm.h"

namespace macgrad::cpu::rmfa {

template <class T>
struct State {
  T* kv;         // (R, dv), without the factor `linear`
  double* fsum;  // (R): the column of u
  double* vsum;  // (dv): sum of the values
  double* usum;  // (1): sum of u; forward, the number of visible keys
  int64_t rows;
  int64_t dv;

  State(Arena& arena, int64_t r, int64_t v)
      : kv(arena.take<T>(r * v)),
        fsum(arena.take<double>(r)),
        vsum(arena.take<double>(v)),
        usum(arena.take<double>(1)),
        rows(r),
        dv(v) {}

  void reset() const {
    for (int64_t i = 0; i < rows * dv; ++i) kv[i] = T(0);
    for (int64_t i = 0; i < rows; ++i) fsum[i] = 0.0;
    for (int64_t i = 0; i < dv; ++i) vsum[i] = 0.0;
    *usum = 0.0;
  }
  void add(const State& other) const {
    for (int64_t i = 0; i < rows * dv; ++i) kv[i] += other.kv[i];
    for (int64_t i = 0; i < rows; ++i) fsum[i] += other.fsum[i];
    for (int64_t i = 0; i < dv; ++i) vsum[i] += other.vsum[i];
    *usum += *other.usum;
  }
};

/// One block of tokens on either side. Rows of invalid tokens hold zeros in x, v and u.
template <class T>
struct Block {
  int64_t n = 0;
  const T* x = nullptr;  // (n, d), stride ldx
  int64_t ldx = 0;
  const T* v = nullptr;  // (n, dv), stride ldv
  int64_t ldv = 0;
  T* u = nullptr;    // (n)
  T* p = nullptr;    // (P, n), stride ld
  T* phi = nullptr;  // (M, n), stride ld
  int64_t ld = 0;
};

/// state += phīᵀ v̄ of the block. `row` holds max(d, dv) elements.
template <class T>
void accumulate(const FeatureMap<T>& map, const Block<T>& block, const State<T>& state, T* row) {
  const int64_t n = block.n, d = map.d, dv = state.dv;
  if (n == 0) return;
  const T* u = block.u;
  if (map.M > 0) {
    block_gemm(false, map.M, dv, n, T(1), block.phi, block.ld, block.v, block.ldv, T(1), state.kv,
               dv);
    for (int64_t m = 0; m < map.M; ++m) {
      const T* phi = block.phi + m * block.ld;
      T sum = 0;
#pragma omp simd reduction(+ : sum)
      for (int64_t t = 0; t < n; ++t) sum += phi[t] * u[t];
      state.fsum[m] += sum;
    }
  }
  // Sums down the columns of a block stay in T: at most 256 terms; float64 carries them from block
  // to block.
  auto add_columns = [&](const T* values, int64_t stride, int64_t columns, const T* factor,
                         double* total) {
    for (int64_t j = 0; j < columns; ++j) row[j] = T(0);
    for (int64_t t = 0; t < n; ++t) {
      const T f = factor ? factor[t] : T(1);
      const T* x = values + t * stride;
#pragma omp simd
      for (int64_t j = 0; j < columns; ++j) row[j] += f * x[j];
    }
    for (int64_t j = 0; j < columns; ++j) total[j] += row[j];
  };
  if (map.has_linear()) {
    block_gemm(true, d, dv, n, T(1), block.x, block.ldx, block.v, block.ldv, T(1),
               state.kv + map.M * dv, dv);
    add_columns(block.x, block.ldx, d, u, state.fsum + map.M);
  }
  add_columns(block.v, block.ldv, dv, nullptr, state.vsum);
  T sum = 0;
  for (int64_t t = 0; t < n; ++t) sum += u[t];
  *state.usum += sum;
}

/// num (n, dv) = phī·state, and the column of u into den (n) unless it is null. Forward this is the
/// numerator and denominator of a block of queries; backward the gradient of a block of values.
template <class T>
void read(const FeatureMap<T>& map, const Block<T>& block, const State<T>& state, T* num,
          int64_t ldnum, T* den, T* row) {
  const int64_t n = block.n, d = map.d, dv = state.dv;
  if (n == 0) return;
  // Without other features the first product would only write zeros for the second to add to.
  const bool only_linear = map.M == 0 && map.has_linear();
  if (!only_linear)
    block_gemm(true, n, dv, map.M, T(1), block.phi, block.ld, state.kv, dv, T(0), num, ldnum);
  if (map.has_linear()) {
    block_gemm(false, n, dv, d, map.linear, block.x, block.ldx, state.kv + map.M * dv, dv,
               only_linear ? T(0) : T(1), num, ldnum);
  }
  if (map.constant != T(0)) {
    for (int64_t j = 0; j < dv; ++j) row[j] = map.constant * static_cast<T>(state.vsum[j]);
    for (int64_t t = 0; t < n; ++t) {
      T* y = num + t * ldnum;
#pragma omp simd
      for (int64_t j = 0; j < dv; ++j) y[j] += row[j];
    }
  }
  if (!den) return;
  const T start = map.constant * static_cast<T>(*state.usum);
  for (int64_t t = 0; t < n; ++t) den[t] = start;
  for (int64_t m = 0; m < map.M; ++m) {
    const T f = static_cast<T>(state.fsum[m]);
    const T* phi = block.phi + m * block.ld;
#pragma omp simd
    for (int64_t t = 0; t < n; ++t) den[t] += f * phi[t];
  }
  if (!map.has_linear()) return;
  for (int64_t j = 0; j < d; ++j) row[j] = map.linear * static_cast<T>(state.fsum[map.M + j]);
  for (int64_t t = 0; t < n; ++t) {
    const T* x = block.x + t * block.ldx;
    T sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < d; ++j) sum += row[j] * x[j];
    den[t] += sum;
  }
}

/// dphi (M, n) = state·v̄ᵀ: gradient of the features of a block whose cotangent is (v, u). `panel`
/// holds (dv, ld).
template <class T>
void pull_features(const FeatureMap<T>& map, const Block<T>& block, const State<T>& state, T* dphi,
                   T* panel) {
  if (map.M == 0 || block.n == 0) return;
  const int64_t columns = attention::whole_vectors<T>(block.n);
  attention::rows_to_panel([&](int64_t i) { return block.v + i * block.ldv; }, block.n, state.dv,
                           T(1), panel, block.ld, columns);
  block_gemm(false, map.M, columns, state.dv, T(1), state.kv, state.dv, panel, block.ld, T(0), dphi,
             block.ld);
  for (int64_t m = 0; m < map.M; ++m) {
    const T f = static_cast<T>(state.fsum[m]);
    T* out = dphi + m * block.ld;
#pragma omp simd
    for (int64_t t = 0; t < block.n; ++t) out[t] += f * block.u[t];
  }
}

/// dx (n, d) from dp (P, n), the gradient of the projections, plus the linear block's share.
template <class T>
void pull_inputs(const FeatureMap<T>& map, const Block<T>& block, const State<T>& state,
                 const T* dp, T* dx, int64_t lddx, T* row) {
  const int64_t n = block.n, d = map.d;
  if (n == 0) return;
  const bool only_linear = map.P == 0 && map.has_linear();
  if (!only_linear) project_back(map, n, dp, block.ld, dx, lddx);
  if (!map.has_linear()) return;
  gemm(false, true, n, d, state.dv, map.linear, block.v, block.ldv, state.kv + map.M * state.dv,
       state.dv, only_linear ? T(0) : T(1), dx, lddx);
  for (int64_t j = 0; j < d; ++j) row[j] = map.linear * static_cast<T>(state.fsum[map.M + j]);
  for (int64_t t = 0; t < n; ++t) {
    const T u = block.u[t];
    T* y = dx + t * lddx;
#pragma omp simd
    for (int64_t j = 0; j < d; ++j) y[j] += u * row[j];
  }
}

}  // namespace macgrad::cpu::rmfa
