// Random Maclaurin feature attention, backward, by recomputation. With G = [g_num, g_den],
// g_num = dO/den and g_den = -(dO·O)/den (0 where the denominator was floored):
// dΦ_q = G KVᵀ, R = Φ_qᵀ G, dΦ_k = V̄ Rᵀ, dV = Φ_k R. Features and their projections are computed
// again block by block; nothing of the forward pass is kept but out and den.
//
// Causal: a forward scan with the state of earlier keys gives dq; a reverse scan with the state R
// of later queries gives dk and dv; the masked products inside a block stand beside both.
// Shape letters: B batch, H heads, T queries, S keys, d head dimension, dv values, M features,
// P projections. Equations: nn/README.md, RMFA.
#include "macgrad/core/cpu/rmfa_problem.h"

namespace macgrad::cpu {
namespace {

using namespace rmfa;

// Rows and elements of prefetches.
constexpr int64_t kAhead = 8;
template <class T>
constexpr int64_t kCacheLine = 64 / static_cast<int64_t>(sizeof(T));

template <class T>
class Backward {
 public:
  Backward(const Problem<T>& problem, Plan<T>& plan, const RmfaBackward& x)
      : p_(problem),
        plan_(plan),
        out_(x.out),
        grad_(x.grad),
        den_(x.den->data<T>()),
        dq_(x.dq),
        dk_(x.dk),
        dv_(x.dv) {}

  void run() {
    if (plan_.cut) {
      run_cut();
      return;
    }
    for_tasks(p_.B * p_.H, [&](int64_t head, size_t slot) {
      const Task task = make_task(head, slot);
      const State<T>& keys = plan_.forward_states[slot];
      const State<T>& queries = plan_.backward_states[slot];
      const int64_t early = p_.causal ? p_.keys_before(0) : p_.S;
      keys.reset();
      queries.reset();
      p_.add_keys(task.b, task.h, 0, early, task.map, task.ws, keys, /*keep=*/!p_.causal);
      if (p_.causal) {
        scan_queries(task, 0, p_.Tn, keys, nullptr);
        scan_keys(task, 0, p_.Tn, queries);
      } else {
        pull_queries(task, 0, p_.Tn, keys, queries);
      }
      pull_keys(task, 0, early, queries, /*kept=*/!p_.causal);
    });
  }

 private:
  struct Task {
    int64_t b, h;
    FeatureMap<T> map;
    Workspace<T>& ws;
  };
  Task make_task(int64_t head, size_t slot) {
    Workspace<T>& ws = plan_.workspaces[slot];
    return {head / p_.H, head % p_.H, p_.map_of_head(head % p_.H, ws), ws};
  }

  void run_cut() {
    const int64_t heads = p_.B * p_.H;
    const Pieces& qp = p_.query_pieces;
    const Pieces& kp = p_.causal ? p_.query_pieces : p_.key_pieces;
    auto of_head = [](std::vector<State<T>>& states, int64_t head, const Pieces& pieces) {
      return &states[static_cast<size_t>(head * pieces.count)];
    };
    auto each_piece = [&](const Pieces& pieces, int64_t tokens, auto&& f) {
      for_tasks(heads * pieces.count, [&](int64_t i, size_t slot) {
        const int64_t head = i / pieces.count, piece = i % pieces.count;
        const int64_t begin = piece * pieces.length;
        f(head, piece, begin, std::min(tokens, begin + pieces.length), make_task(head, slot));
      });
    };
    key_states(p_, plan_);
    for (const State<T>& state : plan_.backward_states) state.reset();
    each_piece(qp, p_.Tn, [&](int64_t head, int64_t piece, int64_t begin, int64_t end, Task task) {
      const State<T>* keys = of_head(plan_.forward_states, head, kp);
      const State<T>* sums = of_head(plan_.backward_states, head, qp);
      if (p_.causal) {
        // Slot i - 1 collects the queries of piece i: what the keys of piece i - 1 still meet.
        scan_queries(task, begin, end, keys[piece], piece > 0 ? &sums[piece - 1] : nullptr);
      } else {
        pull_queries(task, begin, end, keys[0], sums[piece]);
      }
    });
    for_tasks(heads, [&](int64_t head, size_t) {
      const State<T>* sums = of_head(plan_.backward_states, head, qp);
      if (p_.causal) {
        for (int64_t i = qp.count - 2; i >= 0; --i) sums[i].add(sums[i + 1]);
      } else {
        for (int64_t i = 1; i < qp.count; ++i) sums[0].add(sums[i]);
      }
    });
    each_piece(kp, p_.causal ? p_.Tn : p_.S,
               [&](int64_t head, int64_t piece, int64_t begin, int64_t end, Task task) {
                 const State<T>* sums = of_head(plan_.backward_states, head, qp);
                 if (p_.causal) {
                   scan_keys(task, begin, end, sums[piece]);
                   if (piece == 0) pull_keys(task, 0, p_.keys_before(0), sums[0], false);
                 } else {
                   pull_keys(task, begin, end, sums[0], false);
                 }
               });
  }

