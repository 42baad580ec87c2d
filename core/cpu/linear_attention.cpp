// Linear attention, forward, on given features or on functions of projections: out = Φ_q (Φ_kᵀ V̄),
// first dv columns over the last. Memory is one state (features × values) and one block of tokens
// per thread. Causal attention walks blocks of queries: the state of all earlier keys plus the
// masked product inside the block. Shape letters and shifts: core/cpu/linear_attention_problem.h.
#include "macgrad/core/cpu/linear_attention_problem.h"

namespace macgrad::cpu {
namespace {

using namespace linear;

template <class T>
class Forward {
 public:
  Forward(const Problem<T>& problem, Plan<T>& plan, const Tensor& out, const Tensor& sums,
          const Kept<T>& kept)
      : p_(problem), plan_(plan), out_(out), sums_(sums.data<double>()), kept_(kept) {}

  void run() {
    rmfa::for_tasks(p_.B * p_.H, [&](int64_t head, size_t slot) {
      const int64_t b = head / p_.H, h = head % p_.H;
      Workspace<T>& ws = plan_.workspaces[slot];
      const State<T>& state = plan_.keys[slot];
      p_.reset(ws, state);
      p_.add_keys(b, h, 0, p_.causal ? p_.keys_before(0) : p_.S, ws, state);
      if (kept_) kept_.write(head, state, ws);
      for (int64_t t = 0; t < p_.Tn; t += p_.block) {
        const int64_t n = std::min(p_.block, p_.Tn - t);
        std::fill_n(ws.again, n, false);
        if (p_.causal)
          scan(b, h, t, n, ws, state);
        else
          read_all(b, h, t, n, ws, state);
        finish(b, h, t, n, ws);
      }
    });
  }

 private:
  /// Queries that see every key.
  void read_all(int64_t b, int64_t h, int64_t t, int64_t n, Workspace<T>& ws,
                const State<T>& state) const {
    std::fill_n(ws.total, n, *state.usum);
    Block<T> q;
    if (*state.usum == 0.0 || p_.load_queries(b, h, t, n, ws, q) == 0) return;
    p_.shift_queries(b, t, q, ws);
    rmfa::read(p_.map, q, state, out_.at(b, h, t), out_.ld(), ws.den, ws.row);
  }

  /// A causal block; adds its keys to the state.
  void scan(int64_t b, int64_t h, int64_t t, int64_t n, Workspace<T>& ws,
            const State<T>& state) const {
    const auto in = p_.load_inner(b, h, t, n, *state.usum, ws);
    T* out = out_.at(b, h, t);
    rmfa::read(p_.map, in.q, state, out, out_.ld(), ws.den, ws.row);
    if (p_.weighted && !p_.log)
      for (int64_t i = 0; i < n; ++i) {
        ws.den[i] *= ws.keep[i];
        for (int64_t e = 0; e < p_.dv; ++e) out[i * out_.ld() + e] *= ws.keep[i];
      }
    if (in.k.n > 0) {
      p_.inner_scores(in, ws);
      for (int64_t i = 0; i < n; ++i) {
        const T* row = ws.scores + i * p_.block;
        T sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t j = 0; j < in.k.n; ++j) sum += row[j];
        ws.den[i] += sum;
      }
      gemm(false, false, n, p_.dv, in.k.n, T(1), ws.scores, p_.block, in.k.v, in.k.ldv, T(1), out,
           out_.ld());
    }
    if (p_.log)
      for (int64_t i = 0; i < n; ++i)
        if (ws.total[i] > 0.0 && p_.query_visible(b, t + i) && ws.den[i] < kSmallest)
          recompute(b, h, t, i, in, ws, state);
    if (in.k.n > 0) p_.add_block(in.k, ws, state);
  }

  void recompute(int64_t b, int64_t h, int64_t t, int64_t i, const typename Problem<T>::Inner& in,
                 Workspace<T>& ws, const State<T>& state) const {
    ++ws.recomputed;
    ws.again[i] = true;
    T* y = out_.at(b, h, t + i);
    std::fill_n(y, p_.dv, T(0));
    double den = 0.0;
    const auto add = [&](double f, double sum, const T* values) {
      den += f * sum;
      for (int64_t e = 0; e < p_.dv; ++e) y[e] += static_cast<T>(f) * values[e];
    };
    const double s = p_.exact_row(
        i, in, ws, [&](int64_t m, double f) { add(f, state.fsum[m], state.kv + m * p_.dv); },
        [&](int64_t j, int64_t, double f) { add(f, 1.0, in.k.v + j * in.k.ldv); });
    ws.shift[i] = s;
    ws.den[i] = static_cast<T>(den);
  }

