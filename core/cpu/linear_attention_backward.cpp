// Linear attention, backward, on given features or on functions of projections. With G = [g, u], g
// = dO/den and u = -(dO·O)/den (0 where the denominator was floored): dΦ_q = G·stateᵀ, R = Φ_qᵀ G,
// dΦ_k = V̄ Rᵀ, dV = Φ_k R. The gradient of log φ is φ times that of φ, and that of ℓ_j is that of
// key j's weight times it.
//
// Causal: a forward scan with the state of earlier keys gives dΦ_q; a reverse scan with the state R
// of later queries gives the keys' gradients. R is kept in units of the shift c of the keys that it
// still meets, so that both factors of their product are at most 1; the forward scan leaves c of
// every block. Shape letters and shifts: core/cpu/linear_attention_problem.h.
#include "macgrad/core/cpu/linear_attention_problem.h"

namespace macgrad::cpu {
namespace {

using namespace linear;

template <class T>
class Backward {
 public:
  /// Gradients of the rows go to dq and dk: features, or what features are computed from.
  template <class Call>
  Backward(const Problem<T>& problem, Plan<T>& plan, const Call& x, const Tensor& dq,
           const Tensor& dk, const Kept<T>& kept)
      : p_(problem),
        plan_(plan),
        out_(x.out),
        grad_(x.grad),
        sums_(x.sums->template data<double>()),
        dq_(dq),
        dk_(dk),
        dv_(x.dv),
        dl_(problem.weighted ? x.dlog_weight->template data<double>() : nullptr),
        kept_(kept) {}

  void run() {
    rmfa::for_tasks(p_.B * p_.H, [&](int64_t head, size_t slot) {
      const Task task{head / p_.H, head % p_.H, plan_.workspaces[slot], plan_.keys[slot],
                      plan_.queries[slot]};
      Workspace<T>& ws = task.ws;
      p_.reset(ws, task.keys);
      task.queries.reset();
      ws.floored = 0.0;
      const int64_t early = p_.causal ? p_.keys_before(0) : p_.S;
      if (kept_)
        kept_.read(head, task.keys, ws);
      else
        p_.add_keys(task.b, task.h, 0, early, ws, task.keys);
      if (p_.causal) {
        for (int64_t t = 0; t < p_.Tn; t += p_.block) scan_queries(task, t);
        remember(ws, p_.blocks());
        for (int64_t i = p_.blocks() - 1; i >= 0; --i) scan_keys(task, i * p_.block);
      } else {
        for (int64_t t = 0; t < p_.Tn; t += p_.block) pull_queries(task, t);
      }
      for (int64_t s = 0; s < early; s += p_.block)
        pull_keys(task, s, std::min(p_.block, early - s));
    });
  }

 private:
  using Inner = typename Problem<T>::Inner;
  struct Task {
    int64_t b, h;
    Workspace<T>& ws;
    const State<T>&keys, &queries;
  };

  /// g into block.v and u into block.u of a block of queries in units of their shift; gh: what a
  /// floor pulls on the weights. Returns false where all are 0.
  bool load_cotangents(const Task& task, int64_t t, Block<T>& block) const {
    Workspace<T>& ws = task.ws;
    const double* sums = sums_ + ((task.b * p_.H + task.h) * p_.Tn + t) * 3;
    block.v = ws.g;
    block.ldv = std::max<int64_t>(p_.dv, 1);
    block.u = ws.gu;
    bool any = false;
    for (int64_t i = 0; i < block.n; ++i, sums += 3) {
      T* g = ws.g + i * p_.dv;
      ws.gu[i] = T(0);
      ws.gh[i] = 0.0;
      if (!live(task, t + i)) {
        std::fill_n(g, p_.dv, T(0));
        continue;
      }
      any = true;
      const bool quotient = p_.args.normaliser == Normaliser::quotient;
      const double scale = quotient ? std::exp(ws.shift[i] - sums[1]) / sums[0]
                                    : p_.args.factor * std::exp(ws.shift[i]);
      const T* dy = grad_.at(task.b, task.h, t + i);
      const T* y = out_.at(task.b, task.h, t + i);
      const auto factor = static_cast<T>(scale);
      T sum = 0;
#pragma omp simd reduction(+ : sum)
      for (int64_t e = 0; e < p_.dv; ++e) {
        g[e] = factor * dy[e];
        sum += dy[e] * y[e];
      }
      const auto dot = static_cast<double>(sum);
      if (!quotient) continue;
      if (sums[2] != kFloored)
        ws.gu[i] = static_cast<T>(-dot * scale);
      else
        ws.gh[i] = -dot * scale * p_.args.floor;
    }
    return any;
  }
  /// Whether query t is valid and sees a key.
  bool live(const Task& task, int64_t t) const {
    const double* sums = sums_ + ((task.b * p_.H + task.h) * p_.Tn + t) * 3;
    return sums[2] != kNone;
  }
  /// Whether the forward kernel summed query i of a causal block in log space.
  bool is_lost(const Task& task, int64_t t, int64_t i) const {
    return sums_[((task.b * p_.H + task.h) * p_.Tn + t + i) * 3 + 2] == kRecomputed;
  }