  /// Fills v = g_num and u = g_den of a block of queries; ws.counts are visible keys.
  void load_cotangents(const Task& task, int64_t t, Block<T>& block) const {
    const int64_t dv = p_.dv;
    T* g = task.ws.query.v;
    block.v = g;
    block.ldv = std::max<int64_t>(dv, 1);
    const T* den = den_ + (task.b * p_.H + task.h) * p_.Tn + t;
    for (int64_t i = 0; i < block.n; ++i, g += dv) {
      const double count = task.ws.counts[i];
      block.u[i] = T(0);
      if (count == 0.0 || !p_.query_visible(task.b, t + i)) {
        std::fill_n(g, dv, T(0));
        continue;
      }
      // Rows of (B, T, H, d) lie too far apart for a processor to foresee the next ones.
      for (int64_t c = 0; c < dv && i + kAhead < block.n; c += kCacheLine<T>) {
        __builtin_prefetch(grad_.at(task.b, task.h, t + i + kAhead) + c);
        __builtin_prefetch(out_.at(task.b, task.h, t + i + kAhead) + c);
      }
      const T bound = static_cast<T>(p_.floor * count);
      const bool floored = p_.floor > 0.0 && den[i] < bound;
      const T inverse = T(1) / (floored ? bound : den[i]);
      const T* dy = grad_.at(task.b, task.h, t + i);
      const T* y = out_.at(task.b, task.h, t + i);
      T dot = 0;
#pragma omp simd reduction(+ : dot)
      for (int64_t j = 0; j < dv; ++j) {
        g[j] = dy[j] * inverse;
        dot += dy[j] * y[j];
      }
      if (!floored) block.u[i] = -dot * inverse;
    }
  }

  /// dq of the queries [begin, end), all of which see all keys; adds the queries to `sums`.
  void pull_queries(const Task& task, int64_t begin, int64_t end, const State<T>& keys,
                    const State<T>& sums) const {
    Workspace<T>& ws = task.ws;
    std::fill_n(ws.counts, p_.block, *keys.usum);
    for (int64_t t = begin; t < end; t += p_.block) {
      const int64_t n = std::min(p_.block, end - t);
      Block<T> q;
      if (p_.load_queries(task.b, task.h, t, n, ws.query, kUnkept, q) > 0 && *keys.usum > 0.0) {
        load_cotangents(task, t, q);
        project(task.map, n, q.x, q.ldx, q.p, q.ld);
        multiply(task.map, n, q.p, q.phi, q.ld);
        pull_features(task.map, q, keys, ws.dphi, ws.panel);
        accumulate(task.map, q, sums, ws.row);
        multiply_backward(task.map, n, ws.dphi, q.p, ws.dp, ws.suffix, q.ld);
        pull_inputs(task.map, q, keys, ws.dp, dq_.at(task.b, task.h, t), dq_.ld(), ws.row);
      }
      zero_queries(task, t, n);
    }
  }

