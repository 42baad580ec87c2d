// What both directions of the RMFA kernel share: the operands as strided rows, the cut of the work
// into pieces that depend on shapes only, and the workspace of a thread.
//
// A piece is a run of queries (and of keys) of one (batch, head). When there are enough heads a
// piece is a whole sequence; else sequences are cut so that about 64 pieces exist, each with a
// state of its own, and the states are summed in order. Threads take pieces; sums never depend on
// them. Shape letters: B batch, H heads, T queries, S keys, d head dimension, dv values, M
// features, P projections.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <vector>

#include "macgrad/core/cpu/parallel.h"
#include "macgrad/core/cpu/rmfa_state.h"
#include "macgrad/core/kernels/rmfa.h"

namespace macgrad::cpu::rmfa {

/// Tokens of a block: projections, features, values and state of one stay in a 512 KiB cache.
inline constexpr int64_t kFullBlock = 128;
/// Causal blocks are smaller: the masked product inside one is quadratic in it.
inline constexpr int64_t kCausalBlock = 64;
/// A thread of the backward pass keeps projections from its first use of a token to its second
/// (keys; when causal also queries), up to this share of the operands' bytes within these bounds.
/// Beyond, they are computed again.
inline constexpr int64_t kKeptShare = 512;
inline constexpr int64_t kKeptLeast = 512 << 10;
inline constexpr int64_t kKeptMost = 4 << 20;
/// Tokens per Ω below which encoding its signs costs more than it saves.
inline constexpr int64_t kFewTokens = 64;
inline constexpr int64_t kMinPiece = 512;
inline constexpr int64_t kPieces = 64;

/// (B, H, n, columns) with unit last stride.
template <class T>
struct Rows {
  T* base = nullptr;
  int64_t batch = 0, head = 0, token = 0, columns = 0;

  Rows() = default;
  explicit Rows(const Tensor& t)
      : base(t.data<std::remove_const_t<T>>()),
        batch(t.stride(0)),
        head(t.stride(1)),
        token(t.stride(2)),
        columns(t.size(3)) {}
  T* at(int64_t b, int64_t h, int64_t t) const { return base + b * batch + h * head + t * token; }
  /// Leading dimension for a product; the stride of a single row says nothing.
  int64_t ld() const { return std::max(token, std::max<int64_t>(columns, 1)); }
};

/// n rows from t on, straight from the tensor, or a copy in `buffer` in which dropped rows are 0
/// (NaN in padding must not meet a product) and rows are at least their width apart. all: none is
/// dropped.
template <class T, class Keep>
void load_rows(const Rows<const T>& rows, int64_t b, int64_t h, int64_t t, int64_t n, bool all,
               Keep keep, T* buffer, const T*& x, int64_t& ld) {
  if (n == 0) return;
  const T* first = rows.at(b, h, t);
  if (all && (rows.token >= rows.columns || n == 1)) {
    x = first;
    ld = rows.ld();
    return;
  }
  const int64_t columns = rows.columns;
  for (int64_t i = 0; i < n; ++i) {
    T* y = buffer + i * columns;
    if (keep(i)) {
      std::copy_n(first + i * rows.token, columns, y);
    } else {
      std::fill_n(y, columns, T(0));
    }
  }
  x = buffer;
  ld = std::max<int64_t>(columns, 1);
}

struct Pieces {
  int64_t count = 1;
  int64_t length = 0;
  Pieces(int64_t heads, int64_t tokens, int64_t block) {
    const int64_t wanted = std::max<int64_t>(1, kPieces / std::max<int64_t>(1, heads));
    const int64_t most = std::max<int64_t>(1, (tokens + kMinPiece - 1) / kMinPiece);
    const int64_t n = std::min(wanted, most);
    length = std::max(block, ((tokens + n - 1) / n + block - 1) / block * block);
    count = std::max<int64_t>(1, (tokens + length - 1) / length);
  }
};

/// Buffers of one thread. In causal scans query and key blocks live side by side; otherwise they
/// share their memory.
template <class T>
struct Workspace {
  struct Side {
    T *x, *v, *u, *phi;
    Side(Arena& arena, const FeatureMap<T>& map, int64_t dv, int64_t n, bool backward,
         int64_t kept_blocks)
        : x(arena.take<T>(n * map.d)),
          v(arena.take<T>(n * dv)),
          u(arena.take<T>(n)),
          phi(backward ? arena.take<T>(map.M * n) : nullptr),
          kept_(kept_blocks),
          block_(map.P * n),
          p_(arena.take<T>((kept_blocks + 1) * block_)) {}
    bool kept(int64_t i) const { return i < kept_; }
    /// Projections of block i; one buffer serves all the blocks that are not kept.
    T* p(int64_t i) const { return p_ + std::min(i, kept_) * block_; }

