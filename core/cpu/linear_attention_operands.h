// The operands of linear attention on given features, as blocks of rows: loading, the maxima of
// log-features and key weights, and features shifted by them. What they are shifted by, and why:
// core/cpu/linear_attention_problem.h, which has the shape letters, too.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "macgrad/core/cpu/rmfa_problem.h"
#include "macgrad/core/linear_attention_shifts.h"
#include "macgrad/core/vector_math.h"

namespace macgrad::cpu::linear {

using rmfa::Block;
using rmfa::Rows;

inline constexpr double kInfinity = std::numeric_limits<double>::infinity();
using macgrad::linear::growth;
using macgrad::linear::kFloored;
using macgrad::linear::kLowest;
using macgrad::linear::kNone;
using macgrad::linear::kRecomputed;
using macgrad::linear::kSmallest;
using macgrad::linear::kUsed;

/// Buffers of one thread.
template <class T>
struct Workspace {
  T *query, *inner_query, *key,
      *inner_key;                        // (n, C) features, shifted as the state's, as a block's
  T *v, *weighted, *g, *gu;              // (n, dv), (n, dv), (n, dv), (n)
  T *dphi, *inner_dphi;                  // (n, C)
  T *u, *w, *keep, *den, *row, *narrow;  // (n) each, row max(C, dv)
  T *scores, *weights, *cotangents;      // (n, n)
  double *l, *top, *shift, *total, *gh;  // (n)
  double *c, *c_next, *inner_c;          // (C)
  double *history, *levels;              // (blocks + 1, C), (blocks + 1): c and level by block
  bool* again;                           // (n): whether the row was summed again
  double level = -kInfinity;             // largest ℓ of plain features so far
  double floored = 0.0;                  // Σ of what floors pull on their weights
  int64_t rows = 0, unsafe = 0, recomputed = 0;
  double smallest = kInfinity;

  Workspace(Arena& arena, int64_t n, int64_t C, int64_t dv, bool causal, int64_t blocks) {
    const auto many = [&](int64_t count) { return arena.take<T>(count); };
    const auto doubles = [&](int64_t count) { return arena.take<double>(count); };
    query = many(n * C), key = many(n * C), dphi = many(n * C);
    inner_query = causal ? many(n * C) : query;
    inner_key = causal ? many(n * C) : key;
    inner_dphi = causal ? many(n * C) : dphi;
    v = many(n * dv), weighted = many(n * dv), g = many(n * dv);
    gu = many(n), u = many(n), w = many(n), keep = many(n), den = many(n);
    row = many(std::max(C, dv)), narrow = many(C);
    scores = many(causal ? n * n : 0), weights = many(causal ? n * n : 0);
    cotangents = many(causal ? n * n : 0);
    l = doubles(n), top = doubles(n), shift = doubles(n), total = doubles(n), gh = doubles(n);
    c = doubles(C), c_next = doubles(C), inner_c = doubles(C);
    again = arena.take<bool>(n);
    history = doubles((blocks + 1) * C), levels = doubles(blocks + 1);
  }
};

/// The operands of one call.
template <class T>
class Operands {
 public:
  Operands(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& log_weight,
           const Tensor& key_valid, const Tensor& query_valid, const LinearAttentionArgs& arguments,
           bool is_causal)
      : args(arguments),
        causal(is_causal),
        log(arguments.log_features),
        weighted(log_weight.defined()),
        B(q.size(0)),
        H(q.size(1)),
        Tn(q.size(2)),
        S(k.size(2)),
        M(q.size(3)),
        dv(v.size(3)),
        C(M + (log && arguments.constant > 0.0)),
        block(is_causal ? rmfa::kCausalBlock : rmfa::kFullBlock),
        map(C, {}, C > 0 ? 1.0 : 0.0, log ? 0.0 : arguments.constant),
        log_constant_(log && arguments.constant > 0.0 ? std::log(arguments.constant) : 0.0),
        q_(q),
        k_(k),
        v_(v),
        log_weight_(weighted ? log_weight.data<double>() : nullptr),
        key_valid_(key_valid.defined() ? key_valid.data<bool>() : nullptr),
        query_valid_(query_valid.defined() ? query_valid.data<bool>() : nullptr) {}

