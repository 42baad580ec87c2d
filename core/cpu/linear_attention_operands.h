// The operands of linear attention, as blocks of rows: loading, features where the operands are
// projected, the maxima of log-features and key weights, and features shifted by them. What they
// are shifted by, and why: core/cpu/linear_attention_problem.h, which has the shape letters, too.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "macgrad/core/cpu/projection.h"
#include "macgrad/core/cpu/rmfa_problem.h"
#include "macgrad/core/kernels/linear_attention.h"
#include "macgrad/core/linear_attention_shifts.h"
#include "macgrad/core/vector_math.h"

namespace macgrad::cpu::linear {

using rmfa::Rows;

/// A block of rows with, where features are logarithms, log φ (n, M) before any shift; x is then
/// φ after it.
template <class T>
struct Block : rmfa::Block<T> {
  const T* logs = nullptr;
  int64_t ldlogs = 0;
};

inline constexpr double kInfinity = std::numeric_limits<double>::infinity();
/// Rows of a block that is not causal: products of 256 rows are 3 to 6 % faster than those of 128,
/// and features of 128 columns still stay in a second-level cache of 1 MiB.
inline constexpr int64_t kFullBlock = 256;

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
  T *x, *query_logs, *key_logs;          // (n, d), (n, M), (n, M): of projected rows
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

  /// d and logs: columns of projected rows and of their log-features, 0 where there are none.
  Workspace(Arena& arena, int64_t n, int64_t C, int64_t dv, bool causal, int64_t blocks, int64_t d,
            int64_t logs) {
    const auto many = [&](int64_t count) { return arena.take<T>(count); };
    const auto doubles = [&](int64_t count) { return arena.take<double>(count); };
    query = many(n * C), key = many(n * C), dphi = many(n * C);
    inner_query = causal ? many(n * C) : query;
    inner_key = causal ? many(n * C) : key;
    inner_dphi = causal ? many(n * C) : dphi;
    x = many(n * d), query_logs = many(n * logs);
    key_logs = causal ? many(n * logs) : query_logs;
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
  explicit Operands(const LinearAttentionOperands& in, const Projection<T>& projected = {})
      : args(in.args),
        projection(projected),
        causal(in.causal),
        log(args.log_features),
        weighted(in.log_weight->defined()),
        B(in.phi_q->size(0)),
        H(in.phi_q->size(1)),
        Tn(in.phi_q->size(2)),
        S(in.phi_k->size(2)),
        M(projection ? projection.columns() : in.phi_q->size(3)),
        dv(in.v->size(3)),
        C(M + (log && args.constant > 0.0)),
        block(causal ? rmfa::kCausalBlock : std::clamp<int64_t>(std::max(Tn, S), 1, kFullBlock)),
        map(C, {}, {}, C > 0 ? 1.0 : 0.0, log ? 0.0 : args.constant),
        log_constant_(log && args.constant > 0.0 ? std::log(args.constant) : 0.0),
        q_(in.phi_q),
        k_(in.phi_k),
        v_(in.v),
        log_weight_(weighted ? in.log_weight->data<double>() : nullptr),
        key_valid_(in.key_valid->defined() ? in.key_valid->data<bool>() : nullptr),
        query_valid_(in.query_valid->defined() ? in.query_valid->data<bool>() : nullptr) {}

  bool query_visible(int64_t b, int64_t t) const {
    return !query_valid_ || query_valid_[b * Tn + t];
  }
  /// Keys before the block of queries that begins at t; its own block ends at keys_before(t + n).
  int64_t keys_before(int64_t t) const { return std::clamp<int64_t>(t + S - Tn, 0, S); }
  int64_t blocks() const { return causal ? (Tn + block - 1) / block : 0; }

  /// Log-features of row i of a block of queries and of keys, that of κ included.
  double query_log(const Block<T>& q, int64_t i, int64_t m) const {
    return m < M ? static_cast<double>(q.logs[i * q.ldlogs + m]) : log_constant_;
  }
  double key_log(const Block<T>& k, int64_t j, int64_t m) const {
    return m < M ? static_cast<double>(k.logs[j * k.ldlogs + m]) : 0.0;
  }

  /// Fills l (-inf: hidden), u (1 or 0), v and the features, log φ or x, of a block of keys.
  /// Returns how many are visible.
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
    load_features(k_, b, h, s, visible == n, keep, ws.x, ws.key, ws.key_logs, out);
    return visible;
  }

  /// Fills the features, log φ or x, of a block of queries. Returns how many are valid.
  int64_t load_queries(int64_t b, int64_t h, int64_t t, int64_t n, const Workspace<T>& ws,
                       Block<T>& out) const {
    int64_t valid = 0;
    for (int64_t i = 0; i < n; ++i) valid += query_visible(b, t + i);
    out.n = n;
    out.u = ws.gu;
    const auto keep = [&](int64_t i) { return query_visible(b, t + i); };
    load_features(q_, b, h, t, valid == n, keep, ws.x, ws.query, ws.query_logs, out);
    return valid;
  }