   private:
    int64_t kept_, block_;
    T* p_;
  };
  Side query, key;
  T *dphi, *dp, *suffix, *scores, *cotangents, *den, *row;
  double* counts;
  T *panel, *sign_scratch;
  int64_t rows = 0, unsafe = 0;
  double smallest = std::numeric_limits<double>::infinity();

  Workspace(Arena& arena, const FeatureMap<T>& map, int64_t dv, int64_t n, bool causal,
            bool backward, int64_t kept)
      : query(arena, map, dv, n, backward, kept),
        key(causal ? Side(arena, map, dv, n, backward, kept) : query),
        dphi(backward ? arena.take<T>(map.M * n) : nullptr),
        dp(backward ? arena.take<T>(map.P * n) : nullptr),
        suffix(backward ? arena.take<T>(n) : nullptr),
        scores(causal ? arena.take<T>(n * n) : nullptr),
        cotangents(causal && backward ? arena.take<T>(n * n) : nullptr),
        den(arena.take<T>(n)),
        row(arena.take<T>(std::max(map.d, dv))),
        counts(arena.take<double>(n)),
        panel(backward ? arena.take<T>(dv * n) : nullptr),
        sign_scratch(arena.take<T>(std::is_same_v<T, float> ? signs::scratch_size(map.d) : 0)) {}
};
/// The statistics that threads collected, as the kernel's result.
template <class Workspaces>
void write_statistics(const Workspaces& workspaces, double* stats) {
  std::fill_n(stats, 3, 0.0);
  stats[3] = std::numeric_limits<double>::infinity();
  for (const auto& ws : workspaces) {
    stats[0] += static_cast<double>(ws.rows);
    stats[1] += static_cast<double>(ws.unsafe);
    stats[3] = std::min(stats[3], ws.smallest);
  }
}
/// Index of a block whose projections are not kept.
inline constexpr int64_t kUnkept = std::numeric_limits<int64_t>::max();

template <class T>
class Problem {
 public:
  explicit Problem(const RmfaOperands& in)
      : B(in.q->size(0)),
        H(in.q->size(1)),
        Tn(in.q->size(2)),
        S(in.k->size(2)),
        dv(in.v->size(3)),
        causal(in.args.causal),
        floor(in.args.floor),
        block(causal ? kCausalBlock : kFullBlock),
        query_pieces(B * H, Tn, block),
        key_pieces(B * H, S, block),
        q_(in.q),
        k_(in.k),
        v_(in.v),
        key_valid_(in.key_valid->defined() ? in.key_valid->data<bool>() : nullptr),
        query_valid_(in.query_valid->defined() ? in.query_valid->data<bool>() : nullptr),
        first_row_(first_rows(in.args.levels)),
        map_(in.q->size(3), in.args.levels, first_row_, in.args.linear, in.args.constant),
        omega_(map_.P > 0 ? in.omega->data<T>() : nullptr),
        omega_head_(in.omega->rank() == 3 ? in.omega->stride(0) : 0) {
    if (omega_) map_.width = in.omega->size(-1);
    map_.weight = map_.M > 0 ? in.weight->data<T>() : nullptr;
  }

