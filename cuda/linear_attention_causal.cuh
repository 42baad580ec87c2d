// Causal blocks of linear attention on given features: 64 queries and the keys that they are the
// first to see. Scores are made of features that are shifted by the block's largest log φ_k, and
// weighted by exp(ℓ_j - max_{j' <= i} ℓ_j'); rows that lose their terms to that shift are summed in
// log space. Reasons: core/cpu/linear_attention_problem.h. Shape letters: B batch, H heads, T
// queries, S keys, C columns.
#pragma once

#include "macgrad/cuda/linear_attention_block.cuh"

namespace macgrad::cuda::linear {

/// A tile of n queries from t on, number `index`, and in causal attention the keys that it is the
/// first to see, which are those from `first` on.
template <class T, Rounding rounding>
struct Causal : Block<T, rounding> {
  using Base = Block<T, rounding>;
  using Base::b, Base::h, Base::head, Base::m, Base::p;
  using typename Base::Spread;
  int index, n, keys;
  int64_t t, first, ahead;

  __device__ Causal(const Problem<T>& problem, Tiles<T>& memory, int of_head, int of_index)
      : Base(problem, memory, of_head), index(of_index), t(int64_t{of_index} * kTile) {
    n = static_cast<int>(p.Tn - t < kTile ? p.Tn - t : kTile);
    first = p.causal ? p.keys_before(t) : 0;
    keys = p.causal ? static_cast<int>(p.keys_before(t + n) - first) : 0;
    ahead = t + p.S - p.Tn - first;
  }
  /// Keys of the block that query r sees: those before it.
  __device__ int end(int r) const {
    const int64_t e = r + ahead + 1;
    return static_cast<int>(e < 0 ? 0 : e > keys ? keys : e);
  }

  /// Weight of the score of key j in row r.
  __device__ T weight(int r, int j) const {
    if (j >= end(r) || !this->visible(j)) return T(0);
    if (!p.log_weight) return T(1);
    return math::exp(static_cast<T>(m.l[j] - m.reference[r]));
  }
  /// Fills `reference` and, of plain features, `shift` and `keep`; returns Σ w of the visible keys,
  /// 0 for a thread without a row. After load_weights and a barrier.
  __device__ double find_references(double before) {
    const int r = static_cast<int>(threadIdx.x);
    if (r >= kTile) return 0.0;
    double top = -INFINITY, count = 0.0;
#pragma unroll 1
    for (int j = 0; j < end(r); ++j) {
      if (m.l[j] > top) top = m.l[j];
      count += this->visible(j) ? 1.0 : 0.0;
    }
    m.reference[r] = top;
    m.keep[r] = T(1);
    if (p.map.log || !p.log_weight) {
      if (!p.map.log) m.shift[r] = 0.0;
      return before + count;
    }
    const double level = p.shift(p.causal ? index : 0, head)[0];
    if (level > top) m.reference[r] = top = level;
    m.shift[r] = top == -INFINITY ? 0.0 : top;
    m.keep[r] = static_cast<T>(growth(level, m.shift[r]));
    double total = before * growth(level, m.shift[r]);
#pragma unroll 1
    for (int j = 0; j < end(r); ++j) total += static_cast<double>(weight(r, j));
    return total;
  }

  /// Chunk `chunk` of the features that scores are made of, 0 for rows that are not `used`.
  __device__ void load_inner_keys(T* tile, int chunk) {
    const int column = chunk * kTile + static_cast<int>(threadIdx.x) % kTile;
    const double shift = p.map.log && column < p.map.C ? p.inner_shift(index, head)[column] : 0.0;
    fill_rows(tile, p.k, p.k.at(b, h, first), keys, [&](int r, int, const T* row) {
      if (column >= p.map.C || !this->visible(r)) return T(0);
      return p.feature(p.key(row, column), -shift);
    });
  }
  template <class F>
  __device__ void load_inner_queries(T* tile, int chunk, F&& used) {
    const int column = chunk * kTile + static_cast<int>(threadIdx.x) % kTile;
    const double shift = p.map.log && column < p.map.C ? p.inner_shift(index, head)[column] : 0.0;
    fill_rows(tile, p.q, p.q.at(b, h, t), n, [&](int r, int, const T* row) {
      if (column >= p.map.C || !used(r)) return T(0);
      return p.feature(p.query(row, column), shift + (m.reference[r] - m.shift[r]));
    });
  }
  /// scores = kernel values times weights, 0 where key j is not seen; rows that are lost are left
  /// for sum_lost. Uses a and b; begins and ends with a barrier.
  __device__ void make_scores() {
    Spread sums;
    sums.clear();
    for (int chunk = 0; chunk < p.map.chunks(); ++chunk) {
      __syncthreads();
      load_inner_queries(m.a, chunk, [&](int r) { return m.live[r] && !m.lost[r]; });
      load_inner_keys(m.b, chunk);
      __syncthreads();
      multiply_add<true, true>(sums, m.a, kLd, m.b, kLd, Map::padded(p.map.C, chunk));
    }
    sums.store(m.scores, kLd);
    __syncthreads();
    fill_tile(m.scores, [&](int r, int j) {
      const T w = weight(r, j);
      return w == T(0) ? w : w * m.scores[r * kLd + j];
    });
    __syncthreads();
  }

  /// b_im + c_m, and b_im + a_jm, of a row of log-features.
  __device__ double state_log(const T* query, const double* c, int column) const {
    return static_cast<double>(p.query(query, column)) + c[column];
  }
  /// f(j, sum over columns of g(b_im + a_jm)) for the keys that row r sees, a warp per key; g's
  /// results are combined with op from `start` on.
  template <class G, class Op, class F>
  __device__ void each_key(int r, double start, G&& g, Op op, F&& f) {
    const T* query = p.q.at(b, h, t + r);
    for (int j = warp_index(); j < end(r); j += kThreads / kWarp) {
      if (!this->visible(j)) continue;
      const T* key = p.k.at(b, h, first + j);
      double all = start;
#pragma unroll 1
      for (int c = lane_index(); c < p.map.C; c += kWarp)
        all = op(all, g(static_cast<double>(p.query(query, c)) +
                        static_cast<double>(p.key(key, c)) + m.l[j]));
      all = warp_reduce(all, op);
      f(j, all);
    }
  }
  /// Row r of the scores of log-features with the shift s, in log space. Ends with a barrier.
  __device__ void sum_lost(int r, double s) {
    for (int j = static_cast<int>(threadIdx.x); j < kTile; j += kThreads)
      m.scores[r * kLd + j] = T(0);
    __syncthreads();
    each_key(
        r, 0.0, [s](double x) { return math::exp(x - s); }, Sum{},
        [&](int j, double sum) {
          if (lane_index() == 0) m.scores[r * kLd + j] = static_cast<T>(sum);
        });
    __syncthreads();
  }
};

}  // namespace macgrad::cuda::linear
