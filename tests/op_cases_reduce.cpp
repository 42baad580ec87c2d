// Rows of the reductions and of the matrix products.

#include <algorithm>
#include <cmath>
#include <limits>

#include "macgrad/tests/op_cases.h"

namespace macgrad::testing {
namespace {

// Applies `formula` to each line along `dim` of the only input; the results keep their order.
Reference over_lines(const Shape& shape, int dim,
                     std::function<std::vector<double>(const std::vector<double>&)> formula) {
  return [=](const Values& x) {
    int64_t outer = 1, n = 1;
    for (int d = 0; d < dim; ++d) outer *= shape[d];
    for (int d = dim + 1; d < shape.rank(); ++d) n *= shape[d];
    const int64_t rows = shape[dim];
    std::vector<double> y;
    for (int64_t a = 0; a < outer; ++a) {
      std::vector<std::vector<double>> results;
      for (int64_t c = 0; c < n; ++c) {
        std::vector<double> line;
        for (int64_t r = 0; r < rows; ++r)
          line.push_back(x[0][static_cast<size_t>((a * rows + r) * n + c)]);
        results.push_back(formula(line));
      }
      const size_t count = results.empty() ? 0 : results[0].size();
      for (size_t r = 0; r < count; ++r)
        for (const auto& result : results) y.push_back(result[r]);
    }
    return y;
  };
}

using Line = std::vector<double>;

double total(const Line& v) {
  double t = 0;
  for (double x : v) t += x;
  return t;
}

double average(const Line& v) {
  return total(v) / static_cast<double>(v.size());
}

double squares_about_mean(const Line& v) {
  const double m = average(v);
  double t = 0;
  for (double x : v) t += (x - m) * (x - m);
  return t;
}

const Shape kShape{3, 4, 5};

void add_sums(OpCases& cases) {
  struct Dims {
    std::vector<int> dims;
    bool keepdim;
  };
  for (const Dims& d : std::vector<Dims>{{{}, false},
                                         {{0}, false},
                                         {{1}, true},
                                         {{-1}, false},
                                         {{0, 2}, true},
                                         {{2, 0}, false},
                                         {{1, 2}, false}}) {
    const std::string text =
        fmt::format(" dims [{}]{}", fmt::join(d.dims, ","), d.keepdim ? " keepdim" : "");
    // By definition over any set of dimensions: add each element to its place.
    const Reference reference = [d](const Values& x) {
      std::array<bool, 3> gone{d.dims.empty(), d.dims.empty(), d.dims.empty()};
      for (int dim : d.dims) gone[static_cast<size_t>(dim < 0 ? dim + 3 : dim)] = true;
      std::array<size_t, 3> kept{};
      for (size_t i = 0; i < 3; ++i)
        kept[i] = gone[i] ? 1 : static_cast<size_t>(kShape[static_cast<int>(i)]);
      std::vector<double> y(kept[0] * kept[1] * kept[2], 0.0);
      for (size_t i = 0; i < 60; ++i) {
        const std::array<size_t, 3> at{i / 20, i / 5 % 4, i % 5};
        y[((gone[0] ? 0 : at[0]) * kept[1] + (gone[1] ? 0 : at[1])) * kept[2] +
          (gone[2] ? 0 : at[2])] += x[0][i];
      }
      return y;
    };
    cases.push_back(simple(
        "sum" + text, "sum", {{kShape}},
        [d](const Variables& x) { return sum(x[0], d.dims, d.keepdim); }, reference));
    cases.push_back(simple(
        "mean" + text, "mean", {{kShape}},
        [d](const Variables& x) { return mean(x[0], d.dims, d.keepdim); },
        [reference](const Values& x) {
          auto y = reference(x);
          for (double& v : y) v *= static_cast<double>(y.size()) / 60;
          return y;
        }));
  }
  for (const int dim : {0, 1}) {
    OpCase row = simple(fmt::format("sum of odd sizes {}", dim), "sum", {{{5, 3}}},
                        [dim](const Variables& x) { return sum(x[0], {dim}); });
    row.sized = [dim](int64_t n) {
      return std::vector<OpInput>{{dim == 0 ? Shape{n, 3} : Shape{3, n}}};
    };
    cases.push_back(row);
  }
  cases.push_back(simple(
      "var all", "var", {{{7}}}, [](const Variables& x) { return var(x[0]); },
      over_lines({7}, 0, [](const Line& v) { return Line{squares_about_mean(v) / 6}; })));
  cases.push_back(simple(
      "var dim 1 biased keepdim", "var", {{kShape}},
      [](const Variables& x) { return var(x[0], {1}, 0.0, true); },
      over_lines(kShape, 1, [](const Line& v) { return Line{squares_about_mean(v) / 4}; })));
  cases.push_back(simple(
      "sum_to", "sum_to", {{kShape}},
      [](const Variables& x) {
        return sum_to(x[0], {4, 1});
      },
      [](const Values& x) {
        std::vector<double> y(4, 0.0);
        for (size_t i = 0; i < 60; ++i) y[i / 5 % 4] += x[0][i];
        return y;
      }));
}

void add_lines(OpCases& cases) {
  for (const int dim : {0, 1, 2}) {
    const std::string text = fmt::format(" dim {}", dim);
    const auto sized = [dim](int64_t n) {
      return std::vector<OpInput>{{Shape{3, 2, 4}.with(dim, n)}};
    };
    const auto add_row = [&](const std::string& op, Function f,
                             std::function<Line(const Line&)> formula, int64_t smallest) {
      OpCase row = simple(op + text, op, {{kShape}}, std::move(f),
                          over_lines(kShape, dim, std::move(formula)));
      row.sized = sized;
      row.smallest = smallest;
      cases.push_back(std::move(row));
    };
    add_row(
        "max", [dim](const Variables& x) { return max(x[0], dim).first; },
        [](const Line& v) { return Line{*std::max_element(v.begin(), v.end())}; }, 1);
    add_row(
        "min", [dim](const Variables& x) { return min(x[0], dim, true).first; },
        [](const Line& v) { return Line{*std::min_element(v.begin(), v.end())}; }, 1);
    add_row(
        "prod", [dim](const Variables& x) { return prod(x[0], dim, dim == 1); },
        [](const Line& v) {
          double p = 1;
          for (double x : v) p *= x;
          return Line{p};
        },
        0);
    add_row(
        "logsumexp", [dim](const Variables& x) { return logsumexp(x[0], dim, dim == 0); },
        [](const Line& v) {
          double t = 0;
          for (double x : v) t += std::exp(x);
          return Line{std::log(t)};
        },
        1);
    for (const bool reverse : {false, true}) {
      add_row(
          "cumsum", [dim, reverse](const Variables& x) { return cumsum(x[0], dim, reverse); },
          [reverse](Line v) {
            if (reverse) std::reverse(v.begin(), v.end());
            for (size_t i = 1; i < v.size(); ++i) v[i] += v[i - 1];
            if (reverse) std::reverse(v.begin(), v.end());
            return v;
          },
          0);
      cases.back().name += reverse ? " reverse" : "";
    }
  }
  // Indices of the extrema, as values.
  cases.push_back(simple(
      "argmax", "argmax", {{kShape}},
      [](const Variables& x) {
        return max(x[0], -1).first * Variable(argmax(x[0].value(), -1).to(x[0].dtype()));
      },
      over_lines(kShape, 2, [](const Line& v) {
        const auto at = std::max_element(v.begin(), v.end());
        return Line{*at * static_cast<double>(at - v.begin())};
      })));
  cases.push_back(simple(
      "logsumexp of large values", "logsumexp", {{{3, 4}, 90, 120}},
      [](const Variables& x) { return logsumexp(x[0], 1); },
      over_lines({3, 4}, 1, [](const Line& v) {
        const double top = *std::max_element(v.begin(), v.end());
        double t = 0;
        for (double x : v) t += std::exp(x - top);
        return Line{top + std::log(t)};
      })));
}

// Product of batches of matrices by definition; batch b of the left is matrix b·left_step.
Reference products(int64_t batches, int64_t m, int64_t k, int64_t n, int64_t left_step,
                   int64_t right_step, bool left_transposed = false,
                   bool right_transposed = false) {
  return [=](const Values& x) {
    std::vector<double> y;
    for (int64_t b = 0; b < batches; ++b) {
      for (int64_t i = 0; i < m; ++i) {
        for (int64_t j = 0; j < n; ++j) {
          double t = 0;
          for (int64_t l = 0; l < k; ++l) {
            const int64_t p = left_transposed ? l * m + i : i * k + l;
            const int64_t q = right_transposed ? j * k + l : l * n + j;
            t += x[0][static_cast<size_t>(b * left_step * m * k + p)] *
                 x[1][static_cast<size_t>(b * right_step * k * n + q)];
          }
          y.push_back(t);
        }
      }
    }
    return y;
  };
}

}  // namespace

void add_reduce_cases(OpCases& cases) {
  add_sums(cases);
  add_lines(cases);
}

void add_matmul_cases(OpCases& cases) {
  const Function plain = [](const Variables& x) { return matmul(x[0], x[1]); };
  OpCase row = simple("matmul", "matmul", {{{3, 4}}, {{4, 5}}}, plain, products(1, 3, 4, 5, 1, 1));
  row.sized = [](int64_t n) { return std::vector<OpInput>{{{3, n}}, {{n, 2}}}; };
  cases.push_back(row);
  row = simple("matmul of odd rows", "matmul", {{{2, 3, 4}}, {{2, 4, 5}}}, plain,
               products(2, 3, 4, 5, 1, 1));
  row.sized = [](int64_t n) { return std::vector<OpInput>{{{2, n, 3}}, {{2, 3, n}}}; };
  cases.push_back(row);
  cases.push_back(simple("matmul left batch", "matmul", {{{3, 2, 4}}, {{4, 5}}}, plain,
                         products(3, 2, 4, 5, 1, 0)));
  cases.push_back(simple("matmul right batch", "matmul", {{{2, 4}}, {{3, 4, 5}}}, plain,
                         products(3, 2, 4, 5, 0, 1)));
  cases.push_back(simple("matmul broadcast batches", "matmul", {{{2, 1, 3, 4}}, {{3, 4, 2}}}, plain,
                         [](const Values& x) {
                           std::vector<double> y;
                           for (size_t a = 0; a < 2; ++a)
                             for (size_t b = 0; b < 3; ++b)
                               for (size_t i = 0; i < 3; ++i)
                                 for (size_t j = 0; j < 2; ++j) {
                                   double t = 0;
                                   for (size_t l = 0; l < 4; ++l)
                                     t += x[0][a * 12 + i * 4 + l] * x[1][b * 8 + l * 2 + j];
                                   y.push_back(t);
                                 }
                           return y;
                         }));
  cases.push_back(simple(
      "matmul transposed operands", "matmul", {{{2, 4, 3}}, {{2, 5, 4}}},
      [](const Variables& x) { return matmul(transpose(x[0], 1, 2), transpose(x[1], 1, 2)); },
      products(2, 3, 4, 5, 1, 1, true, true)));
  cases.push_back(
      simple("matmul of heads", "matmul", {{{2, 3, 2, 4}}, {{2, 5, 2, 4}}}, [](const Variables& x) {
        return matmul(permute(x[0], {0, 2, 1, 3}), permute(x[1], {0, 2, 3, 1}));
      }));
  cases.push_back(simple("matmul x xT", "matmul", {{{3, 4}}},
                         [](const Variables& x) { return matmul(x[0], transpose(x[0], 0, 1)); }));
  cases.push_back(simple("matmul rows and columns of one", "matmul", {{{4, 1}}, {{1, 3}}}, plain,
                         products(1, 4, 1, 3, 1, 1)));
  cases.push_back(simple("matmul empty sum batch", "matmul", {{{2, 3, 0}}, {{0, 4}}}, plain,
                         [](const Values&) { return std::vector<double>(24, 0.0); }));

  row = simple(
      "linear", "linear", {{{2, 3, 4}}, {{5, 4}}, {{5}}},
      [](const Variables& x) { return linear(x[0], x[1], x[2]); },
      [](const Values& x) {
        std::vector<double> y;
        for (size_t r = 0; r < 6; ++r)
          for (size_t o = 0; o < 5; ++o) {
            double t = x[2][o];
            for (size_t i = 0; i < 4; ++i) t += x[0][r * 4 + i] * x[1][o * 4 + i];
            y.push_back(t);
          }
        return y;
      });
  row.sized = [](int64_t n) { return std::vector<OpInput>{{{n, 3}}, {{2, 3}}, {{2}}}; };
  cases.push_back(row);
  row = simple(
      "linear without bias", "linear", {{{3, 4}}, {{5, 4}}},
      [](const Variables& x) { return linear(x[0], x[1], {}); },
      products(1, 3, 4, 5, 1, 1, false, true));
  row.sized = [](int64_t n) { return std::vector<OpInput>{{{2, n}}, {{3, n}}}; };
  cases.push_back(row);
  cases.push_back(simple("linear of itself", "linear", {{{3, 3}}},
                         [](const Variables& x) { return linear(x[0], x[0], {}); }));
}

}  // namespace macgrad::testing