  /// Writes dφ (n, C), times `x` unless it is null, as the gradient of a block's features or, where
  /// they are computed here, of its rows; dφ is then overwritten.
  void write_features(const Rows<T>& d, const Task& task, int64_t t, const Block<T>& block, T* dphi,
                      const T* x) const {
    if (p_.projection) {
      if (x)
#pragma omp simd
        for (int64_t i = 0; i < block.n * p_.C; ++i) dphi[i] *= x[i];
      p_.projection.pull(task.h, block.n, block.x, dphi, d.at(task.b, task.h, t), d.ld());
      return;
    }
    for (int64_t i = 0; i < block.n; ++i) {
      T* y = d.at(task.b, task.h, t + i);
      const T* from = dphi + i * p_.C;
      if (!x) {
        std::copy_n(from, p_.M, y);
        continue;
      }
#pragma omp simd
      for (int64_t m = 0; m < p_.M; ++m) y[m] = x[i * p_.C + m] * from[m];
    }
  }
  int64_t width() const {
    return std::max<int64_t>(p_.C, 1);
  }

  /// dφ of queries that see all keys; adds them to the state of queries.
  void pull_queries(const Task& task, int64_t t) const {
    Workspace<T>& ws = task.ws;
    const int64_t n = std::min(p_.block, p_.Tn - t);
    Block<T> q;
    p_.load_queries(task.b, task.h, t, n, ws, q);
    p_.shift_queries(task.b, t, q, ws);
    if (*task.keys.usum > 0.0 && load_cotangents(task, t, q)) {
      rmfa::pull_inputs(p_.map, q, task.keys, static_cast<T*>(nullptr), ws.dphi, width(), ws.row);
      write_features(dq_, task, t, q, ws.dphi, p_.log ? ws.query : nullptr);
      rmfa::accumulate(p_.map, q, task.queries, ws.row);
      for (int64_t i = 0; i < n; ++i) ws.floored += ws.gh[i];
    }
    zero_queries(task, t, n);
  }

  /// Gradients of keys that all queries of the state see, in units of ws.c and ws.level.
  void pull_keys(const Task& task, int64_t s, int64_t n) const {
    Workspace<T>& ws = task.ws;
    Block<T> k;
    if (p_.load_keys(task.b, task.h, s, n, ws, k) > 0) {
      read_queries(task, s, k);
      finish_keys(task, s, k);
    }
    zero_keys(task, s, n);
  }

