// Rows of softmax attention, RMFA, its feature map, linear attention and functions of projections,
// against their definitions.
// Shape letters as in autograd/attention.h.

#include <algorithm>
#include <cmath>

#include "macgrad/autograd/projected_attention.h"
#include "macgrad/tests/op_cases.h"

namespace macgrad::testing {
namespace {

struct Problem {
  std::string name;
  int64_t B = 2, H = 2, T = 4, S = 4, d = 4, dv = 3;
  bool causal = false;
  bool key_mask = false;
  bool query_mask = false;
  double dropout = 0.0;
  double scale = 0.75;  // of softmax attention

  // Sequence 0 ends one key and one query early; in sequence 1 the first key is hidden too, and
  // no key at all is left when there is only one.
  AttentionMask mask() const {
    AttentionMask m;
    m.causal = causal;
    const auto make = [&](int64_t n, bool first_too) {
      std::vector<bool> v(static_cast<size_t>(B * n), true);
      for (int64_t b = 0; b < B; ++b) {
        if (n > 1 && b % 2 == 0) v[static_cast<size_t>(b * n + n - 1)] = false;
        if (n > 0 && b % 2 == 1 && first_too) v[static_cast<size_t>(b * n)] = false;
      }
      return placed(Tensor::from_vector(v, {B, n}));
    };
    if (key_mask) m.key_valid = make(S, true);
    if (query_mask) m.query_valid = make(T, false);
    return m;
  }