  Problem(const Problem&) = delete;  // map_ refers to first_row_
  Problem& operator=(const Problem&) = delete;

  const FeatureMap<T>& map() const { return map_; }
  FeatureMap<T> map_of_head(int64_t h, const Workspace<T>& ws) const {
    FeatureMap<T> map = map_;
    map.omega = omega_ ? omega_ + h * omega_head_ : nullptr;
    map.sign_scratch = ws.sign_scratch;
    if (codes_.empty()) return map;
    map.column_codes = codes_.data() + (omega_head_ > 0 ? h : 0) * codes_of_head();
    map.row_codes = map.column_codes + map.P * signs::groups_of(map.d);
    return map;
  }
  /// Prepares products by table lookup if all entries of Ω are ±1 and enough tokens share the
  /// codes.
  void find_signs() {
    if constexpr (std::is_same_v<T, float>) {
      const int64_t matrices = omega_head_ > 0 ? H : 1;
      const int64_t tokens = B * H * (Tn + S);
      if (map_.P == 0 || tokens < matrices * kFewTokens) return;
      if (tokens * map_.P > kMostTileWork) return;
      for (int64_t h = 0; h < matrices; ++h)
        for (int64_t k = 0; k < map_.d; ++k) {
          const T* row = omega_ + h * omega_head_ + k * map_.width;
          if (!std::all_of(row, row + map_.P, [](T x) { return std::abs(x) == T(1); })) return;
        }
      codes_.resize(static_cast<size_t>(matrices * codes_of_head()));
      for (int64_t h = 0; h < matrices; ++h) {
        signs::Code* codes = codes_.data() + h * codes_of_head();
        const float* omega = omega_ + h * omega_head_;
        signs::encode(omega, map_.width, 1, map_.d, map_.P, codes);
        signs::encode(omega, 1, map_.width, map_.P, map_.d,
                      codes + map_.P * signs::groups_of(map_.d));
      }
    }
  }
  bool query_visible(int64_t b, int64_t t) const {
    return !query_valid_ || query_valid_[b * Tn + t];
  }
  bool key_visible(int64_t b, int64_t s) const { return !key_valid_ || key_valid_[b * S + s]; }
  /// Keys before the block of queries that begins at t; its own block ends at keys_before(t + n).
  int64_t keys_before(int64_t t) const { return std::clamp<int64_t>(t + S - Tn, 0, S); }

  /// Fills a block of keys: x, v, u = 1 or 0. Returns how many are visible.
  int64_t load_keys(int64_t b, int64_t h, int64_t s, int64_t n,
                    const typename Workspace<T>::Side& side, int64_t index, Block<T>& out) const {
    out.n = n;
    out.u = side.u;
    out.p = side.p(index);
    out.phi = side.phi;
    out.ld = block;
    int64_t visible = 0;
    for (int64_t i = 0; i < n; ++i) {
      const bool yes = key_visible(b, s + i);
      out.u[i] = yes ? T(1) : T(0);
      visible += yes;
    }
    auto keep = [&](int64_t i) { return key_visible(b, s + i); };
    load_rows(k_, b, h, s, n, visible == n, keep, side.x, out.x, out.ldx);
    load_rows(v_, b, h, s, n, visible == n, keep, side.v, out.v, out.ldv);
    return visible;
  }

  /// Fills x of a block of queries. Returns how many are valid.
  int64_t load_queries(int64_t b, int64_t h, int64_t t, int64_t n,
                       const typename Workspace<T>::Side& side, int64_t index,
                       Block<T>& out) const {
    out.n = n;
    out.u = side.u;
    out.p = side.p(index);
    out.phi = side.phi;
    out.ld = block;
    int64_t valid = 0;
    for (int64_t i = 0; i < n; ++i) valid += query_visible(b, t + i);
    auto keep = [&](int64_t i) { return query_visible(b, t + i); };
    load_rows(q_, b, h, t, n, valid == n, keep, side.x, out.x, out.ldx);
    return valid;
  }