  bool query_visible(int64_t b, int64_t t) const {
    return !query_valid_ || query_valid_[b * Tn + t];
  }
  /// Keys before the block of queries that begins at t; its own block ends at keys_before(t + n).
  int64_t keys_before(int64_t t) const { return std::clamp<int64_t>(t + S - Tn, 0, S); }
  int64_t blocks() const { return causal ? (Tn + block - 1) / block : 0; }

  /// Log-features of a query and of a key, that of κ included.
  double query_log(int64_t b, int64_t h, int64_t t, int64_t m) const {
    return m < M ? static_cast<double>(q_.at(b, h, t)[m]) : log_constant_;
  }
  double key_log(int64_t b, int64_t h, int64_t s, int64_t m) const {
    return m < M ? static_cast<double>(k_.at(b, h, s)[m]) : 0.0;
  }

  /// Fills l (-inf: hidden), u (1 or 0), v and, of plain features, x of a block of keys. Returns
  /// how many are visible.
  int64_t load_keys(int64_t b, int64_t h, int64_t s, int64_t n, const Workspace<T>& ws,
                    Block<T>& out) const {
    int64_t visible = 0;
    for (int64_t j = 0; j < n; ++j) {
      const bool valid = !key_valid_ || key_valid_[b * S + s + j];
      const double l = weighted && valid ? log_weight_[(b * H + h) * S + s + j] : 0.0;
      ws.l[j] = valid ? l : -kInfinity;
      ws.u[j] = ws.l[j] == -kInfinity ? T(0) : T(1);
      visible += ws.l[j] != -kInfinity;
    }
    out.n = n;
    out.u = ws.u;
    const auto keep = [&](int64_t j) { return ws.l[j] != -kInfinity; };
    rmfa::load_rows(v_, b, h, s, n, visible == n, keep, ws.v, out.v, out.ldv);
    out.x = ws.key;
    out.ldx = std::max<int64_t>(C, 1);
    if (!log) rmfa::load_rows(k_, b, h, s, n, visible == n, keep, ws.key, out.x, out.ldx);
    return visible;
  }

  /// Fills x of a block of queries of plain features; of log-features it will be ws.query.
  int64_t load_queries(int64_t b, int64_t h, int64_t t, int64_t n, const Workspace<T>& ws,
                       Block<T>& out) const {
    int64_t valid = 0;
    for (int64_t i = 0; i < n; ++i) valid += query_visible(b, t + i);
    out.n = n;
    out.u = ws.gu;
    out.x = ws.query;
    out.ldx = std::max<int64_t>(C, 1);
    const auto keep = [&](int64_t i) { return query_visible(b, t + i); };
    if (!log) rmfa::load_rows(q_, b, h, t, n, valid == n, keep, ws.query, out.x, out.ldx);
    return valid;
  }

  /// largest[m] = max(largest[m], log φ_k,jm + l_j) over the visible keys of a block; l null: 0.
  void key_maxima(int64_t b, int64_t h, int64_t s, int64_t n, const Workspace<T>& ws,
                  const double* l, double* largest) const {
    if (!l) std::fill_n(ws.row, C, static_cast<T>(kLowest));
    for (int64_t j = 0; j < n; ++j) {
      if (ws.u[j] == T(0)) continue;
      const T* a = k_.at(b, h, s + j);
      if (l) {
#pragma omp simd
        for (int64_t m = 0; m < M; ++m)
          largest[m] = std::max(largest[m], static_cast<double>(a[m]) + l[j]);
        if (C > M) largest[M] = std::max(largest[M], l[j]);
      } else {
#pragma omp simd
        for (int64_t m = 0; m < M; ++m) ws.row[m] = std::max(ws.row[m], a[m]);
        if (C > M) ws.row[M] = T(0);
      }
    }
    if (!l)
      for (int64_t m = 0; m < C; ++m)
        largest[m] = std::max(largest[m], static_cast<double>(ws.row[m]));
  }