  /// The state's part: dv, dφ_k into ws.dphi and, of plain features, dℓ.
  void read_queries(const Task& task, int64_t s, const Block<T>& k) const {
    Workspace<T>& ws = task.ws;
    if (p_.log) p_.key_features(k, ws, p_.weighted ? ws.l : nullptr, ws.c, ws.key);
    T* dv = dv_.at(task.b, task.h, s);
    rmfa::read(p_.map, k, task.queries, dv, dv_.ld(), ws.den, ws.row);
    rmfa::pull_inputs(p_.map, k, task.queries, static_cast<T*>(nullptr), ws.dphi, width(), ws.row);
    if (p_.log) {
      for (int64_t i = 0; i < k.n * p_.C; ++i) ws.dphi[i] *= ws.key[i];
    } else if (p_.weighted) {
      for (int64_t j = 0; j < k.n; ++j) {
        const auto w = static_cast<T>(growth(ws.l[j], ws.level));
        for (int64_t e = 0; e < p_.dv; ++e) dv[j * dv_.ld() + e] *= w;
        for (int64_t m = 0; m < p_.C; ++m) ws.dphi[j * p_.C + m] *= w;
        ws.total[j] = static_cast<double>(w) * (static_cast<double>(ws.den[j]) + ws.floored);
      }
    }
  }
  /// dφ_k from ws.dphi, and dℓ: of log-features their sum, of plain ones v·dv and what came through
  /// the denominator, which ws.total holds.
  void finish_keys(const Task& task, int64_t s, const Block<T>& k) const {
    Workspace<T>& ws = task.ws;
    if (p_.weighted) write_weights(task, s, k);
    write_features(dk_, task, s, k, ws.dphi, nullptr);
  }
  void write_weights(const Task& task, int64_t s, const Block<T>& k) const {
    Workspace<T>& ws = task.ws;
    double* dl = dl_ + (task.b * p_.H + task.h) * p_.S + s;
    for (int64_t j = 0; j < k.n; ++j) {
      double sum = p_.log ? 0.0 : ws.total[j];
      if (p_.log)
        for (int64_t m = 0; m < p_.C; ++m) sum += static_cast<double>(ws.dphi[j * p_.C + m]);
      else
        for (int64_t e = 0; e < p_.dv; ++e)
          sum += static_cast<double>(k.v[j * k.ldv + e]) *
                 static_cast<double>(dv_.at(task.b, task.h, s + j)[e]);
      dl[j] = sum;
    }
  }

  void remember(const Workspace<T>& ws, int64_t index) const {
    std::copy_n(ws.c, p_.C, ws.history + index * p_.C);
    ws.levels[index] = ws.level;
  }
  void recall(Workspace<T>& ws, int64_t index) const {
    std::copy_n(ws.history + index * p_.C, p_.C, ws.c);
    ws.level = ws.levels[index];
  }

  /// Loads a causal block, its cotangents g, u and those of the kernel's values, all 0 in rows that
  /// are summed in log space.
  Inner load_inner(const Task& task, int64_t t, int64_t n) const {
    Workspace<T>& ws = task.ws;
    Inner in = p_.load_inner(task.b, task.h, t, n, 0.0, ws);
    load_cotangents(task, t, in.q);
    for (int64_t i = 0; i < n; ++i) {
      if (!is_lost(task, t, i)) continue;
      std::fill_n(ws.g + i * p_.dv, p_.dv, T(0));
      ws.gu[i] = T(0);
    }
    if (in.k.n == 0) return in;
    gemm(false, true, n, in.k.n, p_.dv, T(1), in.q.v, in.q.ldv, in.k.v, in.k.ldv, T(0),
         ws.cotangents, p_.block);
    p_.for_each_pair(in, ws, ws.cotangents,
                     [&](T value, int64_t i, int64_t) { return value + ws.gu[i]; });
    return in;
  }
  /// Cotangents of plain queries as the state's part meets them.
  void keep_cotangents(const Inner& in, Workspace<T>& ws) const {
    if (!p_.weighted || p_.log) return;
    for (int64_t i = 0; i < in.q.n; ++i) {
      for (int64_t e = 0; e < p_.dv; ++e) ws.g[i * p_.dv + e] *= ws.keep[i];
      ws.gu[i] *= ws.keep[i];
      ws.gh[i] *= static_cast<double>(ws.keep[i]);
    }
  }
  /// dφ (n, C) of one side of a causal block += what comes through the scores; `x` are the features
  /// that the state's part of log-features was shifted with, `inner` the scores'.
  void add_inner(bool of_keys, const Inner& in, Workspace<T>& ws) const {
    const int64_t n = of_keys ? in.k.n : in.q.n, other = of_keys ? in.q.n : in.k.n;
    T* d = p_.log ? ws.inner_dphi : ws.dphi;
    gemm(of_keys, false, n, p_.C, other, T(1), ws.cotangents, p_.block, of_keys ? in.qx : in.kx,
         of_keys ? in.ldq : in.ldk, p_.log ? T(0) : T(1), d, width());
    if (!p_.log) return;
    const T* x = of_keys ? in.kx : in.qx;
#pragma omp simd
    for (int64_t i = 0; i < n * p_.C; ++i) ws.dphi[i] += x[i] * d[i];
  }

