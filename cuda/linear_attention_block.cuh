// What the kernels of linear attention on given features share on the device: the operands, their
// features with the shifts that keep log-features and key weights in range, and tiles of them in
// shared memory.
//
// What rows and states are shifted by, and why: core/cpu/linear_attention_problem.h. Column C - 1
// is κ where there is one, for plain features, too (κ for queries, 1 for keys), so that every sum
// over columns includes it. Differences of logarithms are taken in float64 with key weights, else
// in T, where they are exact enough: without weights c is one of the features. Shape letters: B
// batch, H heads, T queries (Tn), S keys, M features, C columns, dv values.
#pragma once

#include "macgrad/core/linear_attention_shifts.h"
#include "macgrad/core/vector_math.h"
#include "macgrad/cuda/linear_attention_plan.h"
#include "macgrad/cuda/rmfa_states.cuh"

namespace macgrad::cuda::linear {

using macgrad::linear::growth;
using macgrad::linear::kFloored;
using macgrad::linear::kLowest;
using macgrad::linear::kNone;
using macgrad::linear::kRecomputed;
using macgrad::linear::kSmallest;
using macgrad::linear::kUsed;
using rmfa::column_of_u;
using rmfa::Columns;
using rmfa::lane_index;
using rmfa::multiply_add;
using rmfa::reduce_halves;
using rmfa::Rounding;
using rmfa::Rows;
using rmfa::Sums;
using rmfa::warp_index;

/// Kernel arguments: the operands of a call and its scratch memory.
template <class T>
struct Problem {
  Rows<const T> q, k, v;
  const double* log_weight = nullptr;                       // (B, H, S), or absent
  const bool *key_valid = nullptr, *query_valid = nullptr;  // (B, S), (B, T), or absent
  double query_constant = 0;                                // column κ of queries; keys have 1
  double floor = 0, factor = 1;
  int64_t Tn = 0, S = 0;
  int B = 0, H = 0;
  bool causal = false, quotient = true;
  Map map;
  Ranges keys, queries;
  int shift_columns = 0;
  double *shifts = nullptr, *weights = nullptr, *floors = nullptr;
  T *inner = nullptr, *key_states = nullptr, *query_states = nullptr, *scalars = nullptr;

  Problem(const LinearAttentionOperands& in, const Map& its_map, const Cut& cut,
          const Memory<T>& memory)
      : q(in.phi_q),
        k(in.phi_k),
        v(in.v),
        log_weight(in.log_weight->defined() ? in.log_weight->data<double>() : nullptr),
        key_valid(in.key_valid->defined() ? in.key_valid->data<bool>() : nullptr),
        query_valid(in.query_valid->defined() ? in.query_valid->data<bool>() : nullptr),
        query_constant(its_map.log ? std::log(in.args.constant) : in.args.constant),
        floor(in.args.floor),
        factor(in.args.factor),
        Tn(in.phi_q->size(2)),
        S(in.phi_k->size(2)),
        B(static_cast<int>(in.phi_q->size(0))),
        H(static_cast<int>(in.phi_q->size(1))),
        causal(in.causal),
        quotient(in.args.normaliser == Normaliser::quotient),
        map(its_map),
        keys(cut.keys),
        queries(cut.queries),
        shift_columns(memory.shift_columns),
        shifts(memory.shifts),
        weights(memory.weights),
        floors(memory.floors),
        inner(memory.inner),
        key_states(memory.key_states),
        query_states(memory.query_states),
        scalars(memory.scalars) {}

  MACGRAD_HD int heads() const { return B * H; }
  __device__ int64_t keys_before(int64_t t) const {
    const int64_t s = t + S - Tn;
    return s < 0 ? 0 : s > S ? S : s;
  }
  __device__ bool query_visible(int b, int64_t t) const {
    return !query_valid || query_valid[b * Tn + t];
  }
  /// ℓ of a key; -inf where it is hidden.
  __device__ double key_weight(int b, int head, int64_t s) const {
    if (key_valid && !key_valid[b * S + s]) return -INFINITY;
    return log_weight ? log_weight[head * S + s] : 0.0;
  }

  /// What rows of a state are shifted by (c of log-features, the largest ℓ of plain ones): number
  /// 0 after the keys that all queries see, number i + 1 after those of causal block i.
  __device__ const double* shift(int number, int head) const {
    return shifts + (int64_t{keys.splits - 1 + number} * heads() + head) * shift_columns;
  }
  __device__ double column(const double* shift, int m) const {
    return shift_columns == 0 ? 0.0 : shift[map.log ? m : 0];
  }
  /// The number of the shift of a range's state.
  MACGRAD_HD int key_shift(int range) const {
    return range < keys.splits ? 0 : range - keys.splits + 1;
  }
  MACGRAD_HD int query_shift(int range) const { return causal ? range : 0; }
  /// The state of the keys before a causal block, or of all.
  MACGRAD_HD int keys_state(int block) const { return keys.splits - 1 + (causal ? block : 0); }
  __device__ const T* inner_shift(int block, int head) const {
    return inner + (int64_t{block} * heads() + head) * map.C;
  }
  __device__ int64_t state_at(int range, int head) const {
    return (int64_t{range} * heads() + head) * map.state_size();
  }