  /// state += the keys [begin, end). With `keep` projections stay in the workspace, blocks counted
  /// from 0 on.
  void add_keys(int64_t b, int64_t h, int64_t begin, int64_t end, const FeatureMap<T>& map,
                const Workspace<T>& ws, const State<T>& state, bool keep) const {
    for (int64_t s = begin, i = 0; s < end; s += block, ++i) {
      Block<T> keys;
      if (load_keys(b, h, s, std::min(block, end - s), ws.key, keep ? i : kUnkept, keys) == 0) {
        continue;
      }
      if (!keep) keys.phi = keys.p;
      project(map, keys.n, keys.x, keys.ldx, keys.p, keys.ld);
      multiply(map, keys.n, keys.p, keys.phi, keys.ld);
      accumulate(map, keys, state, ws.row);
    }
  }

  /// Products inside a causal block, scores (queries.n, keys.n) with stride `block`: the kernel's
  /// values where key j <= i + shift, else 0.
  void inner_scores(const FeatureMap<T>& map, const Block<T>& queries, const Block<T>& keys,
                    int64_t shift, T* scores) const {
    gemm(true, false, queries.n, keys.n, map.M, T(1), queries.phi, queries.ld, keys.phi, keys.ld,
         T(0), scores, block);
    if (map.has_linear()) {
      gemm(false, true, queries.n, keys.n, map.d, map.linear, queries.x, queries.ldx, keys.x,
           keys.ldx, T(1), scores, block);
    }
    for (int64_t i = 0; i < queries.n; ++i) {
      T* row = scores + i * block;
      const int64_t end = std::clamp<int64_t>(i + shift + 1, 0, keys.n);
      for (int64_t j = 0; j < end; ++j) row[j] += map.constant;
      for (int64_t j = end; j < keys.n; ++j) row[j] = T(0);
    }
  }

  /// counts[i]: keys that query i of a causal block sees, `before` of them in earlier blocks.
  void visible_counts(const Block<T>& queries, const Block<T>& keys, int64_t shift, double before,
                      double* counts) const {
    double count = before;
    int64_t j = 0;
    for (int64_t i = 0; i < queries.n; ++i) {
      for (; j < keys.n && j <= i + shift; ++j) count += static_cast<double>(keys.u[j]);
      counts[i] = count;
    }
  }

  const int64_t B, H, Tn, S, dv;
  const bool causal;
  const double floor;
  const int64_t block;
  const Pieces query_pieces, key_pieces;

 private:
  int64_t codes_of_head() const {
    return map_.P * signs::groups_of(map_.d) + map_.d * signs::groups_of(map_.P);
  }
  static std::vector<int64_t> first_rows(const std::vector<int64_t>& levels) {
    std::vector<int64_t> first(levels.size());
    std::exclusive_scan(levels.begin(), levels.end(), first.begin(), int64_t{0});
    return first;
  }

  Rows<const T> q_, k_, v_;
  const bool *key_valid_, *query_valid_;
  std::vector<int64_t> first_row_;
  FeatureMap<T> map_;
  const T* omega_;
  int64_t omega_head_;
  std::vector<signs::Code> codes_;  // of each Ω: columns, then rows; empty: not of signs
};

/// Workspaces and states in one scratch buffer.
template <class T>
struct Plan {
  std::vector<Workspace<T>> workspaces;  // one a thread
  std::vector<State<T>> forward_states;  // one a thread, or one a piece when sequences are cut
  std::vector<State<T>> backward_states;
  bool cut = false;

