// What both directions of linear attention share, whether features are given or computed here: the
// state that keys are added to, and causal blocks, both shifted so that log-features and key
// weights stay in range. Sums are the state of the RMFA kernel (core/cpu/rmfa_state.h), whose
// linear block takes features as they stand in memory.
//
// With a_jm = log φ_k,jm + ℓ_j and b_im = log φ_q,im the state's row m holds sums of
// exp(a_jm - c_m), c_m the largest a_jm so far, and is rescaled when c_m grows; a query reads it
// with exp(b_im + c_m - s_i). Plain features have one number for all rows, the largest ℓ_j so far.
// Inside a causal block a row must not be shifted by keys that it does not see: features are
// shifted by the block's largest log φ_k and the score of (i, j) is multiplied by
// exp(ℓ_j - max_{j' <= i} ℓ_j'). A row whose shifted denominator is below kSmallest has lost its
// terms to that shift and is summed again in log space.
// Derivation: nn/README.md, other maps. Shape letters: B batch, H heads, T queries, S keys,
// M features, C columns (M, and one more for κ with log-features), dv values, n rows of a block, d
// columns of projected rows.
#pragma once

#include <vector>

#include "macgrad/core/cpu/linear_attention_operands.h"

namespace macgrad::cpu::linear {

using rmfa::State;

/// The operands of one call, with the state of their keys and their causal blocks.
template <class T>
class Problem : public Operands<T> {
 public:
  using Operands<T>::Operands;
  using Operands<T>::C;
  using Operands<T>::S;
  using Operands<T>::Tn;
  using Operands<T>::block;
  using Operands<T>::dv;
  using Operands<T>::log;
  using Operands<T>::map;
  using Operands<T>::weighted;
  using Operands<T>::key_features;
  using Operands<T>::key_log;
  using Operands<T>::key_maxima;
  using Operands<T>::keys_before;
  using Operands<T>::load_keys;
  using Operands<T>::load_queries;
  using Operands<T>::query_features;
  using Operands<T>::query_log;
  using Operands<T>::query_maxima;
  using Operands<T>::query_visible;

  /// Forgets all keys.
  void reset(Workspace<T>& ws, const State<T>& state) const {
    state.reset();
    std::fill_n(ws.c, C, kLowest);
    ws.level = weighted ? -kInfinity : 0.0;
  }

