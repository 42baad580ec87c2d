// Rows of the fused ops over rows (softmax, layer norm, cross entropy) and of ppSBN.

#include <algorithm>
#include <cmath>

#include "macgrad/autograd/attention.h"
#include "macgrad/tests/op_cases.h"

namespace macgrad::testing {
namespace {

OpCase fused(const std::string& name, const std::string& op, std::vector<OpInput> inputs,
             Function f, Reference reference = {}) {
  OpCase row = simple(name, op, std::move(inputs), std::move(f), std::move(reference));
  row.fused = true;
  row.tol32 = 1e-5;
  return row;
}

// Softmax of x (rows, n) along n.
std::vector<double> softmax_rows(const std::vector<double>& x, size_t n, bool logarithm) {
  std::vector<double> y;
  for (size_t at = 0; at < x.size(); at += n) {
    const double top = *std::max_element(x.begin() + static_cast<std::ptrdiff_t>(at),
                                         x.begin() + static_cast<std::ptrdiff_t>(at + n));
    double total = 0;
    for (size_t i = 0; i < n; ++i) total += std::exp(x[at + i] - top);
    for (size_t i = 0; i < n; ++i) {
      const double shifted = x[at + i] - top;
      y.push_back(logarithm ? shifted - std::log(total) : std::exp(shifted) / total);
    }
  }
  return y;
}

void add_softmax(OpCases& cases) {
  using Softmax = Variable (*)(const Variable&, int);
  const std::vector<std::pair<std::string, Softmax>> both = {{"softmax", softmax},
                                                             {"log_softmax", log_softmax}};
  for (const auto& [op, f] : both) {
    const bool logarithm = op == "log_softmax";
    OpCase row = fused(
        op, op, {{{3, 5}, -3, 3}}, [f = f](const Variables& x) { return f(x[0], -1); },
        [logarithm](const Values& x) { return softmax_rows(x[0], 5, logarithm); });
    row.sized = [](int64_t n) { return std::vector<OpInput>{{{3, n}, -3, 3}}; };
    cases.push_back(row);
    for (const int dim : {0, 1})
      cases.push_back(fused(fmt::format("{} dim {}", op, dim), op, {{{3, 4, 2}, -3, 3}},
                            [f = f, dim](const Variables& x) { return f(x[0], dim); }));
    cases.push_back(fused(
        op + " of large values", op, {{{2, 4}, -300, 300}},
        [f = f](const Variables& x) { return f(x[0], 1); },
        [logarithm](const Values& x) { return softmax_rows(x[0], 4, logarithm); }));
    cases.push_back(fused(op + " of itself", op, {{{2, 4}}},
                          [f = f](const Variables& x) { return f(f(x[0], 1), 1); }));
    cases.push_back(fused(op + " h·f(h)", op, {{{2, 4}}}, [f = f](const Variables& x) {
      const Variable h = sin(x[0]);
      return h * f(h * h, 1) + f(h, 0);
    }));
  }
}

std::vector<double> layer_norm_rows(const Values& x, size_t n, double eps) {
  std::vector<double> y;
  for (size_t at = 0; at < x[0].size(); at += n) {
    double mean = 0, variance = 0;
    for (size_t i = 0; i < n; ++i) mean += x[0][at + i] / static_cast<double>(n);
    for (size_t i = 0; i < n; ++i)
      variance += (x[0][at + i] - mean) * (x[0][at + i] - mean) / static_cast<double>(n);
    for (size_t i = 0; i < n; ++i)
      y.push_back((x[0][at + i] - mean) / std::sqrt(variance + eps) * x[1][i] + x[2][i]);
  }
  return y;
}

void add_layer_norm(OpCases& cases) {
  OpCase row = fused(
      "layer_norm", "layer_norm", {{{2, 3, 6}}, {{6}, 0.5, 1.5}, {{6}}},
      [](const Variables& x) { return layer_norm(x[0], x[1], x[2], 1e-3); },
      [](const Values& x) { return layer_norm_rows(x, 6, 1e-3); });
  row.sized = [](int64_t n) { return std::vector<OpInput>{{{n, 6}}, {{6}}, {{6}}}; };
  cases.push_back(row);
  row = fused("layer_norm of odd width", "layer_norm", {{{4, 7}}, {{7}}, {{7}}},
              [](const Variables& x) { return layer_norm(x[0], x[1], x[2], 0.125); });
  row.sized = [](int64_t n) { return std::vector<OpInput>{{{3, n}}, {{n}}, {{n}}}; };
  cases.push_back(row);
  // The same Variable as input, weight and bias.
  cases.push_back(fused("layer_norm x x x", "layer_norm", {{{5}}},
                        [](const Variables& x) { return layer_norm(x[0], x[0], x[0], 0.01); }));
  cases.push_back(fused("layer_norm h g(h)", "layer_norm", {{{3, 4}}}, [](const Variables& x) {
    const Variable h = tanh(x[0]);
    return layer_norm(h, select(h, 0, 1), sum(h * h, {0}), 0.1);
  }));
  cases.push_back(
      fused("layer_norm of itself", "layer_norm", {{{2, 4}}, {{4}}}, [](const Variables& x) {
        const Variable y = layer_norm(x[0], x[1], x[1], 0.1);
        return layer_norm(y, x[1], select(y, 0, 0), 0.1);
      }));
}

void add_cross_entropy(OpCases& cases) {
  constexpr int64_t kIgnored = -100;
  struct Setting {
    std::string name;
    double smoothing;
    bool ignore;
    Reduction reduction;
  };
  for (const Setting& s : std::vector<Setting>{{"", 0.0, false, Reduction::mean},
                                               {" sum", 0.0, false, Reduction::sum},
                                               {" none", 0.0, true, Reduction::none},
                                               {" smoothing ignore", 0.1, true, Reduction::mean},
                                               {" smoothing none", 0.25, false, Reduction::none},
                                               {" smoothing 1", 1.0, false, Reduction::sum}}) {
    const auto targets = [s](int64_t rows, int64_t classes) {
      auto t = random_index({rows}, std::max<int64_t>(classes, 1), 40).to_vector<int64_t>();
      if (s.ignore)
        for (size_t i = 1; i < t.size(); i += 3) t[i] = kIgnored;
      return t;
    };
    const Function f = [s, targets](const Variables& x) {
      const Tensor target = placed(Tensor::from_vector(targets(x[0].size(0), x[0].size(1))));
      return cross_entropy(x[0], target, s.smoothing, s.ignore ? kIgnored : kNoIgnore, s.reduction);
    };
    const Reference reference = [s, targets](const Values& x) {
      const size_t rows = 5, n = 4;
      const auto logp = softmax_rows(x[0], n, true);
      const auto t = targets(5, 4);
      std::vector<double> losses;
      double total = 0, counted = 0;
      for (size_t r = 0; r < rows; ++r) {
        double loss = 0;
        if (t[r] != kIgnored) {
          for (size_t c = 0; c < n; ++c) {
            const double target =
                s.smoothing / 4 + (static_cast<int64_t>(c) == t[r] ? 1 - s.smoothing : 0.0);
            loss -= target * logp[r * n + c];
          }
          ++counted;
        }
        losses.push_back(loss);
        total += loss;
      }
      if (s.reduction == Reduction::none) return losses;
      return std::vector<double>{s.reduction == Reduction::sum ? total : total / counted};
    };
    OpCase row = fused("cross_entropy" + s.name, "cross_entropy", {{{5, 4}, -3, 3}}, f, reference);
    if (s.reduction != Reduction::mean)
      row.sized = [](int64_t n) { return std::vector<OpInput>{{{n, 7}, -3, 3}}; };
    else {
      row.sized = [](int64_t n) { return std::vector<OpInput>{{{4, n}, -3, 3}}; };
      row.smallest = 1;
    }
    cases.push_back(row);
  }
  cases.push_back(fused("cross_entropy h·h", "cross_entropy", {{{3, 4}}}, [](const Variables& x) {
    const Variable h = x[0] * x[0];
    const Tensor target = placed(Tensor::from_vector(std::vector<int64_t>{1, 0, 3}));
    const Variable loss = cross_entropy(h, target, 0.1);  // float32 for bfloat16 h
    return loss * cast(sum(h), loss.dtype());
  }));
}

constexpr size_t kB = 2, kH = 2, kT = 5, kD = 3;

Tensor some_valid() {
  return placed(Tensor::from_vector(std::vector<bool>{1, 1, 1, 0, 0, 1, 1, 1, 1, 0}, {2, 5}));
}
SbnMoments fixed_moments(DType dtype) {
  return {
      exact_values({2, 3}, 50, dtype),
      placed(Tensor::from_values(std::vector<double>{0.5, 1, 2, 0.75, 1.5, 0.25}, {2, 3}, dtype))};
}

// Algorithm 1 of the paper, first two steps, by definition.
std::vector<double> pre_sbn_values(const std::vector<double>& x, SbnStatistics statistics,
                                   bool masked, double eps) {
  const auto valid = masked ? some_valid().to_vector<bool>() : std::vector<bool>(kB * kT, true);
  const auto at = [](size_t b, size_t h, size_t t, size_t c) {
    return ((b * kH + h) * kT + t) * kD + c;
  };
  const SbnMoments given = fixed_moments(DType::float64);
  std::vector<double> y(x.size(), 0.0);
  for (size_t h = 0; h < kH; ++h) {
    double mean[kD] = {}, var[kD] = {};
    for (size_t c = 0; c < kD; ++c) {
      double n = 0;
      for (size_t b = 0; b < kB; ++b)
        for (size_t t = 0; t < kT; ++t)
          if (valid[b * kT + t]) mean[c] += x[at(b, h, t, c)], ++n;
      mean[c] /= n;
      for (size_t b = 0; b < kB; ++b)
        for (size_t t = 0; t < kT; ++t)
          if (valid[b * kT + t]) var[c] += std::pow(x[at(b, h, t, c)] - mean[c], 2) / n;
      if (statistics != SbnStatistics::fixed) continue;
      mean[c] = given.mean.at({static_cast<int64_t>(h), static_cast<int64_t>(c)});
      var[c] = given.var.at({static_cast<int64_t>(h), static_cast<int64_t>(c)});
    }
    for (size_t b = 0; b < kB; ++b) {
      for (size_t t = 0; t < kT; ++t) {
        if (!valid[b * kT + t]) continue;
        if (statistics == SbnStatistics::row) {
          double m = 0, v = 0;
          for (size_t c = 0; c < kD; ++c) m += x[at(b, h, t, c)] / kD;
          for (size_t c = 0; c < kD; ++c) v += std::pow(x[at(b, h, t, c)] - m, 2) / kD;
          std::fill_n(mean, kD, m);
          std::fill_n(var, kD, v);
        }
        double norm = 0;
        for (size_t c = 0; c < kD; ++c) {
          double& out = y[at(b, h, t, c)];
          out = (x[at(b, h, t, c)] - mean[c]) / std::sqrt(var[c] + eps);
          norm += out * out;
        }
        for (size_t c = 0; c < kD; ++c) y[at(b, h, t, c)] /= std::sqrt(norm);
      }
    }
  }
  return y;
}

void add_pre_sbn(OpCases& cases) {
  const std::vector<std::pair<std::string, SbnStatistics>> modes = {{"batch", SbnStatistics::batch},
                                                                    {"fixed", SbnStatistics::fixed},
                                                                    {"row", SbnStatistics::row}};
  for (const auto& mode : modes) {
    for (const bool masked : {false, true}) {
      const SbnStatistics statistics = mode.second;
      const Function f = [=](const Variables& x) {
        SbnMoments moments = fixed_moments(x[0].dtype());
        return pre_sbn(x[0], masked ? some_valid() : Tensor(), statistics, 1e-2,
                       statistics == SbnStatistics::row ? nullptr : &moments);
      };
      OpCase row = fused(
          "pre_sbn " + mode.first + (masked ? " masked" : ""), "pre_sbn", {{{kB, kH, kT, kD}}}, f,
          [=](const Values& x) { return pre_sbn_values(x[0], statistics, masked, 1e-2); });
      if (!masked) row.sized = [](int64_t n) { return std::vector<OpInput>{{{2, 2, n, 3}}}; };
      row.tol32 = 3e-5;
      row.tol16 = 8e-2;
      cases.push_back(row);
    }
  }
  cases.push_back(fused("pre_sbn of itself", "pre_sbn", {{{2, 1, 3, 3}}}, [](const Variables& x) {
    const Variable y = pre_sbn(x[0], {}, SbnStatistics::batch, 0.1, nullptr);
    return x[0] * pre_sbn(y * 2.0, {}, SbnStatistics::row, 0.1, nullptr);
  }));
  cases.back().tol16 = 8e-2;
}

void add_post_sbn(OpCases& cases) {
  const Reference reference = [](const Values& x) {
    std::vector<double> y = x[0];
    for (size_t i = 0; i < y.size(); ++i) {
      const double s = y[i] * x[1][i % x[1].size()], beta = x[2][i % x[2].size()];
      y[i] = s * std::pow(s * s + 0.125 * 0.125, (beta - 1) / 2);
    }
    return y;
  };
  const Function f = [](const Variables& x) { return post_sbn(x[0], x[1], x[2], 0.125); };
  const OpInput x{{2, 2, 3, 4}};
  OpCase row =
      fused("post_sbn scalar", "post_sbn", {x, {{1}, 0.5, 1.5}, {{1}, 0.5, 1.5}}, f, reference);
  row.sized = [](int64_t n) { return std::vector<OpInput>{{{1, 2, n, 4}}, {{1}}, {{1}, 0.5, 1}}; };
  cases.push_back(row);
  cases.push_back(fused("post_sbn per dimension", "post_sbn", {x, {{4}, 0.5, 1.5}, {{4}, 0.5, 1.5}},
                        f, reference));
  // As a model starts: gamma = beta = 1. The exponent (beta-1)/2 is then exactly 0.
  cases.push_back(fused("post_sbn at 1", "post_sbn", {x, {{1}, 1, 1}, {{4}, 1, 1}}, f, reference));
  cases.push_back(fused("post_sbn at 0", "post_sbn",
                        {{{3}, 0, 0, true, {0, -0.25, 0.5}}, {{3}, 0.5, 1.5}, {{1}, 0.75, 0.75}}, f,
                        reference));
  cases.push_back(fused("post_sbn x x x", "post_sbn", {{{4}, 0.5, 1.5}},
                        [](const Variables& v) { return post_sbn(v[0], v[0], v[0], 0.125); }));
  cases.push_back(
      fused("post_sbn of itself", "post_sbn", {{{2, 3}}, {{3}, 0.5, 1.5}}, [](const Variables& v) {
        const Variable h = sin(v[0]);
        return post_sbn(post_sbn(h, v[1], v[1], 0.25), select(h, 0, 1), v[1], 0.25);
      }));
}

}  // namespace

void add_row_cases(OpCases& cases) {
  add_softmax(cases);
  add_layer_norm(cases);
  add_cross_entropy(cases);
  add_pre_sbn(cases);
  add_post_sbn(cases);
}

}  // namespace macgrad::testing
