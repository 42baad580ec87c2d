// Rows of the elementwise ops.

#include <algorithm>
#include <cmath>

#include "macgrad/tests/op_cases.h"

namespace macgrad::testing {
namespace {

using Formula = double (*)(double);
using Formula2 = double (*)(double, double);

void unary(OpCases& cases, const std::string& op, Variable (*f)(const Variable&), Formula formula,
           double low = -2, double high = 2) {
  OpCase row;
  row.name = op;
  row.op = op;
  row.inputs = {{{3, 4, 5}, low, high}};
  row.f = [f](const Variables& x) { return f(x[0]); };
  row.reference = [formula](const Values& x) {
    std::vector<double> y = x[0];
    for (double& v : y) v = formula(v);
    return y;
  };
  row.sized = [low, high](int64_t n) { return std::vector<OpInput>{{{n}, low, high}}; };
  cases.push_back(std::move(row));
}

struct Range {
  double low = -2, high = 2;
};

// One row of equal shapes, one where both sides broadcast.
void binary(OpCases& cases, const std::string& op,
            const std::function<Variable(const Variable&, const Variable&)>& f, Formula2 formula,
            Range a = {}, Range b = {}) {
  OpCase row;
  row.name = op;
  row.op = op;
  row.inputs = {{{3, 5}, a.low, a.high}, {{3, 5}, b.low, b.high}};
  row.f = [f](const Variables& x) { return f(x[0], x[1]); };
  row.reference = [formula](const Values& x) {
    std::vector<double> y = x[0];
    for (size_t i = 0; i < y.size(); ++i) y[i] = formula(y[i], x[1][i]);
    return y;
  };
  row.sized = [a, b](int64_t n) {
    return std::vector<OpInput>{{{2, n}, a.low, a.high}, {{n}, b.low, b.high}};
  };
  cases.push_back(row);
  row.name = op + " broadcast both";
  row.inputs = {{{3, 1, 4}, a.low, a.high}, {{2, 1}, b.low, b.high}};
  row.reference = [formula](const Values& x) {
    std::vector<double> y;
    for (size_t i = 0; i < 3; ++i)
      for (size_t j = 0; j < 2; ++j)
        for (size_t k = 0; k < 4; ++k) y.push_back(formula(x[0][i * 4 + k], x[1][j]));
    return y;
  };
  row.sized = {};
  cases.push_back(row);
  row.name = op + " scalar";
  row.inputs = {{{}, a.low, a.high}, {{4}, b.low, b.high}};
  row.reference = [formula](const Values& x) {
    std::vector<double> y = x[1];
    for (double& v : y) v = formula(x[0][0], v);
    return y;
  };
  cases.push_back(row);
}

// A comparison has no gradient of its own; it selects between a and b.
void comparison(OpCases& cases, const std::string& op, Tensor (*f)(const Tensor&, const Tensor&),
                bool (*formula)(double, double)) {
  OpCase row;
  row.name = op;
  row.op = op;
  // Ties and both orders.
  row.inputs = {{{2, 3}, 0, 0, true, {1, 2, 3, -1, 0, 5}},
                {{2, 3}, 0, 0, true, {1, 3, 2, -1, 0, 4}}};
  row.f = [f](const Variables& x) {
    return where(f(x[0].value(), x[1].value()), 2.0 * x[0], x[1]);
  };
  row.reference = [formula](const Values& x) {
    std::vector<double> y;
    for (size_t i = 0; i < x[0].size(); ++i)
      y.push_back(formula(x[0][i], x[1][i]) ? 2 * x[0][i] : x[1][i]);
    return y;
  };
  row.gradient = false;  // at the ties the function jumps
  row.second = false;
  cases.push_back(std::move(row));
}

void comparison_with_number(OpCases& cases, const std::string& op,
                            Tensor (*f)(const Tensor&, double), bool (*formula)(double, double)) {
  OpCase row;
  row.name = op + " number";
  row.op = op;
  row.inputs = {{{5}, 0, 0, true, {-1, 0.25, 0.5, 0.75, 2}}};
  row.f = [f](const Variables& x) { return where(f(x[0].value(), 0.5), x[0], 9.0); };
  row.reference = [formula](const Values& x) {
    std::vector<double> y = x[0];
    for (double& v : y) v = formula(v, 0.5) ? v : 9.0;
    return y;
  };
  row.gradient = false;
  row.second = false;
  cases.push_back(std::move(row));
}

OpCase simple(const std::string& name, const std::string& op, std::vector<OpInput> inputs,
              std::function<Variable(const Variables&)> f,
              std::function<std::vector<double>(const Values&)> reference) {
  OpCase row;
  row.name = name;
  row.op = op;
  row.inputs = std::move(inputs);
  row.f = std::move(f);
  row.reference = std::move(reference);
  return row;
}

// y[i] = formula(x[i]) for rows with one input.
std::function<std::vector<double>(const Values&)> each(std::function<double(double)> formula) {
  return [formula = std::move(formula)](const Values& x) {
    std::vector<double> y = x[0];
    for (double& v : y) v = formula(v);
    return y;
  };
}

void add_unary(OpCases& cases) {
  unary(cases, "neg", neg, [](double x) { return -x; });
  unary(cases, "abs", abs, [](double x) { return std::fabs(x); });
  unary(cases, "sign", sign, [](double x) { return x > 0 ? 1.0 : x < 0 ? -1.0 : 0.0; });
  unary(cases, "exp", exp, [](double x) { return std::exp(x); });
  unary(cases, "expm1", expm1, [](double x) { return std::expm1(x); });
  unary(
      cases, "log", log, [](double x) { return std::log(x); }, 0.3, 4);
  unary(
      cases, "log1p", log1p, [](double x) { return std::log1p(x); }, -0.6, 4);
  unary(
      cases, "sqrt", sqrt, [](double x) { return std::sqrt(x); }, 0.3, 4);
  unary(
      cases, "rsqrt", rsqrt, [](double x) { return 1 / std::sqrt(x); }, 0.4, 4);
  unary(
      cases, "reciprocal", reciprocal, [](double x) { return 1 / x; }, -2, -0.5);
  unary(cases, "sin", sin, [](double x) { return std::sin(x); });
  unary(cases, "cos", cos, [](double x) { return std::cos(x); });
  unary(cases, "sinh", sinh, [](double x) { return std::sinh(x); });
  unary(cases, "cosh", cosh, [](double x) { return std::cosh(x); });
  unary(cases, "tanh", tanh, [](double x) { return std::tanh(x); });
  unary(cases, "sigmoid", sigmoid, [](double x) { return 1 / (1 + std::exp(-x)); });
  unary(cases, "relu", relu, [](double x) { return std::max(x, 0.0); });
  unary(cases, "gelu", gelu, [](double x) { return x / 2 * std::erfc(-x * M_SQRT1_2); });
  unary(cases, "gelu_tanh", gelu_tanh, [](double x) {
    return x / 2 * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
  });
  unary(cases, "erf", erf, [](double x) { return std::erf(x); });
  unary(cases, "identity", identity, [](double x) { return x; });
}

void add_binary(OpCases& cases) {
  using V = const Variable&;
  binary(
      cases, "add", [](V a, V b) { return a + b; }, [](double a, double b) { return a + b; });
  binary(
      cases, "sub", [](V a, V b) { return a - b; }, [](double a, double b) { return a - b; });
  binary(
      cases, "mul", [](V a, V b) { return a * b; }, [](double a, double b) { return a * b; });
  binary(
      cases, "div", [](V a, V b) { return a / b; }, [](double a, double b) { return a / b; }, {},
      {0.5, 2});
  binary(
      cases, "maximum", [](V a, V b) { return maximum(a, b); },
      [](double a, double b) { return std::max(a, b); });
  binary(
      cases, "minimum", [](V a, V b) { return minimum(a, b); },
      [](double a, double b) { return std::min(a, b); });
  binary(
      cases, "pow", [](V a, V b) { return pow(a, b); },
      [](double a, double b) { return std::pow(a, b); }, {0.4, 2});
  binary(
      cases, "signed_pow", [](V a, V b) { return signed_pow(a, b); },
      [](double a, double b) { return std::copysign(std::pow(std::fabs(a), b), a); }, {-2, -0.4},
      {0.5, 2.5});
  // One Variable on both sides.
  cases.push_back(simple(
      "mul x x", "mul", {{{4}}}, [](const Variables& x) { return x[0] * x[0]; },
      each([](double v) { return v * v; })));
  cases.push_back(simple(
      "div x x", "div", {{{4}, 0.5, 2}}, [](const Variables& x) { return x[0] / x[0]; },
      each([](double) { return 1.0; })));
  cases.push_back(simple(
      "pow x x", "pow", {{{4}, 0.5, 2}}, [](const Variables& x) { return pow(x[0], x[0]); },
      each([](double v) { return std::pow(v, v); })));
  // At exponents where a power rule has a hole: b = 0 is constant in a, but not in a and b.
  cases.push_back(simple("pow exponent 0 and 1", "pow",
                         {{{3}, 0.5, 2}, {{3}, 0, 0, true, {0, 1, 2}}},
                         [](const Variables& x) { return pow(x[0], x[1]); }, {}));
  for (const double e : {2.0, 3.0, 0.5, -1.0, 1.0, 0.0})
    cases.push_back(simple(
        fmt::format("pow number {}", e), "pow", {{{5}, 0.4, 2}},
        [e](const Variables& x) { return pow(x[0], e); },
        each([e](double v) { return std::pow(v, e); })));
  cases.push_back(simple(
      "pow of negatives", "pow", {{{5}, -2, -0.5}},
      [](const Variables& x) { return pow(x[0], 3.0); }, each([](double v) { return v * v * v; })));
}

void add_with_numbers(OpCases& cases) {
  cases.push_back(simple(
      "add number", "add", {{{2, 3}}}, [](const Variables& x) { return add(x[0], 0.75); },
      each([](double v) { return v + 0.75; })));
  cases.push_back(simple(
      "mul number", "mul", {{{2, 3}}}, [](const Variables& x) { return mul(x[0], -2.5); },
      each([](double v) { return -2.5 * v; })));
  cases.push_back(simple(
      "operators", "sub", {{{4}, 0.5, 2}, {{4}, 0.5, 2}},
      [](const Variables& x) {
        const Variable &a = x[0], &b = x[1];
        return (1.0 - a) / (b + 2.0) + (2.0 / b) * 0.5 - a / 4.0 + 3.0 * (-b) + (1.0 + a - 0.25);
      },
      [](const Values& x) {
        std::vector<double> y;
        for (size_t i = 0; i < x[0].size(); ++i) {
          const double a = x[0][i], b = x[1][i];
          y.push_back((1 - a) / (b + 2) + 1 / b - a / 4 - 3 * b + (0.75 + a));
        }
        return y;
      }));
}

void add_selections(OpCases& cases) {
  OpCase row = simple(
      "clamp", "clamp", {{{4, 5}, -2, 2}},
      [](const Variables& x) { return clamp(x[0], -0.75, 1.0); },
      each([](double v) { return std::clamp(v, -0.75, 1.0); }));
  row.sized = [](int64_t n) { return std::vector<OpInput>{{{n}, -2, 2}}; };
  cases.push_back(row);
  const auto condition = [](const Shape& shape) { return random_mask(shape, 20); };
  row = simple(
      "where", "where", {{{3, 4}}, {{4}}},
      [condition](const Variables& x) { return where(condition(x[0].shape()), x[0], x[1]); },
      [condition](const Values& x) {
        const auto c = condition({3, 4}).to_vector<bool>();
        std::vector<double> y = x[0];
        for (size_t i = 0; i < y.size(); ++i)
          if (!c[i]) y[i] = x[1][i % 4];
        return y;
      });
  row.sized = [](int64_t n) { return std::vector<OpInput>{{{3, n}}, {{n}}}; };
  cases.push_back(row);
  cases.push_back(simple(
      "where number", "where", {{{3, 4}}},
      [condition](const Variables& x) {
        return where(condition({2, 3, 4}), x[0], 0.25);
      },
      [condition](const Values& x) {
        const auto c = condition({2, 3, 4}).to_vector<bool>();
        std::vector<double> y;
        for (size_t i = 0; i < c.size(); ++i) y.push_back(c[i] ? x[0][i % 12] : 0.25);
        return y;
      }));
  cases.push_back(simple(
      "masked_fill", "masked_fill", {{{3, 4}}},
      [condition](const Variables& x) { return masked_fill(x[0], condition({4}), -2.0); },
      [condition](const Values& x) {
        const auto c = condition({4}).to_vector<bool>();
        std::vector<double> y = x[0];
        for (size_t i = 0; i < y.size(); ++i)
          if (c[i % 4]) y[i] = -2;
        return y;
      }));
  cases.push_back(simple(
      "cast", "cast", {{{3, 4}}},
      [](const Variables& x) {
        const Variable wide = cast(x[0], DType::float64);
        return cast(wide * wide, x[0].dtype());
      },
      each([](double v) { return v * v; })));
  row = simple(
      "dropout", "dropout", {{{7, 9}}},
      [](const Variables& x) {
        return dropout(x[0], 0.25, {3, 1, 2, 5});
      },
      [](const Values& x) {
        std::vector<double> y = x[0];
        for (size_t i = 0; i < y.size(); ++i) {
          const bool kept = uniform_from_bits(random_bits({3, 1, 2, 5}, i)) >= 0.25f;
          y[i] = kept ? y[i] / 0.75 : 0.0;
        }
        return y;
      });
  row.sized = [](int64_t n) { return std::vector<OpInput>{{{n}}}; };
  cases.push_back(row);
  cases.push_back(simple(
      "dropout 0", "dropout", {{{5}}}, [](const Variables& x) { return dropout(x[0], 0.0, {}); },
      each([](double v) { return v; })));
}

void add_comparisons(OpCases& cases) {
  comparison(cases, "equal", equal, [](double a, double b) { return a == b; });
  comparison(cases, "not_equal", not_equal, [](double a, double b) { return a != b; });
  comparison(cases, "less", less, [](double a, double b) { return a < b; });
  comparison(cases, "less_equal", less_equal, [](double a, double b) { return a <= b; });
  comparison(cases, "greater", greater, [](double a, double b) { return a > b; });
  comparison(cases, "greater_equal", greater_equal, [](double a, double b) { return a >= b; });
  comparison_with_number(cases, "equal", equal, [](double a, double b) { return a == b; });
  comparison_with_number(cases, "less", less, [](double a, double b) { return a < b; });
  comparison_with_number(cases, "greater", greater, [](double a, double b) { return a > b; });
}

}  // namespace

void add_elementwise_cases(OpCases& cases) {
  add_unary(cases);
  add_binary(cases);
  add_with_numbers(cases);
  add_selections(cases);
  add_comparisons(cases);
}

}  // namespace macgrad::testing