  std::vector<OpInput> inputs(double range) const {
    return {{{B, H, T, d}, -range, range}, {{B, H, S, d}, -range, range}, {{B, H, S, dv}}};
  }
};

const DrawKey kDropout{5, 2, 7, 1};

// Attention with weights kernel(q row, k row, h)·weight(key) by definition, key counted over batch
// and heads. `divisor` turns (sum of weights, sum of weight(key) over visible keys) into the
// denominator.
std::vector<double> attention_values(
    const Problem& p, const Values& x,
    const std::function<double(const double*, const double*, int64_t)>& kernel,
    const std::function<double(double, double)>& divisor,
    const std::function<double(int64_t)>& weight = [](int64_t) { return 1.0; }) {
  const AttentionMask mask = p.mask();
  const auto shown = [](const Tensor& m, int64_t b, int64_t i) {
    return !m.defined() || m.at({b, i}) != 0;
  };
  std::vector<double> out;
  for (int64_t b = 0; b < p.B; ++b) {
    for (int64_t h = 0; h < p.H; ++h) {
      const int64_t head = b * p.H + h;
      for (int64_t i = 0; i < p.T; ++i) {
        std::vector<double> y(static_cast<size_t>(p.dv), 0.0);
        double total = 0, count = 0;
        for (int64_t j = 0; j < p.S; ++j) {
          if (!shown(mask.key_valid, b, j) || !shown(mask.query_valid, b, i)) continue;
          if (p.causal && j > i + p.S - p.T) continue;
          const double of_key = weight(head * p.S + j);
          const double w = of_key * kernel(&x[0][static_cast<size_t>((head * p.T + i) * p.d)],
                                           &x[1][static_cast<size_t>((head * p.S + j) * p.d)], h);
          total += w;
          count += of_key;
          const auto element = static_cast<uint64_t>((head * p.T + i) * p.S + j);
          const bool kept =
              p.dropout == 0 || uniform_from_bits(random_bits(kDropout, element)) >= p.dropout;
          if (!kept) continue;
          for (int64_t c = 0; c < p.dv; ++c)
            y[static_cast<size_t>(c)] +=
                w / (1 - p.dropout) * x[2][static_cast<size_t>((head * p.S + j) * p.dv + c)];
        }
        for (double v : y) out.push_back(count == 0 ? 0.0 : v / divisor(total, count));
      }
    }
  }
  return out;
}

double dot(const double* a, const double* b, int64_t n) {
  double t = 0;
  for (int64_t i = 0; i < n; ++i) t += a[i] * b[i];
  return t;
}

OpCase fused(const std::string& name, const std::string& op, std::vector<OpInput> inputs,
             Function f) {
  OpCase row;
  row.name = name;
  row.op = op;
  row.inputs = std::move(inputs);
  row.f = std::move(f);
  row.fused = true;
  row.bfloat16 = false;  // the kernels take float32 and float64
  row.tol32 = 1e-5;
  return row;
}

const std::vector<Problem>& problems() {
  static const std::vector<Problem> list = {
      {.name = "full"},
      {.name = "causal", .T = 5, .S = 5, .causal = true},
      {.name = "padding", .key_mask = true, .query_mask = true},
      {.name = "causal padding",
       .B = 2,
       .T = 5,
       .S = 5,
       .causal = true,
       .key_mask = true,
       .query_mask = true},
      {.name = "cross", .T = 3, .S = 6},
      {.name = "causal T < S", .T = 3, .S = 5, .causal = true},
      {.name = "causal T > S", .T = 5, .S = 3, .causal = true, .key_mask = true},
      {.name = "one key", .T = 2, .S = 1, .key_mask = true},
  };
  return list;
}

std::vector<OpInput> long_inputs(int64_t n, double range) {
  return {{{1, 2, n, 4}, -range, range}, {{1, 2, n, 4}, -range, range}, {{1, 2, n, 3}}};
}

void add_softmax_attention(OpCases& cases) {
  std::vector<Problem> list = problems();
  list.push_back({.name = "dropout", .dropout = 0.25});
  list.push_back({.name = "dropout causal padding",
                  .T = 5,
                  .S = 5,
                  .causal = true,
                  .key_mask = true,
                  .dropout = 0.5});
  list.push_back({.name = "negative scale", .T = 5, .S = 5, .causal = true, .scale = -0.75});
  list.push_back({.name = "scale 0", .key_mask = true, .scale = 0});
  for (const Problem& p : list) {
    OpCase row = fused(
        "softmax_attention " + p.name, "softmax_attention", p.inputs(1.5), [p](const Variables& x) {
          return softmax_attention(x[0], x[1], x[2], p.mask(), p.scale, p.dropout, kDropout);
        });
    row.reference = [p](const Values& x) {
      return attention_values(
          p, x,
          [&](const double* q, const double* k, int64_t) {
            return std::exp(p.scale * dot(q, k, p.d));
          },
          [](double total, double) { return total; });
    };
    if (!p.key_mask) {
      row.sized = [](int64_t n) { return long_inputs(n, 1.5); };
      row.f = [p](const Variables& x) {
        Problem q = p;
        q.B = x[0].size(0);
        q.T = x[0].size(2);
        q.S = x[1].size(2);
        return softmax_attention(x[0], x[1], x[2], q.mask(), q.scale, q.dropout, kDropout);
      };
    }
    cases.push_back(std::move(row));
  }
  const OpInput x{{1, 2, 3, 4}};
  cases.push_back(
      fused("softmax_attention x x x", "softmax_attention", {x}, [](const Variables& v) {
        return softmax_attention(v[0], v[0], v[0], {{}, {}, true}, 0.5);
      }));
  cases.push_back(
      fused("softmax_attention h g(h)", "softmax_attention", {x}, [](const Variables& v) {
        const Variable h = sin(v[0]);
        return softmax_attention(h, h * h, tanh(h), {}, 0.5) * h;
      }));
  cases.push_back(
      fused("softmax_attention of itself", "softmax_attention", {x}, [](const Variables& v) {
        const Variable y = softmax_attention(v[0], v[0], v[0], {}, 0.5);
        return softmax_attention(y, v[0], y, {{}, {}, true}, 0.5);
      }));
  // Heads as a model makes them: views of one wide projection.
  cases.push_back(
      fused("softmax_attention of head views", "softmax_attention", {{{2, 3, 12}}},
            [](const Variables& v) {
              const Variable heads = permute(reshape(v[0], {2, 3, 3, 2, 2}), {2, 0, 3, 1, 4});
              return softmax_attention(select(heads, 0, 0), select(heads, 0, 1),
                                       select(heads, 0, 2), {}, 0.5);
            }));
}

struct Draw {
  std::string name;
  RmfaArgs args;
  bool per_head = false;
};

// Kernels whose values stay well above 0 on |x| <= 0.5.
std::vector<Draw> draws() {
  return {{"merged", {.levels = {5, 3, 1}, .constant = 2.0}},
          {"linear", {.levels = {3, 3}, .constant = 2.0, .linear = 0.25}},
          {"heads floored", {.levels = {4, 1}, .constant = 2.0, .floor = 2.02}, true},
          {"linear only", {.levels = {}, .constant = 2.0, .linear = 0.5}},
          {"constant only", {.levels = {}, .constant = 1.5}}};
}

Tensor omega_of(const Draw& draw, int64_t H, int64_t d, DType dtype) {
  int64_t P = 0;
  for (int64_t m : draw.args.levels) P += m;
  return exact_signs(draw.per_head ? Shape{H, d, P} : Shape{d, P}, 60, dtype);
}

std::vector<double> weight_values(const Draw& draw) {
  const int64_t M = draw.args.levels.empty() ? 0 : draw.args.levels[0];
  const std::vector<double> some = {0.5, 0.375, 0.25, 0.25, 0.125};
  return {some.begin(), some.begin() + M};
}

Tensor weight_of(const Draw& draw, DType dtype) {
  const auto w = weight_values(draw);
  return placed(Tensor::from_values(w, {static_cast<int64_t>(w.size())}, dtype));
}

// phi(x), by the definition of RmfaArgs.
std::vector<double> features(const Draw& draw, const std::vector<double>& omega, const double* x,
                             int64_t d) {
  std::vector<double> phi = weight_values(draw);
  int64_t P = 0, column = 0;
  for (int64_t m : draw.args.levels) P += m;
  for (int64_t m : draw.args.levels) {
    for (int64_t f = 0; f < m; ++f, ++column) {
      double projection = 0;
      for (int64_t i = 0; i < d; ++i)
        projection += x[i] * omega[static_cast<size_t>(i * P + column)];
      phi[static_cast<size_t>(f)] *= projection;
    }
  }
  return phi;
}

Variable run_rmfa(const Problem& p, const Draw& draw, const Variables& x,
                  Tensor* statistics = nullptr) {
  Problem q = p;
  q.B = x[0].size(0);
  q.T = x[0].size(2);
  q.S = x[1].size(2);
  const DType dtype = x[0].dtype();
  return rmfa(x[0], x[1], x[2], q.mask(), omega_of(draw, x[0].size(1), x[0].size(3), dtype),
              weight_of(draw, dtype), draw.args, statistics);
}

void add_rmfa(OpCases& cases) {
  const auto list = draws();
  size_t turn = 0;
  const auto add_row = [&](const Problem& p, const Draw& draw) {
    OpCase row = fused(fmt::format("rmfa {} {}", p.name, draw.name), "rmfa", p.inputs(0.5),
                       [p, draw](const Variables& x) { return run_rmfa(p, draw, x); });
    row.reference = [p, draw](const Values& x) {
      const auto omega = omega_of(draw, p.H, p.d, DType::float64).to_vector<double>();
      const auto size = omega.size() / (draw.per_head ? static_cast<size_t>(p.H) : 1);
      return attention_values(
          p, x,
          [&](const double* q, const double* k, int64_t h) {
            const auto first = omega.begin() + (draw.per_head ? h : 0) * static_cast<int64_t>(size);
            const std::vector<double> own(first, first + static_cast<int64_t>(size));
            const auto a = features(draw, own, q, p.d), b = features(draw, own, k, p.d);
            return draw.args.constant + draw.args.linear * dot(q, k, p.d) +
                   dot(a.data(), b.data(), static_cast<int64_t>(a.size()));
          },
          [&](double total, double count) {
            return draw.args.floor > 0 ? std::max(total, draw.args.floor * count) : total;
          });
    };
    row.sized = [](int64_t n) { return long_inputs(n, 0.5); };
    if (p.key_mask) row.sized = {};
    cases.push_back(std::move(row));
  };
  for (const Problem& p : problems()) {
    add_row(p, list[turn++ % 3]);
    add_row(p, list[turn++ % 3]);
  }
  add_row({.name = "full"}, list[3]);
  add_row({.name = "causal padding", .causal = true, .key_mask = true}, list[3]);
  add_row({.name = "padding", .key_mask = true, .query_mask = true}, list[4]);
  add_row({.name = "causal", .causal = true}, list[4]);
  const OpInput x{{1, 2, 3, 4}, -0.5, 0.5};
  for (const bool causal : {false, true}) {
    const std::string text = causal ? " causal" : "";
    const Problem p{.name = "", .causal = causal};
    const Draw draw = list[0];
    cases.push_back(fused("rmfa x x x" + text, "rmfa", {x}, [=](const Variables& v) {
      return run_rmfa(p, draw, {v[0], v[0], v[0]});
    }));
    cases.push_back(fused("rmfa h g(h)" + text, "rmfa", {x}, [=](const Variables& v) {
      const Variable h = sin(v[0]);
      return run_rmfa(p, draw, {h, h * h, tanh(h)}) * h;
    }));
    cases.push_back(fused("rmfa of itself" + text, "rmfa", {x}, [=](const Variables& v) {
      const Variable y = run_rmfa(p, draw, {v[0], v[0], v[0]});
      return run_rmfa(p, draw, {y, v[0], y});
    }));
  }
}

// Rows of other lengths, where the mask does not depend on them.
template <class Inputs>
void set_sized(OpCase& row, const Problem& p, const Inputs& inputs) {
  if (p.key_mask) return;
  row.sized = [p, inputs](int64_t n) {
    Problem q = p;
    q.B = 1;
    q.T = q.S = n;
    return inputs(q);
  };
}

struct LinearForm {
  std::string name;
  LinearAttentionArgs args;
  bool weighted = false;  // has a key log-weight
};

// The floor is above the denominator of some rows and below that of others.
std::vector<LinearForm> linear_forms() {
  return {{"features", {.constant = 0.5}},
          {"log-features weighted", {.log_features = true, .constant = 0.75}, true},
          {"features weighted", {}, true},
          {"log-features", {.log_features = true}},
          {"floored weighted", {.constant = 0.25, .floor = 1.75}, true},
          {"log-features sum",
           {.log_features = true, .constant = 0.5, .normaliser = Normaliser::none, .factor = 0.25},
           true},
          {"sum", {.normaliser = Normaliser::none, .factor = -0.5}, true}};
}

Variable run_linear(const Problem& p, const LinearForm& form, const Variables& x) {
  Problem q = p;
  q.B = x[0].size(0);
  q.T = x[0].size(2);
  q.S = x[1].size(2);
  return linear_attention(x[0], x[1], x[2], form.weighted ? x[3] : Variable(), q.mask(), form.args);
}

void add_linear_attention(OpCases& cases) {
  const auto forms = linear_forms();
  const auto inputs_of = [](const Problem& p, const LinearForm& form) {
    // Features are positive, so that no denominator is near 0.
    const double low = form.args.log_features ? -1.5 : 0.125;
    std::vector<OpInput> inputs = {{{p.B, p.H, p.T, p.d}, low, 1.5},
                                   {{p.B, p.H, p.S, p.d}, low, 1.5},
                                   {{p.B, p.H, p.S, p.dv}}};
    if (form.weighted) inputs.push_back({{p.B, p.H, p.S}});
    return inputs;
  };
  const auto add_row = [&](const Problem& p, const LinearForm& form) {
    OpCase row =
        fused(fmt::format("linear_attention {} {}", p.name, form.name), "linear_attention",
              inputs_of(p, form), [p, form](const Variables& x) { return run_linear(p, form, x); });
    row.bfloat16 = true;
    row.reference = [p, form](const Values& x) {
      const LinearAttentionArgs& args = form.args;
      return attention_values(
          p, x,
          [&](const double* q, const double* k, int64_t) {
            if (!args.log_features) return dot(q, k, p.d) + args.constant;
            double value = args.constant;
            for (int64_t m = 0; m < p.d; ++m) value += std::exp(q[m] + k[m]);
            return value;
          },
          [&](double total, double weights) {
            if (args.normaliser == Normaliser::none) return 1.0 / args.factor;
            return std::max(total, args.floor * weights);
          },
          [&](int64_t key) {
            return form.weighted ? std::exp(x[3][static_cast<size_t>(key)]) : 1.0;
          });
    };
    set_sized(row, p, [form, inputs_of](const Problem& q) { return inputs_of(q, form); });
    cases.push_back(std::move(row));
  };
  size_t turn = 0;
  for (const Problem& p : problems())
    for (int i = 0; i < 3; ++i) add_row(p, forms[turn++ % forms.size()]);
  const OpInput x{{1, 2, 3, 4}, 0.125, 1.5};
  for (const bool causal : {false, true}) {
    const std::string text = causal ? " causal" : "";
    const Problem p{.name = "", .causal = causal};
    const LinearForm form = forms[causal ? 3 : 0];
    cases.push_back(
        fused("linear_attention x x x" + text, "linear_attention", {x}, [=](const Variables& v) {
          return run_linear(p, form, {v[0], v[0], v[0]});
        }));
    cases.push_back(
        fused("linear_attention h g(h)" + text, "linear_attention", {x}, [=](const Variables& v) {
          const Variable h = sin(v[0]);
          return run_linear(p, forms[causal ? 1 : 2], {h, h * h, tanh(h), sum(h, {3})}) * h;
        }));
  }
}

struct ProjectedForm {
  std::string name;
  ProjectedAttentionArgs args;
  bool per_head = false;  // Ω
  bool weighted = false;  // has a key log-weight
  int64_t m = 5;
};

// No cosine is near 0. The floor is above the denominator of some rows and below that of others.
std::vector<ProjectedForm> projected_forms() {
  constexpr auto exponential = ProjectionFunction::exponential;
  constexpr auto trigonometric = ProjectionFunction::trigonometric;
  return {{"exponential", {exponential, 0.75}},
          {"trigonometric heads", {trigonometric, 0.25}, true},
          {"exponential heads weighted", {exponential}, true, true},
          {"trigonometric weighted", {trigonometric, 0.25}, false, true},
          {"trigonometric floored weighted", {trigonometric, 0.25, 0.975}, true, true, 3}};
}

Tensor omega_of(const ProjectedForm& form, int64_t H, int64_t d, DType dtype) {
  return exact_signs(form.per_head ? Shape{H, d, form.m} : Shape{d, form.m}, 61, dtype);
}

// u = s·xΩ of a row of head h, Ω as omega_of() makes it in float64.
std::vector<double> projections(const ProjectedForm& form, const std::vector<double>& omega,
                                const double* x, int64_t h, int64_t d) {
  std::vector<double> u(static_cast<size_t>(form.m), 0.0);
  for (int64_t i = 0; i < d; ++i)
    for (int64_t j = 0; j < form.m; ++j)
      u[static_cast<size_t>(j)] +=
          form.args.scale * x[i] *
          omega[static_cast<size_t>(((form.per_head ? h : 0) * d + i) * form.m + j)];
  return u;
}

Variable run_projected(const Problem& p, const ProjectedForm& form, const Variables& x) {
  Problem q = p;
  q.B = x[0].size(0);
  q.T = x[0].size(2);
  q.S = x[1].size(2);
  return projected_attention(x[0], x[1], x[2], form.weighted ? x[3] : Variable(), q.mask(),
                             omega_of(form, x[0].size(1), x[0].size(3), x[0].dtype()), form.args);
}

void add_projected_attention(OpCases& cases) {
  const auto forms = projected_forms();
  const auto inputs_of = [](const Problem& p, const ProjectedForm& form) {
    std::vector<OpInput> inputs = p.inputs(0.5);
    if (form.weighted) inputs.push_back({{p.B, p.H, p.S}});
    return inputs;
  };
  const auto add_row = [&](const Problem& p, const ProjectedForm& form) {
    OpCase row = fused(fmt::format("projected_attention {} {}", p.name, form.name),
                       "projected_attention", inputs_of(p, form),
                       [p, form](const Variables& x) { return run_projected(p, form, x); });
    row.bfloat16 = true;
    row.reference = [p, form](const Values& x) {
      const auto omega = omega_of(form, p.H, p.d, DType::float64).to_vector<double>();
      return attention_values(
          p, x,
          [&](const double* q, const double* k, int64_t h) {
            const auto a = projections(form, omega, q, h, p.d);
            const auto b = projections(form, omega, k, h, p.d);
            double value = 0.0;
            for (size_t i = 0; i < a.size(); ++i)
              value += form.args.function == ProjectionFunction::exponential
                           ? std::exp(a[i] + b[i])
                           : std::cos(a[i] - b[i]);
            return value / static_cast<double>(form.m);
          },
          [&](double total, double weights) { return std::max(total, form.args.floor * weights); },
          [&](int64_t key) {
            return form.weighted ? std::exp(x[3][static_cast<size_t>(key)]) : 1.0;
          });
    };
    set_sized(row, p, [form, inputs_of](const Problem& q) { return inputs_of(q, form); });
    cases.push_back(std::move(row));
  };
  size_t turn = 0;
  for (const Problem& p : problems())
    for (int i = 0; i < 3; ++i) add_row(p, forms[turn++ % forms.size()]);
  const OpInput x{{1, 2, 3, 4}, -0.5, 0.5};
  for (const bool causal : {false, true}) {
    const std::string text = causal ? " causal" : "";
    const Problem p{.name = "", .causal = causal};
    cases.push_back(fused("projected_attention x x x" + text, "projected_attention", {x},
                          [=](const Variables& v) {
                            return run_projected(p, forms[causal ? 1 : 0], {v[0], v[0], v[0]});
                          }));
    cases.push_back(fused(
        "projected_attention h g(h)" + text, "projected_attention", {x}, [=](const Variables& v) {
          const Variable h = sin(v[0]);
          return run_projected(p, forms[causal ? 2 : 3], {h, h * h, tanh(h), sum(h, {3})}) * h;
        }));
  }
  for (const ProjectedForm& form : {forms[0], forms[1]}) {
    OpCase row =
        fused("projected_features " + form.name, "projected_features", {{{2, 2, 3, 4}}},
              [form](const Variables& v) {
                return projected_features(v[0], omega_of(form, 2, 4, v[0].dtype()), form.args);
              });
    row.reference = [form](const Values& in) {
      const auto omega = omega_of(form, 2, 4, DType::float64).to_vector<double>();
      const auto m = static_cast<double>(form.m);
      std::vector<double> y;
      for (int64_t r = 0; r < 12; ++r) {
        const auto u = projections(form, omega, &in[0][static_cast<size_t>(r * 4)], r / 3 % 2, 4);
        if (form.args.function == ProjectionFunction::exponential)
          for (const double e : u) y.push_back(e - 0.5 * std::log(m));
        else
          for (const bool sine : {false, true})
            for (const double e : u) y.push_back((sine ? std::sin(e) : std::cos(e)) / std::sqrt(m));
      }
      return y;
    };
    row.fused = false;
    row.bfloat16 = true;
    cases.push_back(std::move(row));
  }
}

void add_features(OpCases& cases) {
  const auto list = draws();
  for (size_t i = 0; i < 4; ++i) {
    const Draw draw = list[i];
    OpCase row = fused("maclaurin_features " + draw.name, "maclaurin_features", {{{2, 2, 3, 4}}},
                       [draw](const Variables& x) {
                         const DType dtype = x[0].dtype();
                         return maclaurin_features(x[0], omega_of(draw, 2, 4, dtype),
                                                   weight_of(draw, dtype), draw.args);
                       });
    row.reference = [draw](const Values& x) {
      const auto omega = omega_of(draw, 2, 4, DType::float64).to_vector<double>();
      const size_t size = omega.size() / (draw.per_head ? 2 : 1);
      std::vector<double> y;
      for (size_t r = 0; r < 12; ++r) {
        const auto first =
            omega.begin() + static_cast<std::ptrdiff_t>(draw.per_head ? r / 3 % 2 * size : 0);
        if (draw.args.linear > 0)
          for (size_t c = 0; c < 4; ++c) y.push_back(std::sqrt(draw.args.linear) * x[0][r * 4 + c]);
        for (double v :
             features(draw, {first, first + static_cast<std::ptrdiff_t>(size)}, &x[0][r * 4], 4))
          y.push_back(v);
      }
      return y;
    };
    row.fused = false;
    row.bfloat16 = true;
    cases.push_back(std::move(row));
  }
  OpCase row;
  row.name = row.op = "visible";
  row.inputs = {{{2, 2, 3, 5}}};
  row.f = [](const Variables& x) {
    const Problem p{
        .name = "", .T = 3, .S = 5, .causal = true, .key_mask = true, .query_mask = true};
    return where(visible(p.mask(), 3, 5, x[0].device()), x[0], 0.0);
  };
  row.reference = [](const Values& x) {
    std::vector<double> y = x[0];
    for (size_t i = 0; i < y.size(); ++i) {
      const size_t b = i / 30, t = i / 5 % 3, s = i % 5;
      const bool key = b == 0 ? s != 4 : s != 0, query = b != 0 || t != 2;
      if (!key || !query || s > t + 2) y[i] = 0;
    }
    return y;
  };
  cases.push_back(std::move(row));

  OpCase hidden;
  hidden.name = hidden.op = "without_invalid";
  hidden.inputs = {{{2, 2, 5, 3}}};
  hidden.f = [](const Variables& x) {
    const Problem p{.name = "", .S = 5, .key_mask = true};
    return without_invalid(x[0], p.mask().key_valid);
  };
  hidden.reference = [](const Values& x) {
    std::vector<double> y = x[0];
    for (size_t i = 0; i < y.size(); ++i) {
      const size_t b = i / 30, s = i / 3 % 5;
      if (b == 0 ? s == 4 : s == 0) y[i] = 0;
    }
    return y;
  };
  cases.push_back(std::move(hidden));
}

}  // namespace

void add_attention_cases(OpCases& cases) {
  add_softmax_attention(cases);
  add_rmfa(cases);
  add_linear_attention(cases);
  add_projected_attention(cases);
  add_features(cases);
}

}  // namespace macgrad::testing