  Plan(Arena& arena, const Problem<T>& p, bool backward) {
    const int threads = omp_in_parallel() ? 1 : omp_get_max_threads();
    const auto& map = p.map();
    cut = p.query_pieces.count > 1 || (!p.causal && p.key_pieces.count > 1);
    int64_t kept = 0;
    if (backward && !cut && map.P > 0) {
      const int64_t bytes = map.P * p.block * static_cast<int64_t>(sizeof(T));
      const int64_t tokens = p.causal ? p.Tn : p.S;
      const int64_t operands =
          2 * p.B * p.H * (p.Tn + p.S) * (map.d + p.dv) * static_cast<int64_t>(sizeof(T));
      const int64_t most = std::clamp(operands / kKeptShare, kKeptLeast, kKeptMost);
      kept = std::min(most / bytes, (tokens + p.block - 1) / p.block);
    }
    for (int i = 0; i < threads; ++i) {
      workspaces.emplace_back(arena, map, p.dv, p.block, p.causal, backward, kept);
    }
    const int64_t heads = p.B * p.H;
    const int64_t keys = p.causal ? p.query_pieces.count : p.key_pieces.count;
    for (int64_t i = 0; i < (cut ? heads * keys : threads); ++i) {
      forward_states.emplace_back(arena, map.rows(), p.dv);
    }
    if (!backward) return;
    for (int64_t i = 0; i < (cut ? heads * p.query_pieces.count : threads); ++i) {
      backward_states.emplace_back(arena, map.rows(), p.dv);
    }
  }
};

/// Calls f(i, workspace index) for i in [0, n). Even a single task runs in a team, so that its
/// products stay on one thread and the result is the same at any number of threads.
template <class F>
void for_tasks(int64_t n, F&& f) {
  const bool nested = omp_in_parallel();
  parallel_tasks(n == 1 ? 2 : n, [&](int64_t i) {
    if (i < n) f(i, static_cast<size_t>(nested ? 0 : omp_get_thread_num()));
  });
}

/// Fills plan.forward_states when sequences are cut. Full: the sum over all keys of a head in the
/// head's first state. Causal: in state (head, piece) the keys before the piece of queries.
template <class T>
void key_states(const Problem<T>& p, Plan<T>& plan) {
  const int64_t heads = p.B * p.H;
  const Pieces& pieces = p.causal ? p.query_pieces : p.key_pieces;
  for_tasks(heads * pieces.count, [&](int64_t task, size_t slot) {
    const int64_t head = task / pieces.count, piece = task % pieces.count;
    int64_t begin = piece * pieces.length, end = std::min(p.S, begin + pieces.length);
    if (p.causal) {
      end = p.keys_before(begin);
      begin = piece == 0 ? 0 : p.keys_before(begin - pieces.length);
    }
    const State<T>& state = plan.forward_states[static_cast<size_t>(task)];
    state.reset();
    p.add_keys(head / p.H, head % p.H, begin, end, p.map_of_head(head % p.H, plan.workspaces[slot]),
               plan.workspaces[slot], state, /*keep=*/false);
  });
  for_tasks(heads, [&](int64_t head, size_t) {
    const State<T>* states = &plan.forward_states[static_cast<size_t>(head * pieces.count)];
    for (int64_t i = 1; i < pieces.count; ++i) {
      if (p.causal) {
        states[i].add(states[i - 1]);
      } else {
        states[0].add(states[i]);
      }
    }
  });
}

/// Calls f with a zero of the operands' type.
template <class F>
decltype(auto) dispatch(DType dtype, F&& f) {
  if (dtype == DType::float64) return f(double{});
  require(dtype == DType::float32, "[rmfa] the CPU kernel takes float32 and float64, not {}",
          name(dtype));
  return f(float{});
}

template <class T>
size_t scratch_of(const Problem<T>& problem, bool backward) {
  Arena arena(nullptr);
  Plan<T>(arena, problem, backward);
  return arena.bytes();
}

}  // namespace macgrad::cpu::rmfa