  /// largest[m] = max(largest[m], log φ_k,jm + l_j) over the visible keys of a block; l null: 0.
  void key_maxima(const Block<T>& k, const Workspace<T>& ws, const double* l,
                  double* largest) const {
    if (!l) std::fill_n(ws.row, C, static_cast<T>(kLowest));
    for (int64_t j = 0; j < k.n; ++j) {
      if (ws.u[j] == T(0)) continue;
      const T* a = k.logs + j * k.ldlogs;
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
  void key_features(const Block<T>& k, const Workspace<T>& ws, const double* l, const double* c,
                    T* x) const {
    with_shift(c, ws.narrow, [&](const auto* shift) {
      using U = std::remove_cvref_t<decltype(*shift)>;
      for (int64_t j = 0; j < k.n; ++j) {
        if (ws.u[j] == T(0))
          std::fill_n(x + j * C, C, T(0));
        else
          shifted<U>(k.logs + j * k.ldlogs, 0.0, l ? static_cast<U>(l[j]) : U(0), U(-1), shift,
                     x + j * C);
      }
    });
  }
  /// x (n, C) = exp(log φ_q,im + c_m + offset_i), 0 at invalid queries of the block from t on.
  void query_features(int64_t b, int64_t t, const Block<T>& q, const Workspace<T>& ws,
                      const double* c, const double* offset, T* x) const {
    with_shift(c, ws.narrow, [&](const auto* shift) {
      using U = std::remove_cvref_t<decltype(*shift)>;
      for (int64_t i = 0; i < q.n; ++i) {
        if (!query_visible(b, t + i) || offset[i] == -kInfinity)
          std::fill_n(x + i * C, C, T(0));
        else
          shifted<U>(q.logs + i * q.ldlogs, log_constant_, static_cast<U>(offset[i]), U(1), shift,
                     x + i * C);
      }
    });
  }
  /// largest (n) = max_m log φ_q,im + c_m of the valid queries.
  void query_maxima(int64_t b, int64_t t, const Block<T>& q, const Workspace<T>& ws,
                    const double* c, double* largest) const {
    with_shift(c, ws.narrow, [&](const auto* shift) {
      using U = std::remove_cvref_t<decltype(*shift)>;
      for (int64_t i = 0; i < q.n; ++i) {
        if (!query_visible(b, t + i)) continue;
        const T* log_q = q.logs + i * q.ldlogs;
        U top = C > M ? static_cast<U>(log_constant_) + shift[M] : static_cast<U>(kLowest);
#pragma omp simd reduction(max : top)
        for (int64_t m = 0; m < M; ++m) top = std::max(top, static_cast<U>(log_q[m]) + shift[m]);
        largest[i] = static_cast<double>(top);
      }
    });
  }

  const LinearAttentionArgs args;
  const Projection<T> projection;
  const bool causal, log, weighted;
  const int64_t B, H, Tn, S, M, dv, C, block;
  const rmfa::FeatureMap<T> map;

 private:
  /// Fills the features of out.n rows: of log-features, logs, x being where their φ will be.
  /// Dropped rows, projected from zeros, meet zeros in v and u.
  template <class Keep>
  void load_features(const Rows<const T>& rows, int64_t b, int64_t h, int64_t t, bool all,
                     Keep keep, T* row_buffer, T* buffer, T* log_buffer, Block<T>& out) const {
    out.x = buffer;
    out.ldx = std::max<int64_t>(C, 1);
    if (!projection) {
      out.logs = rows.at(b, h, t);
      out.ldlogs = rows.token;
      if (!log) rmfa::load_rows(rows, b, h, t, out.n, all, keep, buffer, out.x, out.ldx);
      return;
    }
    const T* x = nullptr;
    int64_t ldx = 1;
    rmfa::load_rows(rows, b, h, t, out.n, all, keep, row_buffer, x, ldx);
    out.logs = log_buffer;
    out.ldlogs = M;
    projection.features(h, out.n, x, ldx, log ? log_buffer : buffer);
  }
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
      x[m] = std::exp(static_cast<T>(static_cast<U>(a[m]) + (offset + sign * c[m])));
    if (C > M) x[M] = std::exp(static_cast<T>(static_cast<U>(last) + (offset + sign * c[M])));
  }

  double log_constant_;
  Rows<const T> q_, k_, v_;
  const double* log_weight_;
  const bool *key_valid_, *query_valid_;
};

}  // namespace macgrad::cpu::linear
