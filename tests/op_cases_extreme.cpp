// Rows of inputs at which formulas break that are right elsewhere: a common offset of 1e8, infinite
// logits where the result is defined, one finite entry among 100,000, constant rows of values whose
// sum is not exact. Where a logit is +inf the row is NaN, as in PyTorch.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "macgrad/autograd/attention.h"
#include "macgrad/tests/op_cases.h"

namespace macgrad::testing {
namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kFar = 1e8;  // neighbouring float32 numbers are 8 apart here
constexpr int64_t kIgnored = -100;

using List = std::vector<double>;

OpCase extreme(const std::string& name, const std::string& op, std::vector<OpInput> inputs,
               Function f, Reference reference, GradientReference gradients) {
  OpCase row = simple(name, op, std::move(inputs), std::move(f), std::move(reference));
  row.gradient_reference = std::move(gradients);
  row.fused = true;
  row.numeric = false;
  row.tol32 = 1e-5;
  return row;
}

// f(row of x, row of g) for each row of n entries, the results joined.
template <class F>
List by_rows(const List& x, const List& g, size_t n, F f) {
  List y;
  for (size_t at = 0; at < x.size(); at += n) {
    const auto part = [&](const List& v) {
      const auto begin = v.begin() + static_cast<std::ptrdiff_t>(at * v.size() / x.size());
      return List(begin, begin + static_cast<std::ptrdiff_t>(n * v.size() / x.size()));
    };
    const List result = f(part(x), part(g));
    y.insert(y.end(), result.begin(), result.end());
  }
  return y;
}

double dot(const List& a, const List& b) {
  return std::inner_product(a.begin(), a.end(), b.begin(), 0.0);
}

List log_softmax_of(const List& x) {
  const double top = *std::max_element(x.begin(), x.end());
  double total = 0;
  for (double v : x) total += std::exp(v - top);
  List y;
  for (double v : x) y.push_back(v - top - std::log(total));
  return y;
}

List exponentials(List x) {
  for (double& v : x) v = std::exp(v);
  return x;
}

struct Logits {
  std::string name;
  Shape shape;
  List values;
  std::vector<int64_t> targets;
  bool distributions = true;  // every row has one: defined logits, at least one of them finite
};

std::vector<Logits> all_logits() {
  List lonely(100'000, -kInf);
  lonely[70'001] = 3.5;
  return {{"far from 0",
           {4, 4},
           {kFar, kFar, kFar + 8, kFar - 8, -kFar, -kFar, -kFar, -kFar,  //
            kFar, kFar, kFar, kFar - 1024, 1000, 1000, 1000, 1000},
           {0, 2, 3, 1}},
          {"with -inf", {3, 3}, {0, -kInf, 1, -kInf, -kInf, 2, 0.5, -1, -kInf}, {0, 2, 1}},
          {"one finite among 100,000", {1, 100'000}, lonely, {70'001}},
          {"with +inf", {1, 3}, {0, kInf, 1}, {0}, false}};
}

void add_softmax(OpCases& cases, const Logits& logits) {
  const auto n = static_cast<size_t>(logits.shape[1]);
  const std::vector<OpInput> inputs{{logits.shape, 0, 0, true, logits.values}};
  const auto values = [n](bool logarithm) {
    return [n, logarithm](const Values& x) {
      return by_rows(x[0], x[0], n, [&](const List& row, const List&) {
        return logarithm ? log_softmax_of(row) : exponentials(log_softmax_of(row));
      });
    };
  };
  OpCase row = extreme(
      "softmax " + logits.name, "softmax", inputs,
      [](const Variables& x) { return softmax(x[0], 1); }, values(false),
      [n](const Values& x, const List& cotangent) {
        return Values{by_rows(x[0], cotangent, n, [](const List& v, const List& g) {
          List d = exponentials(log_softmax_of(v));
          const double common = dot(d, g);
          for (size_t i = 0; i < d.size(); ++i) d[i] *= g[i] - common;
          return d;
        })};
      });
  cases.push_back(row);
  row = extreme(
      "log_softmax " + logits.name, "log_softmax", inputs,
      [](const Variables& x) { return log_softmax(x[0], 1); }, values(true),
      [n](const Values& x, const List& cotangent) {
        return Values{by_rows(x[0], cotangent, n, [](const List& v, const List& g) {
          List d = exponentials(log_softmax_of(v));
          const double common = std::accumulate(g.begin(), g.end(), 0.0);
          for (size_t i = 0; i < d.size(); ++i) d[i] = g[i] - d[i] * common;
          return d;
        })};
      });
  cases.push_back(row);
  row = extreme(
      "logsumexp " + logits.name, "logsumexp", inputs,
      [](const Variables& x) { return logsumexp(x[0], 1); },
      [n](const Values& x) {
        return by_rows(x[0], x[0], n, [](const List& v, const List&) {
          const double top = *std::max_element(v.begin(), v.end());
          double total = 0;
          for (double e : v) total += std::exp(e - top);
          return List{std::isinf(top) ? top : top + std::log(total)};
        });
      },
      {});
  if (logits.distributions)
    row.gradient_reference = [n](const Values& x, const List& cotangent) {
      return Values{by_rows(x[0], cotangent, n, [](const List& v, const List& g) {
        List d = exponentials(log_softmax_of(v));
        for (double& p : d) p *= g[0];
        return d;
      })};
    };
  row.fused = false;
  cases.push_back(row);
}

void add_cross_entropy(OpCases& cases, const Logits& logits, double smoothing) {
  const auto n = static_cast<size_t>(logits.shape[1]);
  const auto& targets = logits.targets;
  // Weight of class c where t is the target.
  const auto weight = [n, smoothing](int64_t t, size_t c) {
    return smoothing / static_cast<double>(n) +
           (t == static_cast<int64_t>(c) ? 1 - smoothing : 0.0);
  };
  cases.push_back(extreme(
      fmt::format("cross_entropy {} smoothing {}", logits.name, smoothing), "cross_entropy",
      {{logits.shape, 0, 0, true, logits.values}},
      [=](const Variables& x) {
        return cross_entropy(x[0], placed(Tensor::from_vector(targets)), smoothing, kIgnored,
                             Reduction::none);
      },
      [=](const Values& x) {
        size_t r = 0;
        return by_rows(x[0], x[0], n, [&](const List& v, const List&) {
          const int64_t t = targets[r++];
          if (t == kIgnored) return List{0};
          const List logp = log_softmax_of(v);
          double loss = 0;
          for (size_t c = 0; c < n; ++c)
            if (weight(t, c) != 0) loss -= weight(t, c) * logp[c];
          return List{loss};
        });
      },
      [=](const Values& x, const List& cotangent) {
        size_t r = 0;
        return Values{by_rows(x[0], cotangent, n, [&](const List& v, const List& g) {
          const int64_t t = targets[r++];
          if (t == kIgnored) return List(n, 0.0);
          List d = exponentials(log_softmax_of(v));
          for (size_t c = 0; c < n; ++c) d[c] = g[0] * (d[c] - weight(t, c));
          return d;
        })};
      }));
}

void add_softmax_attention(OpCases& cases) {
  const auto add = [&](const std::string& name, List q, List k) {
    OpCase row = extreme(
        "softmax_attention " + name, "softmax_attention",
        {{{1, 1, 2, 2}, 0, 0, true, std::move(q)},
         {{1, 1, 3, 2}, 0, 0, true, std::move(k)},
         {{1, 1, 3, 2}}},
        [](const Variables& x) { return softmax_attention(x[0], x[1], x[2], {}, 1.0); }, {}, {});
    const auto weights = [](const Values& x, size_t i) {
      List scores;
      for (size_t j = 0; j < 3; ++j)
        scores.push_back(x[0][2 * i] * x[1][2 * j] + x[0][2 * i + 1] * x[1][2 * j + 1]);
      return exponentials(log_softmax_of(scores));
    };
    row.reference = [=](const Values& x) {
      List out;
      for (size_t i = 0; i < 2; ++i) {
        const List p = weights(x, i);
        for (size_t c = 0; c < 2; ++c)
          out.push_back(p[0] * x[2][c] + p[1] * x[2][2 + c] + p[2] * x[2][4 + c]);
      }
      return out;
    };
    row.gradient_reference = [=](const Values& x, const List& g) {
      Values d{List(4, 0.0), List(6, 0.0), List(6, 0.0)};
      for (size_t i = 0; i < 2; ++i) {
        const List p = weights(x, i);
        List dp;
        for (size_t j = 0; j < 3; ++j)
          dp.push_back(g[2 * i] * x[2][2 * j] + g[2 * i + 1] * x[2][2 * j + 1]);
        const double common = dot(p, dp);
        for (size_t j = 0; j < 3; ++j) {
          for (size_t c = 0; c < 2; ++c) {
            const double ds = p[j] * (dp[j] - common);
            d[0][2 * i + c] += ds * x[1][2 * j + c];
            d[1][2 * j + c] += ds * x[0][2 * i + c];
            d[2][2 * j + c] += p[j] * g[2 * i + c];
          }
        }
      }
      return d;
    };
    row.bfloat16 = false;
    cases.push_back(row);
  };
  // Scores of 2^26, equal for the first query, 8 and 16 apart for the second.
  add("far from 0", {8192, 0, 8192, 1}, {8192, 0, 8192, 8, 8192, 16});
  cases.back().second = false;
  cases.back().tol32 = 1e-3;  // gradients of q and k are sums of terms of 8192 that cancel
  // The first score is -1e60, which float32 holds as -inf.
  add("with a score of -inf", {1e30, 1, 0, 1}, {-1e30, 0, 0, 1, 0, 2});
  cases.back().second = false;  // of the order of 1e60
}

// A row less its mean, from differences that are exact.
List centred(List x) {
  const double first = x[0];
  double sum = 0;
  for (double& v : x) sum += v -= first;
  for (double& v : x) v -= sum / static_cast<double>(x.size());
  return x;
}

struct Numbers {
  std::string name;
  size_t width;
  List values;
};
const std::vector<Numbers>& all_numbers() {
  static const std::vector<Numbers> list = {
      {"of constants",
       3,
       {0.1, 0.1, 0.1, 12.7, 12.7, 12.7, 0.3, 0.3, 0.3, -1e8, -1e8, -1e8, 1, 2, 4}},
      {"of wider constants",
       6,
       {0.3, 0.3, 0.3, 0.3, 0.3, 0.3, 12.7, 12.7, 12.7, 12.7, 12.7, 12.7, 3, 1, 4, 1, 5, 9}},
      {"far from 0",
       4,
       {kFar, kFar + 8, kFar, kFar, kFar, kFar + 8, kFar + 64, kFar - 128, -kFar, -kFar, -kFar + 8,
        -kFar + 8}}};
  return list;
}

void add_layer_norm(OpCases& cases, const Numbers& numbers, double eps) {
  const size_t n = numbers.width;
  const auto width = static_cast<int64_t>(n);
  const auto rows = static_cast<int64_t>(numbers.values.size()) / width;
  const auto normal = [eps](const List& x, double* rstd) {
    List h = centred(x);
    const double root = std::sqrt(dot(h, h) / static_cast<double>(h.size()) + eps);
    *rstd = root > 0 ? 1 / root : 0;
    for (double& v : h) v *= *rstd;
    return h;
  };
  OpCase row = extreme(
      fmt::format("layer_norm {} eps {}", numbers.name, eps), "layer_norm",
      {{{rows, width}, 0, 0, true, numbers.values}, {{width}, 0.5, 1.5}, {{width}}},
      [eps](const Variables& x) { return layer_norm(x[0], x[1], x[2], eps); },
      [=](const Values& x) {
        return by_rows(x[0], x[0], n, [&](const List& v, const List&) {
          double rstd = 0;
          List y = normal(v, &rstd);
          for (size_t c = 0; c < n; ++c) y[c] = y[c] * x[1][c] + x[2][c];
          return y;
        });
      },
      [=](const Values& x, const List& cotangent) {
        List dw(n, 0.0), db(n, 0.0);
        List dx = by_rows(x[0], cotangent, n, [&](const List& v, const List& g) {
          double rstd = 0;
          const List h = normal(v, &rstd);
          List a = g;
          for (size_t c = 0; c < n; ++c) {
            a[c] *= x[1][c];
            dw[c] += g[c] * h[c];
            db[c] += g[c];
          }
          const double along = dot(a, h) / static_cast<double>(n);
          a = centred(a);
          for (size_t c = 0; c < n; ++c) a[c] = rstd * (a[c] - h[c] * along);
          return a;
        });
        return Values{dx, dw, db};
      });
  row.second = eps > 0;
  cases.push_back(row);
}

void add_pre_sbn(OpCases& cases, const Numbers& numbers, double eps) {
  const size_t n = numbers.width;
  const auto width = static_cast<int64_t>(n);
  const auto rows = static_cast<int64_t>(numbers.values.size()) / width;
  OpCase row = extreme(
      fmt::format("pre_sbn row {} eps {}", numbers.name, eps), "pre_sbn",
      {{{1, 1, rows, width}, 0, 0, true, numbers.values}},
      [eps](const Variables& x) { return pre_sbn(x[0], {}, SbnStatistics::row, eps, nullptr); },
      [n](const Values& x) {
        return by_rows(x[0], x[0], n, [](const List& v, const List&) {
          List y = centred(v);
          const double norm = std::sqrt(dot(y, y));
          for (double& c : y) c = norm > 0 ? c / norm : 0;
          return y;
        });
      },
      [n](const Values& x, const List& cotangent) {
        return Values{by_rows(x[0], cotangent, n, [](const List& v, const List& g) {
          const List z = centred(v);
          const double squares = dot(z, z);
          List d = g;
          for (size_t c = 0; c < d.size(); ++c)
            d[c] = squares > 0 ? (g[c] - z[c] * dot(z, g) / squares) / std::sqrt(squares) : 0;
          return centred(d);
        })};
      });
  row.tol32 = 3e-5;
  row.tol16 = 8e-2;
  cases.push_back(row);
}

// Channels that are the same at every position: rows without deviation, whose result is 0.
void add_pre_sbn_channels(OpCases& cases) {
  List values;
  for (int i = 0; i < 2 * 7; ++i) values.insert(values.end(), {0.1, 0.3, 12.7});
  OpCase row = extreme(
      "pre_sbn batch of constant channels", "pre_sbn", {{{2, 1, 7, 3}, 0, 0, true, values}},
      [](const Variables& x) { return pre_sbn(x[0], {}, SbnStatistics::batch, 1e-13, nullptr); },
      [](const Values& x) { return List(x[0].size(), 0.0); },
      [](const Values& x, const List&) { return Values{List(x[0].size(), 0.0)}; });
  cases.push_back(row);
}

void add_var(OpCases& cases) {
  OpCase row = extreme(
      "var far from 0", "var", {{{3, 4}, 0, 0, true, all_numbers().back().values}},
      [](const Variables& x) { return var(x[0], {1}, 0.0); },
      [](const Values& x) {
        return by_rows(x[0], x[0], 4, [](const List& v, const List&) {
          const List z = centred(v);
          return List{dot(z, z) / 4};
        });
      },
      [](const Values& x, const List& cotangent) {
        return Values{by_rows(x[0], cotangent, 4, [](const List& v, const List& g) {
          List d = centred(v);
          for (double& c : d) c *= g[0] / 2;
          return d;
        })};
      });
  row.fused = false;
  cases.push_back(row);
}

}  // namespace

void add_extreme_cases(OpCases& cases) {
  for (const Logits& logits : all_logits()) add_softmax(cases, logits);
  std::vector<Logits> with_targets = all_logits();
  with_targets.push_back({"with a target of -inf", {2, 3}, {0, -kInf, 1, 2, 1, -kInf}, {1, 2}});
  with_targets.push_back(
      {"with an ignored row of NaN", {2, 3}, {kNan, kInf, 1, 0, 1, 2}, {kIgnored, 1}});
  for (const Logits& logits : with_targets)
    for (const double smoothing : {0.0, 0.1, 1.0}) add_cross_entropy(cases, logits, smoothing);
  add_softmax_attention(cases);
  for (const Numbers& numbers : all_numbers()) {
    for (const double eps : {1e-13, 0.0}) {
      add_layer_norm(cases, numbers, eps);
      add_pre_sbn(cases, numbers, eps);
    }
  }
  add_pre_sbn_channels(cases);
  add_var(cases);
}

}  // namespace macgrad::testing
