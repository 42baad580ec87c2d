// Random Maclaurin feature attention, forward: out = Φ_q (Φ_kᵀ V̄), first dv columns over the last.
// Memory is one state (features × values) a piece of work and one block of tokens a thread.
//
// Padding drops out because rows of invalid keys are loaded as zeros: their features are zero (no
// feature row is constant) and they are not counted. Causal attention walks blocks of queries: the
// state of all earlier keys plus the masked product inside the block, never a sum of outer
// products. Shape letters: B batch, H heads, T queries, S keys, d head dimension, dv values, M
// features, P projections. Equations: nn/README.md, RMFA.
#include "macgrad/core/cpu/rmfa_problem.h"

namespace macgrad::cpu {
namespace {

using namespace rmfa;

template <class T>
class Forward {
 public:
  Forward(const Problem<T>& problem, Plan<T>& plan, const Tensor& out, const Tensor& den)
      : p_(problem), plan_(plan), out_(out), den_(den.data<T>()) {}

  void run() {
    const int64_t heads = p_.B * p_.H;
    if (!plan_.cut) {
      for_tasks(heads, [&](int64_t head, size_t slot) {
        const State<T>& state = plan_.forward_states[slot];
        state.reset();
        if (p_.causal) {
          keys(head, 0, p_.keys_before(0), slot, state);
          scan(head, 0, p_.Tn, slot, state);
        } else {
          keys(head, 0, p_.S, slot, state);
          queries(head, 0, p_.Tn, slot, state);
        }
      });
      return;
    }
    const Pieces& qp = p_.query_pieces;
    const int64_t per_head = p_.causal ? qp.count : p_.key_pieces.count;
    key_states(p_, plan_);
    for_tasks(heads * qp.count, [&](int64_t task, size_t slot) {
      const int64_t head = task / qp.count, piece = task % qp.count;
      const int64_t begin = piece * qp.length, end = std::min(p_.Tn, begin + qp.length);
      if (p_.causal) {
        scan(head, begin, end, slot, plan_.forward_states[static_cast<size_t>(task)]);
      } else {
        queries(head, begin, end, slot, plan_.forward_states[static_cast<size_t>(head * per_head)]);
      }
    });
  }

 private:
  void keys(int64_t head, int64_t begin, int64_t end, size_t slot, const State<T>& state) {
    const int64_t b = head / p_.H, h = head % p_.H;
    Workspace<T>& ws = plan_.workspaces[slot];
    p_.add_keys(b, h, begin, end, p_.map_of_head(h, ws), ws, state, /*keep=*/false);
  }

  void queries(int64_t head, int64_t begin, int64_t end, size_t slot, const State<T>& state) {
    const int64_t b = head / p_.H, h = head % p_.H;
    Workspace<T>& ws = plan_.workspaces[slot];
    const FeatureMap<T> map = p_.map_of_head(h, ws);
    std::fill_n(ws.counts, p_.block, *state.usum);
    for (int64_t t = begin; t < end; t += p_.block) {
      const int64_t n = std::min(p_.block, end - t);
      Block<T> block;
      if (p_.load_queries(b, h, t, n, ws.query, kUnkept, block) > 0) {
        block.phi = block.p;
        project(map, n, block.x, block.ldx, block.p, block.ld);
        multiply(map, n, block.p, block.phi, block.ld);
        read(map, block, state, out_.at(b, h, t), out_.ld(), ws.den, ws.row);
      }
      finish(b, h, t, n, ws);
    }
  }