  /// Calls f(i, g, u) with the cotangents of each lost row of a causal block in units of the shift
  /// that the forward kernel found for it.
  template <class F>
  void for_each_lost(const Task& task, int64_t t, int64_t n, F&& f) const {
    if (!p_.log) return;
    for (int64_t i = 0; i < n; ++i) {
      if (!is_lost(task, t, i)) continue;
      const double* sums = sums_ + ((task.b * p_.H + task.h) * p_.Tn + t + i) * 3;
      const bool quotient = p_.args.normaliser == Normaliser::quotient;
      const double scale = quotient ? 1.0 / sums[0] : p_.args.factor * std::exp(sums[1]);
      const T* dy = grad_.at(task.b, task.h, t + i);
      const T* y = out_.at(task.b, task.h, t + i);
      double u = 0.0;
      for (int64_t e = 0; e < p_.dv; ++e) {
        task.ws.row[e] = static_cast<T>(scale * static_cast<double>(dy[e]));
        if (quotient) u -= scale * static_cast<double>(dy[e]) * static_cast<double>(y[e]);
      }
      f(i, task.ws.row, u);
    }
  }
  double pulled(const T* g, double u, const T* values, double sum) const {
    double total = u * sum;
    for (int64_t e = 0; e < p_.dv; ++e)
      total += static_cast<double>(g[e]) * static_cast<double>(values[e]);
    return total;
  }

  /// dφ of a causal block of queries; `keys` holds the keys before them and is advanced.
  void scan_queries(const Task& task, int64_t t) const {
    Workspace<T>& ws = task.ws;
    const State<T>& keys = task.keys;
    const int64_t n = std::min(p_.block, p_.Tn - t);
    remember(ws, t / p_.block);
    const Inner in = load_inner(task, t, n);
    keep_cotangents(in, ws);
    rmfa::pull_inputs(p_.map, in.q, keys, static_cast<T*>(nullptr), ws.dphi, width(), ws.row);
    if (p_.log)
      for (int64_t i = 0; i < n * p_.C; ++i) ws.dphi[i] *= ws.query[i];
    if (in.k.n > 0) add_inner(false, in, ws);
    for_each_lost(task, t, n, [&](int64_t i, const T* g, double u) {
      T* d = ws.dphi + i * p_.C;
      std::fill_n(d, p_.C, T(0));
      double cotangent = 0;
      p_.exact_row(
          i, in, ws,
          [&](int64_t m, double f) {
            d[m] += static_cast<T>(f * pulled(g, u, keys.kv + m * p_.dv, keys.fsum[m]));
          },
          [&](int64_t j, int64_t m, double f) {
            if (m == 0) cotangent = pulled(g, u, in.k.v + j * in.k.ldv, 1.0);
            d[m] += static_cast<T>(f * cotangent);
          });
    });
    write_features(dq_, task, t, in.q, ws.dphi, nullptr);
    zero_queries(task, t, n);
    if (in.k.n > 0) p_.add_block(in.k, ws, task.keys);
  }