  /// dk, dv of the keys [begin, end), all of which are seen by all the queries in `sums`. `kept`:
  /// add_keys of the same range left its projections in the workspace.
  void pull_keys(const Task& task, int64_t begin, int64_t end, const State<T>& sums,
                 bool kept) const {
    Workspace<T>& ws = task.ws;
    for (int64_t s = begin, i = 0; s < end; s += p_.block, ++i) {
      const int64_t index = kept ? i : kUnkept;
      const int64_t n = std::min(p_.block, end - s);
      Block<T> k;
      if (p_.load_keys(task.b, task.h, s, n, ws.key, index, k) > 0) {
        if (!ws.key.kept(index)) project(task.map, n, k.x, k.ldx, k.p, k.ld);
        multiply(task.map, n, k.p, k.phi, k.ld);
        read(task.map, k, sums, dv_.at(task.b, task.h, s), dv_.ld(), static_cast<T*>(nullptr),
             ws.row);
        pull_features(task.map, k, sums, ws.dphi, ws.panel);
        multiply_backward(task.map, n, ws.dphi, k.p, ws.dp, ws.suffix, k.ld);
        pull_inputs(task.map, k, sums, ws.dp, dk_.at(task.b, task.h, s), dk_.ld(), ws.row);
      }
      zero_keys(task, s, n);
    }
  }

  /// A causal block: queries from t on, the keys that begin to be seen inside it, and
  /// ws.cotangents (queries, keys) = gradient of the kernel's values, masked.
  struct Inner {
    Block<T> q, k;
    int64_t first, shift;
  };
  int64_t index_of(int64_t t) const {
    return t / p_.block;
  }
  Inner load_inner(const Task& task, int64_t t, int64_t n, double before,
                   bool before_is_end) const {
    Workspace<T>& ws = task.ws;
    Inner in;
    in.first = p_.keys_before(t);
    const int64_t nk = p_.keys_before(t + n) - in.first;
    in.shift = t + p_.S - p_.Tn - in.first;
    p_.load_queries(task.b, task.h, t, n, ws.query, index_of(t), in.q);
    const int64_t visible = p_.load_keys(task.b, task.h, in.first, nk, ws.key, index_of(t), in.k);
    if (before_is_end) before -= static_cast<double>(visible);
    p_.visible_counts(in.q, in.k, in.shift, before, ws.counts);
    load_cotangents(task, t, in.q);
    gemm(false, true, n, nk, p_.dv, T(1), in.q.v, in.q.ldv, in.k.v, in.k.ldv, T(0), ws.cotangents,
         p_.block);
    for (int64_t i = 0; i < n; ++i) {
      T* row = ws.cotangents + i * p_.block;
      const int64_t end = std::clamp<int64_t>(i + in.shift + 1, 0, nk);
      for (int64_t j = 0; j < end; ++j) row[j] += in.q.u[i] * in.k.u[j];
      for (int64_t j = end; j < nk; ++j) row[j] = T(0);
    }
    return in;
  }

  /// dq of the queries [begin, end) in order; `state` holds the keys before them and is advanced.
  /// Projections of queries and keys are kept for scan_keys of the same task. The queries are added
  /// to `sums` unless it is null.
  void scan_queries(const Task& task, int64_t begin, int64_t end, const State<T>& state,
                    const State<T>* sums) const {
    const FeatureMap<T>& map = task.map;
    Workspace<T>& ws = task.ws;
    for (int64_t t = begin; t < end; t += p_.block) {
      const int64_t n = std::min(p_.block, end - t);
      Inner in = load_inner(task, t, n, *state.usum, false);
      Block<T>&q = in.q, &k = in.k;
      project(map, n, q.x, q.ldx, q.p, q.ld);
      multiply(map, n, q.p, q.phi, q.ld);
      project(map, k.n, k.x, k.ldx, k.p, k.ld);
      multiply(map, k.n, k.p, k.phi, k.ld);
      pull_features(map, q, state, ws.dphi, ws.panel);
      gemm(false, true, map.M, n, k.n, T(1), k.phi, k.ld, ws.cotangents, p_.block, T(1), ws.dphi,
           q.ld);
      if (sums) accumulate(map, q, *sums, ws.row);
      multiply_backward(map, n, ws.dphi, q.p, ws.dp, ws.suffix, q.ld);
      T* dq = dq_.at(task.b, task.h, t);
      pull_inputs(map, q, state, ws.dp, dq, dq_.ld(), ws.row);
      if (map.has_linear()) {
        gemm(false, false, n, map.d, k.n, map.linear, ws.cotangents, p_.block, k.x, k.ldx, T(1), dq,
             dq_.ld());
      }
      zero_queries(task, t, n);
      accumulate(map, k, state, ws.row);
    }
  }