  void scan(int64_t head, int64_t begin, int64_t end, size_t slot, const State<T>& state) {
    const int64_t b = head / p_.H, h = head % p_.H;
    Workspace<T>& ws = plan_.workspaces[slot];
    const FeatureMap<T> map = p_.map_of_head(h, ws);
    for (int64_t t = begin; t < end; t += p_.block) {
      const int64_t n = std::min(p_.block, end - t);
      const int64_t first = p_.keys_before(t), nk = p_.keys_before(t + n) - first;
      const int64_t shift = t + p_.S - p_.Tn - first;
      Block<T> q, k;
      p_.load_queries(b, h, t, n, ws.query, kUnkept, q);
      p_.load_keys(b, h, first, nk, ws.key, kUnkept, k);
      q.phi = q.p;
      k.phi = k.p;
      p_.visible_counts(q, k, shift, *state.usum, ws.counts);
      project(map, n, q.x, q.ldx, q.p, q.ld);
      multiply(map, n, q.p, q.phi, q.ld);
      T* out = out_.at(b, h, t);
      read(map, q, state, out, out_.ld(), ws.den, ws.row);
      if (nk > 0) {
        project(map, nk, k.x, k.ldx, k.p, k.ld);
        multiply(map, nk, k.p, k.phi, k.ld);
        p_.inner_scores(map, q, k, shift, ws.scores);
        for (int64_t i = 0; i < n; ++i) {
          const T* row = ws.scores + i * p_.block;
          T sum = 0;
#pragma omp simd reduction(+ : sum)
          for (int64_t j = 0; j < nk; ++j) sum += row[j] * k.u[j];
          ws.den[i] += sum;
        }
        gemm(false, false, n, p_.dv, nk, T(1), ws.scores, p_.block, k.v, k.ldv, T(1), out,
             out_.ld());
        accumulate(map, k, state, ws.row);
      }
      finish(b, h, t, n, ws);
    }
  }

  /// Divides a block of numerators by its denominators, floored; ws.counts are visible keys.
  void finish(int64_t b, int64_t h, int64_t t, int64_t n, Workspace<T>& ws) {
    T* den = den_ + (b * p_.H + h) * p_.Tn + t;
    for (int64_t i = 0; i < n; ++i) {
      T* y = out_.at(b, h, t + i);
      const double count = ws.counts[i];
      if (count == 0.0 || !p_.query_visible(b, t + i)) {
        den[i] = T(0);
        std::fill_n(y, p_.dv, T(0));
        continue;
      }
      T value = den[i] = ws.den[i];
      ++ws.rows;
      const double ratio = static_cast<double>(value) / count;
      if (ratio < ws.smallest) ws.smallest = ratio;
      const T bound = static_cast<T>(p_.floor * count);
      if (p_.floor > 0.0) {
        if (value < bound) {
          value = bound;
          ++ws.unsafe;
        }
      } else if (value <= T(0)) {
        ++ws.unsafe;
      }
      const T inverse = T(1) / value;
#pragma omp simd
      for (int64_t j = 0; j < p_.dv; ++j) y[j] *= inverse;
    }
  }

  const Problem<T>& p_;
  Plan<T>& plan_;
  Rows<T> out_;
  T* den_;
};

}  // namespace

void rmfa_forward(const RmfaForward& x) {
  dispatch(x.in.q->dtype(), [&](auto zero) {
    using T = decltype(zero);
    Problem<T> problem(x.in);
    problem.find_signs();
    Arena arena(x.scratch.data());
    Plan<T> plan(arena, problem, false);
    Forward<T>(problem, plan, x.out, x.den).run();
    write_statistics(plan.workspaces, x.stats->data<double>());
  });
}

Support rmfa_forward_supports(const RmfaOperands& in) {
  const DType dtype = in.q->dtype();
  if (dtype != DType::float32 && dtype != DType::float64) {
    return {false, std::string("the CPU kernel takes float32 and float64, not ") + name(dtype)};
  }
  if (in.k->dtype() != dtype || in.v->dtype() != dtype) return {false, "operands differ in dtype"};
  if (!in.args.levels.empty() && in.args.levels[0] > 0 &&
      (in.omega->dtype() != dtype || in.weight->dtype() != dtype)) {
    return {false, "the draw's dtype differs from the operands'"};
  }
  return {};
}

size_t rmfa_forward_scratch(const RmfaOperands& in) {
  return dispatch(in.q->dtype(),
                  [&](auto zero) { return scratch_of(Problem<decltype(zero)>(in), false); });
}

}  // namespace macgrad::cpu