  /// Divides a block of numerators by its denominators, floored; ws.total are the weights.
  void finish(int64_t b, int64_t h, int64_t t, int64_t n, Workspace<T>& ws) const {
    double* sums = sums_ + ((b * p_.H + h) * p_.Tn + t) * 3;
    for (int64_t i = 0; i < n; ++i, sums += 3) {
      T* y = out_.at(b, h, t + i);
      if (ws.total[i] == 0.0 || !p_.query_visible(b, t + i)) {
        std::fill_n(sums, 3, kNone);
        std::fill_n(y, p_.dv, T(0));
        continue;
      }
      const auto value = static_cast<double>(ws.den[i]), bound = p_.args.floor * ws.total[i];
      const bool quotient = p_.args.normaliser == Normaliser::quotient;
      const bool floored = p_.args.floor > 0.0 && value < bound;
      ++ws.rows;
      ws.unsafe += quotient && (p_.args.floor > 0.0 ? floored : value <= 0.0);
      if (quotient) ws.smallest = std::min(ws.smallest, p_.log ? value : value / ws.total[i]);
      sums[0] = floored ? bound : value;
      sums[1] = ws.shift[i];
      sums[2] = floored ? kFloored : ws.again[i] ? kRecomputed : kUsed;
      const auto factor =
          static_cast<T>(quotient ? 1.0 / sums[0] : p_.args.factor * std::exp(ws.shift[i]));
#pragma omp simd
      for (int64_t e = 0; e < p_.dv; ++e) y[e] *= factor;
    }
  }

  const Problem<T>& p_;
  Plan<T>& plan_;
  Rows<T> out_;
  double* sums_;
  Kept<T> kept_;
};

template <class T>
void run(const Problem<T>& problem, const Tensor& out, const Tensor& sums, const Tensor& stats,
         const Kept<T>& kept, const Scratch& scratch) {
  Arena arena(scratch.data());
  Plan<T> plan(arena, problem, false);
  Forward<T>(problem, plan, out, sums, kept).run();
  rmfa::write_statistics(plan.workspaces, stats.data<double>());
  for (const Workspace<T>& ws : plan.workspaces)
    stats.data<double>()[2] += static_cast<double>(ws.recomputed);
}

Support supports_dtype(const Tensor& q) {
  if (q.dtype() == DType::float32 || q.dtype() == DType::float64) return {};
  return {false, std::string("the CPU kernel takes float32 and float64, not ") + name(q.dtype())};
}

}  // namespace

void linear_attention_forward(const LinearAttentionForward& x) {
  rmfa::dispatch(x.in.phi_q->dtype(), [&](auto zero) {
    using T = decltype(zero);
    run(Problem<T>(x.in), x.out, x.sums, x.stats, Kept<T>(), x.scratch);
  });
}

Support linear_attention_forward_supports(const LinearAttentionOperands& in) {
  return supports_dtype(in.phi_q);
}

size_t linear_attention_forward_scratch(const LinearAttentionOperands& in) {
  return rmfa::dispatch(in.phi_q->dtype(),
                        [&](auto zero) { return scratch_of(Problem<decltype(zero)>(in), false); });
}

void projected_attention_forward(const ProjectedAttentionForward& x) {
  rmfa::dispatch(x.in.q->dtype(), [&](auto zero) {
    using T = decltype(zero);
    run(projected_problem<T>(x.in), x.out, x.sums, x.stats, Kept<T>(x.state, x.state_sums),
        x.scratch);
  });
}

Support projected_attention_forward_supports(const ProjectedAttentionOperands& in) {
  return supports_dtype(in.q);
}

size_t projected_attention_forward_scratch(const ProjectedAttentionOperands& in) {
  return rmfa::dispatch(in.q->dtype(), [&](auto zero) {
    return scratch_of(projected_problem<decltype(zero)>(in), false);
  });
}

}  // namespace macgrad::cpu