  /// Column m of a row of queries or of keys, κ included: a feature or its logarithm.
  __device__ T query(const T* row, int m) const {
    return m < map.M ? row[m] : static_cast<T>(query_constant);
  }
  __device__ T key(const T* row, int m) const { return m < map.M ? row[m] : map.log ? T(0) : T(1); }
  /// x + shift as it is rounded everywhere.
  __device__ double shifted(T x, double shift) const {
    if (log_weight) return static_cast<double>(x) + shift;
    return static_cast<double>(x + static_cast<T>(shift));
  }
  /// A feature from its logarithm and shift; plain features are left alone.
  __device__ T feature(T x, double shift) const {
    return map.log ? math::exp(static_cast<T>(shifted(x, shift))) : x;
  }
};

/// Ignores a NaN in b, as std::max(a, b) does on the CPU.
struct Larger {
  template <class U>
  __device__ U operator()(U a, U b) const {
    return b > a ? b : a;
  }
};

/// tile[r][c] = f(r, c) for 64×64 elements; neighbouring threads have neighbouring columns. Rolled
/// but for a few loads in flight: whole kernels must fit the instruction cache.
template <class T, class F>
__device__ inline void fill_tile(T* tile, F&& f) {
  const int c = static_cast<int>(threadIdx.x) % kTile;
#pragma unroll 4
  for (int r = static_cast<int>(threadIdx.x) / kTile; r < kTile; r += kThreads / kTile)
    tile[r * kLd + c] = f(r, c);
}
/// f(r, row of x) for each element of a tile of rows of an operand, whose addresses advance by a
/// constant; 0 from row n on.
template <class T, class F>
__device__ inline void fill_rows(T* tile, const Rows<const T>& x, const T* first, int n, F&& f) {
  const T* row = first + static_cast<int>(threadIdx.x) / kTile * x.token;
  fill_tile(tile, [&](int r, int c) {
    const T value = r < n ? f(r, c, row) : T(0);
    row += kThreads / kTile * x.token;
    return value;
  });
}

/// One block's view of a tile of tokens of one head. All methods are called by all its threads.
template <class T, Rounding rounding>
struct Block {
  using Packed = Sums<rounding, 1, Columns::packed, T>;
  using Spread = Sums<rounding, 1, Columns::spread, T>;
  const Problem<T>& p;
  Tiles<T>& m;
  int head, b, h;

  __device__ Block(const Problem<T>& problem, Tiles<T>& memory, int of_head)
      : p(problem), m(memory), head(of_head), b(of_head / p.H), h(of_head % p.H) {}

  /// ℓ of a tile of n keys, -inf beyond.
  __device__ void load_weights(int64_t s, int n) {
    const int r = static_cast<int>(threadIdx.x);
    if (r < kTile) m.l[r] = r < n ? p.key_weight(b, head, s + r) : -INFINITY;
  }
  __device__ bool visible(int j) const { return m.l[j] != -INFINITY; }

  /// Chunk `index` of the features of a tile of n keys, as a state holds them (c: its shift).
  __device__ void load_keys(T* tile, int64_t s, int n, int index, const double* c) {
    const int column = index * kTile + static_cast<int>(threadIdx.x) % kTile;
    const double shift = p.map.log && column < p.map.C ? c[column] : 0.0;
    fill_rows(tile, p.k, p.k.at(b, h, s), n, [&](int r, int, const T* row) {
      if (column >= p.map.C || !visible(r)) return T(0);
      return p.feature(p.key(row, column), m.l[r] - shift);
    });
  }
  /// Chunk `index` of the features of a tile of n queries as a state of shift c is read with them;
  /// plain ones times `keep`.
  __device__ void load_queries(T* tile, int64_t t, int n, int index, const double* c) {
    const int column = index * kTile + static_cast<int>(threadIdx.x) % kTile;
    const double shift = p.map.log && column < p.map.C ? c[column] : 0.0;
    fill_rows(tile, p.q, p.q.at(b, h, t), n, [&](int r, int, const T* row) {
      if (column >= p.map.C || !m.live[r]) return T(0);
      return m.keep[r] * p.feature(p.query(row, column), shift - m.shift[r]);
    });
  }
  /// Chunk `index` of the values of a tile of n tokens times factor(r); where that is 0 nothing is
  /// read.
  template <class F>
  __device__ void load_values(T* tile, const Rows<const T>& x, int64_t t, int n, int index,
                              F&& factor) {
    const int column = index * kTile + static_cast<int>(threadIdx.x) % kTile;
    fill_rows(tile, x, x.at(b, h, t), n, [&](int r, int, const T* row) {
      const T by = factor(r);
      return column < p.map.dv && by != T(0) ? by * row[column] : T(0);
    });
  }
  /// Writes f(r, c) as chunk `index` of n rows of `columns` values.
  template <class F>
  __device__ void store_rows(const Rows<T>& x, int64_t t, int n, int columns, int index, F&& f) {
    const int c = static_cast<int>(threadIdx.x) % kTile;
    if (index * kTile + c >= columns) return;
    T* to = x.at(b, h, t) + index * kTile + c;
#pragma unroll 1
    for (int r = static_cast<int>(threadIdx.x) / kTile; r < n; r += kThreads / kTile)
      to[r * x.token] = f(r, c);
  }
  /// Features of chunk `index` by values of chunk `value` of a state.
  __device__ void load_state(T* tile, const T* state, int index, int value) {
    const T* from = state + int64_t{index} * kTile * p.map.dv + value * kTile;
    const int width = Map::part(p.map.dv, value);
    fill_tile(tile,
              [&](int r, int c) { return c < width ? from[int64_t{r} * p.map.dv + c] : T(0); });
  }
  /// The column of u of a state.
  __device__ const T* sums_of(const T* state) const {
    return state + int64_t{p.map.rows()} * p.map.dv;
  }
};

}  // namespace macgrad::cuda::linear