  /// x (n, C) = exp(log φ_k,jm + l_j - c_m), 0 at hidden keys; l null: 0.
  void key_features(int64_t b, int64_t h, int64_t s, int64_t n, const Workspace<T>& ws,
                    const double* l, const double* c, T* x) const {
    with_shift(c, ws.narrow, [&](const auto* shift) {
      using U = std::remove_cvref_t<decltype(*shift)>;
      for (int64_t j = 0; j < n; ++j) {
        if (ws.u[j] == T(0))
          std::fill_n(x + j * C, C, T(0));
        else
          shifted<U>(k_.at(b, h, s + j), 0.0, l ? static_cast<U>(l[j]) : U(0), U(-1), shift,
                     x + j * C);
      }
    });
  }
  /// x (n, C) = exp(log φ_q,im + c_m + offset_i), 0 at invalid queries.
  void query_features(int64_t b, int64_t h, int64_t t, int64_t n, const Workspace<T>& ws,
                      const double* c, const double* offset, T* x) const {
    with_shift(c, ws.narrow, [&](const auto* shift) {
      using U = std::remove_cvref_t<decltype(*shift)>;
      for (int64_t i = 0; i < n; ++i) {
        if (!query_visible(b, t + i) || offset[i] == -kInfinity)
          std::fill_n(x + i * C, C, T(0));
        else
          shifted<U>(q_.at(b, h, t + i), log_constant_, static_cast<U>(offset[i]), U(1), shift,
                     x + i * C);
      }
    });
  }
  /// largest (n) = max_m log φ_q,im + c_m of the valid queries.
  void query_maxima(int64_t b, int64_t h, int64_t t, int64_t n, const Workspace<T>& ws,
                    const double* c, double* largest) const {
    with_shift(c, ws.narrow, [&](const auto* shift) {
      using U = std::remove_cvref_t<decltype(*shift)>;
      for (int64_t i = 0; i < n; ++i) {
        if (!query_visible(b, t + i)) continue;
        const T* q = q_.at(b, h, t + i);
        U top = C > M ? static_cast<U>(log_constant_) + shift[M] : static_cast<U>(kLowest);
#pragma omp simd reduction(max : top)
        for (int64_t m = 0; m < M; ++m) top = std::max(top, static_cast<U>(q[m]) + shift[m]);
        largest[i] = static_cast<double>(top);
      }
    });
  }

  const LinearAttentionArgs args;
  const bool causal, log, weighted;
  const int64_t B, H, Tn, S, M, dv, C, block;
  const rmfa::FeatureMap<T> map;

 private:
  /// Calls f with c, in T where that is exact: without key weights c is one of the features.
  template <class F>
  void with_shift(const double* c, T* narrow, F&& f) const {
    if (weighted) {
      f(c);
      return;
    }
    for (int64_t m = 0; m < C; ++m) narrow[m] = static_cast<T>(c[m]);
    f(static_cast<const T*>(narrow));
  }
  /// x (C) = exp(a_m + offset + sign·c_m), with `last` as the column of κ.
  template <class U>
  void shifted(const T* a, double last, U offset, U sign, const U* c, T* x) const {
#pragma omp simd
    for (int64_t m = 0; m < M; ++m)
      x[m] = static_cast<T>(static_cast<U>(a[m]) + (offset + sign * c[m]));
    if (C > M) x[M] = static_cast<T>(static_cast<U>(last) + (offset + sign * c[M]));
#pragma omp simd
    for (int64_t m = 0; m < C; ++m) x[m] = std::exp(x[m]);
  }

  double log_constant_;
  Rows<const T> q_, k_, v_;
  const double* log_weight_;
  const bool *key_valid_, *query_valid_;
};

}  // namespace macgrad::cpu::linear