  /// Gradients of the keys that begin to be seen in a causal block; `queries` holds the queries
  /// after it, in units of the keys up to its end, and is advanced.
  void scan_keys(const Task& task, int64_t t) const {
    Workspace<T>& ws = task.ws;
    const State<T>& queries = task.queries;
    const int64_t n = std::min(p_.block, p_.Tn - t), index = t / p_.block;
    recall(ws, index);
    const Inner in = load_inner(task, t, n);
    const Block<T>& k = in.k;
    if (k.n > 0) {
      recall(ws, index + 1);
      read_queries(task, in.first, k);
      p_.inner_scores(in, ws);
      T* dv = dv_.at(task.b, task.h, in.first);
      gemm(true, false, k.n, p_.dv, n, T(1), ws.scores, p_.block, in.q.v, in.q.ldv, T(1), dv,
           dv_.ld());
      add_inner(true, in, ws);
      if (p_.weighted && !p_.log)
        for (int64_t i = 0; i < n; ++i)
          for (int64_t j = 0; j < in.end(i); ++j)
            ws.total[j] += static_cast<double>(ws.scores[i * p_.block + j] * ws.gu[i]) +
                           static_cast<double>(ws.weights[i * p_.block + j]) * ws.gh[i];
      recall(ws, index);
      const double* c_end = ws.history + (index + 1) * p_.C;
      const double level = growth(ws.level, ws.levels[index + 1]);
      p_.scale(queries, [&](int64_t m) { return p_.log ? growth(ws.c[m], c_end[m]) : level; });
      ws.floored *= level;
    }
    for_each_lost(task, t, n, [&](int64_t i, const T* g, double u) {
      double cotangent = 0;
      p_.exact_row(
          i, in, ws,
          [&](int64_t m, double f) {
            for (int64_t e = 0; e < p_.dv; ++e)
              queries.kv[m * p_.dv + e] += static_cast<T>(f) * g[e];
            queries.fsum[m] += f * u;
          },
          [&](int64_t j, int64_t m, double f) {
            if (m == 0) cotangent = pulled(g, u, k.v + j * k.ldv, 1.0);
            ws.dphi[j * p_.C + m] += static_cast<T>(f * cotangent);
            T* dv = dv_.at(task.b, task.h, in.first + j);
            for (int64_t e = 0; e < p_.dv; ++e) dv[e] += static_cast<T>(f) * g[e];
          });
    });
    if (k.n > 0) {
      finish_keys(task, in.first, k);
      zero_keys(task, in.first, k.n);
    }
    keep_cotangents(in, ws);
    rmfa::accumulate(p_.map, in.q, queries, ws.row);
    for (int64_t i = 0; i < n; ++i) ws.floored += ws.gh[i];
  }

  void zero_queries(const Task& task, int64_t t, int64_t n) const {
    for (int64_t i = 0; i < n; ++i)
      if (!live(task, t + i)) std::fill_n(dq_.at(task.b, task.h, t + i), dq_.columns, T(0));
  }
  /// After load_keys of the same block.
  void zero_keys(const Task& task, int64_t s, int64_t n) const {
    for (int64_t j = 0; j < n; ++j) {
      if (task.ws.u[j] != T(0)) continue;
      std::fill_n(dk_.at(task.b, task.h, s + j), dk_.columns, T(0));
      std::fill_n(dv_.at(task.b, task.h, s + j), p_.dv, T(0));
      if (p_.weighted) dl_[(task.b * p_.H + task.h) * p_.S + s + j] = 0.0;
    }
  }

  const Problem<T>& p_;
  Plan<T>& plan_;
  Rows<const T> out_, grad_;
  const double* sums_;
  Rows<T> dq_, dk_, dv_;
  double* dl_;
  Kept<T> kept_;
};

}  // namespace

void linear_attention_backward(const LinearAttentionBackward& x) {
  rmfa::dispatch(x.in.phi_q->dtype(), [&](auto zero) {
    using T = decltype(zero);
    const Problem<T> problem(x.in);
    Arena arena(x.scratch.data());
    Plan<T> plan(arena, problem, true);
    Backward<T>(problem, plan, x, x.dphi_q, x.dphi_k, {}).run();
  });
}

Support linear_attention_backward_supports(const LinearAttentionOperands& in) {
  return linear_attention_forward_supports(in);
}

size_t linear_attention_backward_scratch(const LinearAttentionOperands& in) {
  return rmfa::dispatch(in.phi_q->dtype(),
                        [&](auto zero) { return scratch_of(Problem<decltype(zero)>(in), true); });
}

void projected_attention_backward(const ProjectedAttentionBackward& x) {
  rmfa::dispatch(x.in.q->dtype(), [&](auto zero) {
    using T = decltype(zero);
    const Problem<T> problem = projected_problem<T>(x.in);
    Arena arena(x.scratch.data());
    Plan<T> plan(arena, problem, true);
    Backward<T>(problem, plan, x, x.dq, x.dk, Kept<T>(x.state, x.state_sums)).run();
  });
}

Support projected_attention_backward_supports(const ProjectedAttentionOperands& in) {
  return projected_attention_forward_supports(in);
}

size_t projected_attention_backward_scratch(const ProjectedAttentionOperands& in) {
  return rmfa::dispatch(in.q->dtype(), [&](auto zero) {
    return scratch_of(projected_problem<decltype(zero)>(in), true);
  });
}

}  // namespace macgrad::cpu
