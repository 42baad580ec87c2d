// What both directions of linear attention on given features share: operands as blocks of rows,
// the shifts that keep log-features and key weights in range, and the workspace of a thread. Sums
// are the state of the RMFA kernel (core/cpu/rmfa_state.h), whose linear block takes features as
// they stand in memory.
//
// With a_jm = log φ_k,jm + ℓ_j and b_im = log φ_q,im the state's row m holds sums of
// exp(a_jm - c_m), c_m the largest a_jm so far, and is rescaled when c_m grows; a query reads it
// with exp(b_im + c_m - s_i). Plain features have one number for all rows, the largest ℓ_j so far.
// Inside a causal block a row must not be shifted by keys that it does not see: features are
// shifted by the block's largest log φ_k and the score of (i, j) is multiplied by
// exp(ℓ_j - max_{j' <= i} ℓ_j'). A row whose shifted denominator is below kSmallest has lost its
// terms to that shift and is summed again in log space.
// Derivation: nn/README.md, linear attention. Shape letters: B batch, H heads, T queries, S keys,
// M features, C columns (M, and one more for κ with log-features), dv values, n rows of a block.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>
#include <vector>

#include "macgrad/core/cpu/rmfa_problem.h"
#include "macgrad/core/vector_math.h"

namespace macgrad::cpu::linear {

using rmfa::Block;
using rmfa::Rows;
using rmfa::State;

inline constexpr double kInfinity = std::numeric_limits<double>::infinity();
/// 2^-60: products of factors of at most 1 that matter to a larger sum are normal float32 numbers.
inline constexpr double kSmallest = 0x1p-60;

/// The third of the numbers that the forward kernel leaves of a query: it has no denominator, one,
/// a floored one, or one that was summed again in log space.
inline constexpr double kNone = 0.0, kUsed = 1.0, kFloored = 2.0, kRecomputed = 3.0;

/// Below every log-feature: c of a feature that no key has. Finite, so that differences are
/// numbers.
inline constexpr double kLowest = -1e30;

/// exp(before - after), and 0 where there was nothing before.
inline double growth(double before, double after) {
  return before == -kInfinity ? 0.0 : std::exp(before - after);
}

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
class Problem {
 public:
  Problem(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& log_weight,
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

  /// Forgets all keys.
  void reset(Workspace<T>& ws, const State<T>& state) const {
    state.reset();
    std::fill_n(ws.c, C, kLowest);
    ws.level = weighted ? -kInfinity : 0.0;
  }

  /// state += a block of keys, in the units of the shift after it, which becomes the workspace's.
  void add_block(int64_t b, int64_t h, int64_t s, const Block<T>& keys, Workspace<T>& ws,
                 const State<T>& state) const {
    Block<T> added = keys;
    if (log) {
      std::copy_n(ws.c, C, ws.c_next);
      key_maxima(b, h, s, keys.n, ws, weighted ? ws.l : nullptr, ws.c_next);
      scale(state, [&](int64_t m) { return growth(ws.c[m], ws.c_next[m]); });
      std::swap(ws.c, ws.c_next);
      key_features(b, h, s, keys.n, ws, weighted ? ws.l : nullptr, ws.c, ws.key);
    } else if (weighted) {
      const double before = ws.level;
      for (int64_t j = 0; j < keys.n; ++j) ws.level = std::max(ws.level, ws.l[j]);
      const double factor = growth(before, ws.level);
      scale(state, [&](int64_t) { return factor; });
      key_weights(keys, ws, added);
    }
    rmfa::accumulate(map, added, state, ws.row);
  }

  /// The values and u of plain keys times exp(ℓ_j - level), in ws.weighted and ws.w.
  void key_weights(const Block<T>& keys, const Workspace<T>& ws, Block<T>& out) const {
    for (int64_t j = 0; j < keys.n; ++j) {
      const T w = ws.w[j] = static_cast<T>(growth(ws.l[j], ws.level));
      for (int64_t e = 0; e < dv; ++e) ws.weighted[j * dv + e] = w * keys.v[j * keys.ldv + e];
    }
    out.u = ws.w;
    out.v = ws.weighted;
    out.ldv = std::max<int64_t>(dv, 1);
  }

  void add_keys(int64_t b, int64_t h, int64_t begin, int64_t end, Workspace<T>& ws,
                const State<T>& state) const {
    for (int64_t s = begin; s < end; s += block) {
      Block<T> keys;
      if (load_keys(b, h, s, std::min(block, end - s), ws, keys) > 0)
        add_block(b, h, s, keys, ws, state);
    }
  }

  /// Multiplies row m of a state by factor(m), and the sums of the constant by factor(0).
  template <class F>
  void scale(const State<T>& state, F&& factor) const {
    for (int64_t m = 0; m < C; ++m) {
      const double f = factor(m);
      if (f == 1.0) continue;
      for (int64_t e = 0; e < dv; ++e) state.kv[m * dv + e] *= static_cast<T>(f);
      state.fsum[m] *= f;
    }
    if (log) return;
    const double f = factor(0);
    for (int64_t e = 0; e < dv; ++e) state.vsum[e] *= f;
    *state.usum *= f;
  }

  /// Shifts of a block of queries that all see the keys so far: their features into ws.query.
  void shift_queries(int64_t b, int64_t h, int64_t t, int64_t n, const Workspace<T>& ws) const {
    std::fill_n(ws.shift, n, ws.level == -kInfinity ? 0.0 : ws.level);
    if (!log) return;
    query_maxima(b, h, t, n, ws, ws.c, ws.shift);
    for (int64_t i = 0; i < n; ++i) ws.top[i] = -ws.shift[i];
    query_features(b, h, t, n, ws, ws.c, ws.top, ws.query);
  }

  /// A causal block: queries from t on, and the keys that begin to be seen inside it.
  struct Inner {
    Block<T> q, k;     // x: what the state is read with and summed from (log: filled by add_block)
    const T *qx, *kx;  // (n, C), what scores are made of
    int64_t ldq, ldk;
    int64_t first, shift;
    int64_t end(int64_t i) const { return std::clamp<int64_t>(i + shift + 1, 0, k.n); }
  };

  /// Loads a causal block, with ws.c and ws.level of the keys before it: shifts, features, weights
  /// (n, n) of scores, keep (n): what the state's part of plain rows is multiplied by, total (n):
  /// Σ w_j of the visible keys in units of the shift, `before` of them in the state.
  Inner load_inner(int64_t b, int64_t h, int64_t t, int64_t n, double before,
                   Workspace<T>& ws) const {
    Inner in;
    in.first = keys_before(t);
    const int64_t nk = keys_before(t + n) - in.first;
    in.shift = t + S - Tn - in.first;
    load_queries(b, h, t, n, ws, in.q);
    load_keys(b, h, in.first, nk, ws, in.k);
    if (log) {
      std::fill_n(ws.inner_c, C, kLowest);
      key_maxima(b, h, in.first, nk, ws, nullptr, ws.inner_c);
      std::fill_n(ws.shift, n, 0.0);
      query_maxima(b, h, t, n, ws, ws.c, ws.shift);
      query_maxima(b, h, t, n, ws, ws.inner_c, ws.gh);
    }
    double top = -kInfinity, count = 0;
    int64_t j = 0;
    for (int64_t i = 0; i < n; ++i) {
      for (; j < in.end(i); ++j) {
        top = std::max(top, ws.l[j]);
        count += static_cast<double>(ws.u[j]);
      }
      double reference = top;  // of the scores' weights
      if (log) {
        if (top != -kInfinity && query_visible(b, t + i))
          ws.shift[i] = std::max(ws.shift[i], ws.gh[i] + top);
        ws.total[i] = before + count;
      } else {
        reference = std::max(ws.level, top);
        ws.shift[i] = reference == -kInfinity ? 0.0 : reference;
        ws.keep[i] = static_cast<T>(growth(ws.level, ws.shift[i]));
        ws.total[i] = before * growth(ws.level, ws.shift[i]);
        if (!weighted) ws.total[i] += count;
      }
      if (weighted) {
        T* w = ws.weights + i * block;
        for (int64_t e = 0; e < in.end(i); ++e) w[e] = static_cast<T>(growth(ws.l[e], reference));
        if (!log)
          for (int64_t e = 0; e < in.end(i); ++e) ws.total[i] += static_cast<double>(w[e]);
      }
      ws.top[i] = top;
    }
    in.qx = in.q.x, in.ldq = in.q.ldx, in.kx = in.k.x, in.ldk = in.k.ldx;
    if (log) {
      in.qx = ws.inner_query, in.kx = ws.inner_key;
      for (int64_t i = 0; i < n; ++i) ws.top[i] -= ws.shift[i], ws.gh[i] = -ws.shift[i];
      query_features(b, h, t, n, ws, ws.inner_c, ws.top, ws.inner_query);
      query_features(b, h, t, n, ws, ws.c, ws.gh, ws.query);
      key_features(b, h, in.first, nk, ws, nullptr, ws.inner_c, ws.inner_key);
    }
    return in;
  }

  /// Kernel values inside a causal block times their weights, 0 where key j is not seen.
  void inner_scores(const Inner& in, const Workspace<T>& ws) const {
    gemm(false, true, in.q.n, in.k.n, C, T(1), in.qx, in.ldq, in.kx, in.ldk, T(0), ws.scores,
         block);
    for_each_pair(in, ws, ws.scores,
                  [&](T value, int64_t, int64_t) { return value + map.constant; });
  }
  /// x_ij ← f(x_ij, i, j)·weight where key j is seen, else 0.
  template <class F>
  void for_each_pair(const Inner& in, const Workspace<T>& ws, T* x, F&& f) const {
    for (int64_t i = 0; i < in.q.n; ++i) {
      T* row = x + i * block;
      const T* w = ws.weights + i * block;
      const int64_t end = in.end(i);
      if (weighted) {
#pragma omp simd
        for (int64_t j = 0; j < end; ++j) row[j] = f(row[j], i, j) * w[j];
      } else {
#pragma omp simd
        for (int64_t j = 0; j < end; ++j) row[j] = f(row[j], i, j) * ws.u[j];
      }
      std::fill(row + end, row + in.k.n, T(0));
    }
  }

  /// Row i of a causal block, shifted by the largest of its own terms alone.
  /// state(m, φ) is called with exp(b_im + c_m - s), pair(j, m, φ) with exp(b_im + a_jm - s).
  /// Returns s.
  template <class OfState, class OfPair>
  double exact_row(int64_t b, int64_t h, int64_t t, int64_t i, const Inner& in,
                   const Workspace<T>& ws, OfState&& of_state, OfPair&& of_pair) const {
    double s = kLowest;
    for (int64_t m = 0; m < C; ++m) s = std::max(s, query_log(b, h, t + i, m) + ws.c[m]);
    const auto pairs = [&](auto&& f) {
      for (int64_t j = 0; j < in.end(i); ++j) {
        if (ws.u[j] == T(0)) continue;
        for (int64_t m = 0; m < C; ++m)
          f(j, m, query_log(b, h, t + i, m) + key_log(b, h, in.first + j, m) + ws.l[j]);
      }
    };
    pairs([&](int64_t, int64_t, double x) { s = std::max(s, x); });
    for (int64_t m = 0; m < C; ++m) of_state(m, std::exp(query_log(b, h, t + i, m) + ws.c[m] - s));
    pairs([&](int64_t j, int64_t m, double x) { of_pair(j, m, std::exp(x - s)); });
    return s;
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

/// Workspaces and states in one scratch buffer: one per thread.
template <class T>
struct Plan {
  std::vector<Workspace<T>> workspaces;
  std::vector<State<T>> keys, queries;

  Plan(Arena& arena, const Problem<T>& p, bool backward) {
    const int threads = omp_in_parallel() ? 1 : omp_get_max_threads();
    for (int i = 0; i < threads; ++i) {
      workspaces.emplace_back(arena, p.block, p.C, p.dv, p.causal, backward ? p.blocks() : 0);
      keys.emplace_back(arena, p.C, p.dv);
      if (backward) queries.emplace_back(arena, p.C, p.dv);
    }
  }
};

template <class T>
size_t scratch_of(const Problem<T>& problem, bool backward) {
  Arena arena(nullptr);
  Plan<T>(arena, problem, backward);
  return arena.bytes();
}

}  // namespace macgrad::cpu::linear