  /// dk, dv of the keys that begin to be seen by the queries [begin, end), last block first;
  /// `sums` holds the queries from `end` on and is advanced to those from `begin` on.
  void scan_keys(const Task& task, int64_t begin, int64_t end, const State<T>& sums) const {
    const FeatureMap<T>& map = task.map;
    Workspace<T>& ws = task.ws;
    double before = 0.0;  // visible keys before the end of the block at hand
    for (int64_t s = 0; s < p_.keys_before(end); ++s) before += p_.key_visible(task.b, s);
    for (int64_t t = begin + (end - begin - 1) / p_.block * p_.block; t >= begin; t -= p_.block) {
      const int64_t n = std::min(p_.block, end - t);
      Inner in = load_inner(task, t, n, before, true);
      Block<T>&q = in.q, &k = in.k;
      for (int64_t j = 0; j < k.n; ++j) before -= static_cast<double>(k.u[j]);
      const bool kept = ws.query.kept(index_of(t)) && !plan_.cut;
      if (!kept) project(map, n, q.x, q.ldx, q.p, q.ld);
      multiply(map, n, q.p, q.phi, q.ld);
      if (k.n > 0) {
        if (!kept) project(map, k.n, k.x, k.ldx, k.p, k.ld);
        multiply(map, k.n, k.p, k.phi, k.ld);
        p_.inner_scores(map, q, k, in.shift, ws.scores);
        T* dv = dv_.at(task.b, task.h, in.first);
        read(map, k, sums, dv, dv_.ld(), static_cast<T*>(nullptr), ws.row);
        gemm(true, false, k.n, p_.dv, n, T(1), ws.scores, p_.block, q.v, q.ldv, T(1), dv, dv_.ld());
        pull_features(map, k, sums, ws.dphi, ws.panel);
        gemm(false, false, map.M, k.n, n, T(1), q.phi, q.ld, ws.cotangents, p_.block, T(1), ws.dphi,
             k.ld);
        multiply_backward(map, k.n, ws.dphi, k.p, ws.dp, ws.suffix, k.ld);
        T* dk = dk_.at(task.b, task.h, in.first);
        pull_inputs(map, k, sums, ws.dp, dk, dk_.ld(), ws.row);
        if (map.has_linear()) {
          gemm(true, false, k.n, map.d, n, map.linear, ws.cotangents, p_.block, q.x, q.ldx, T(1),
               dk, dk_.ld());
        }
        zero_keys(task, in.first, k.n);
      }
      accumulate(map, q, sums, ws.row);
    }
  }

  void zero_queries(const Task& task, int64_t t, int64_t n) const {
    for (int64_t i = 0; i < n; ++i) {
      if (task.ws.counts[i] > 0.0 && p_.query_visible(task.b, t + i)) continue;
      std::fill_n(dq_.at(task.b, task.h, t + i), task.map.d, T(0));
    }
  }
  void zero_keys(const Task& task, int64_t s, int64_t n) const {
    for (int64_t i = 0; i < n; ++i) {
      if (p_.key_visible(task.b, s + i)) continue;
      std::fill_n(dk_.at(task.b, task.h, s + i), task.map.d, T(0));
      std::fill_n(dv_.at(task.b, task.h, s + i), p_.dv, T(0));
    }
  }

  const Problem<T>& p_;
  Plan<T>& plan_;
  Rows<const T> out_, grad_;
  const T* den_;
  Rows<T> dq_, dk_, dv_;
};

}  // namespace

void rmfa_backward(const RmfaBackward& x) {
  dispatch(x.in.q->dtype(), [&](auto zero) {
    using T = decltype(zero);
    Problem<T> problem(x.in);
    problem.find_signs();
    Arena arena(x.scratch.data());
    Plan<T> plan(arena, problem, true);
    Backward<T>(problem, plan, x).run();
  });
}

Support rmfa_backward_supports(const RmfaOperands& in) {
  return rmfa_forward_supports(in);
}

size_t rmfa_backward_scratch(const RmfaOperands& in) {
  return dispatch(in.q->dtype(),
                  [&](auto zero) { return scratch_of(Problem<decltype(zero)>(in), true); });
}

}  // namespace macgrad::cpu