  /// state += a block of keys, in the units of the shift after it, which becomes the workspace's.
  void add_block(const Block<T>& keys, Workspace<T>& ws, const State<T>& state) const {
    Block<T> added = keys;
    if (log) {
      std::copy_n(ws.c, C, ws.c_next);
      key_maxima(keys, ws, weighted ? ws.l : nullptr, ws.c_next);
      scale(state, [&](int64_t m) { return growth(ws.c[m], ws.c_next[m]); });
      std::swap(ws.c, ws.c_next);
      key_features(keys, ws, weighted ? ws.l : nullptr, ws.c, ws.key);
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
      if (load_keys(b, h, s, std::min(block, end - s), ws, keys) > 0) add_block(keys, ws, state);
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
  void shift_queries(int64_t b, int64_t t, const Block<T>& q, const Workspace<T>& ws) const {
    std::fill_n(ws.shift, q.n, ws.level == -kInfinity ? 0.0 : ws.level);
    if (!log) return;
    query_maxima(b, t, q, ws, ws.c, ws.shift);
    for (int64_t i = 0; i < q.n; ++i) ws.top[i] = -ws.shift[i];
    query_features(b, t, q, ws, ws.c, ws.top, ws.query);
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
      key_maxima(in.k, ws, nullptr, ws.inner_c);
      std::fill_n(ws.shift, n, 0.0);
      query_maxima(b, t, in.q, ws, ws.c, ws.shift);
      query_maxima(b, t, in.q, ws, ws.inner_c, ws.gh);
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
      query_features(b, t, in.q, ws, ws.inner_c, ws.top, ws.inner_query);
      query_features(b, t, in.q, ws, ws.c, ws.gh, ws.query);
      key_features(in.k, ws, nullptr, ws.inner_c, ws.inner_key);
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
  double exact_row(int64_t i, const Inner& in, const Workspace<T>& ws, OfState&& of_state,
                   OfPair&& of_pair) const {
    double s = kLowest;
    for (int64_t m = 0; m < C; ++m) s = std::max(s, query_log(in.q, i, m) + ws.c[m]);
    const auto pairs = [&](auto&& f) {
      for (int64_t j = 0; j < in.end(i); ++j) {
        if (ws.u[j] == T(0)) continue;
        for (int64_t m = 0; m < C; ++m)
          f(j, m, query_log(in.q, i, m) + key_log(in.k, j, m) + ws.l[j]);
      }
    };
    pairs([&](int64_t, int64_t, double x) { s = std::max(s, x); });
    for (int64_t m = 0; m < C; ++m) of_state(m, std::exp(query_log(in.q, i, m) + ws.c[m] - s));
    pairs([&](int64_t j, int64_t m, double x) { of_pair(j, m, std::exp(x - s)); });
    return s;
  }
};

/// The state of each head's keys between the two kernels, with its shifts: state (B,H,M,dv) and
/// state_sums (B,H,2,M+1) of the projected kernels, which have no constant; empty: not kept.
template <class T>
class Kept {
 public:
  Kept() = default;
  Kept(const Tensor& state, const Tensor& sums) {
    if (!state.defined()) return;
    kv_ = state.data<T>();
    sums_ = sums.data<double>();
    count_ = state.size(2) * state.size(3);
    M_ = state.size(2);
  }
  explicit operator bool() const { return kv_ != nullptr; }

  void write(int64_t head, const State<T>& state, const Workspace<T>& ws) const {
    std::copy_n(state.kv, count_, kv_ + head * count_);
    double* sums = sums_ + head * 2 * (M_ + 1);
    *std::copy_n(state.fsum, M_, sums) = *state.usum;
    *std::copy_n(ws.c, M_, sums + M_ + 1) = ws.level;
  }
  void read(int64_t head, const State<T>& state, Workspace<T>& ws) const {
    std::copy_n(kv_ + head * count_, count_, state.kv);
    const double* sums = sums_ + head * 2 * (M_ + 1);
    std::copy_n(sums, M_, state.fsum);
    *state.usum = sums[M_];
    std::copy_n(sums + M_ + 1, M_, ws.c);
    ws.level = sums[2 * M_ + 1];
  }

 private:
  T* kv_ = nullptr;
  double* sums_ = nullptr;
  int64_t count_ = 0, M_ = 0;
};

/// The operands of a call whose features the kernel computes.
template <class T>
Problem<T> projected_problem(const ProjectedAttentionOperands& in) {
  const LinearAttentionArgs linear = linear_args(in.args);
  return Problem<T>({.phi_q = in.q,
                     .phi_k = in.k,
                     .v = in.v,
                     .log_weight = in.log_weight,
                     .key_valid = in.key_valid,
                     .query_valid = in.query_valid,
                     .args = linear,
                     .causal = in.causal},
                    Projection<T>(in.omega, in.args));
}

/// Workspaces and states in one scratch buffer: one per thread.
template <class T>
struct Plan {
  std::vector<Workspace<T>> workspaces;
  std::vector<State<T>> keys, queries;

  Plan(Arena& arena, const Problem<T>& p, bool backward) {
    const int threads = omp_in_parallel() ? 1 : omp_get_max_threads();
    for (int i = 0; i < threads; ++i) {
      workspaces.emplace_back(arena, p.block, p.C, p.dv, p.causal, backward ? p.blocks() : 0,
                              p.projection ? p.projection.head_dim() : 0,
                              p.projection && p.log ? p.M : 0);
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
