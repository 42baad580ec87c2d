// The table of dot-product kernels and the checks every entry goes through: coefficients >= 0, for
// f to be a scalar product of features (nn/README.md, equation (3)), and a series that meets f.
#include "macgrad/nn/dot_product_kernels.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <optional>
#include <utility>

#include "macgrad/core/error.h"

namespace macgrad::nn {

// Formulas call these unqualified; for the other types argument-dependent lookup finds theirs.
using std::exp;
using std::log;
using std::pow;
using std::sqrt;

double DotProductKernel::coefficient(int64_t degree, double scale) const {
  const double a = coefficient(degree), power = std::pow(scale, static_cast<double>(degree));
  if (std::isfinite(power)) return a * power;
  return a > 0.0 ? std::exp(std::log(a) + static_cast<double>(degree) * std::log(scale)) : 0.0;
}

const std::vector<DotProductKernel>& dot_product_kernels() {
  // To add a kernel, add a line: name, formula, radius of convergence, f.
  static const std::vector<DotProductKernel> table = {
      {"exp", "exp(t)", kEverywhere, [](const auto& t) { return exp(t); }},
      {"inv", "1/(1 - t)", 1.0, [](const auto& t) { return 1.0 / (1.0 - t); }},
      {"log", "1 - log(1 - t)", 1.0, [](const auto& t) { return 1.0 - log(1.0 - t); }},
      // sinh t + cosh t: the exponential again, as the paper lists it.
      {"trigh", "sinh(t) + cosh(t)", kEverywhere,
       [](const auto& t) {
         const auto up = exp(t);
         const auto down = exp(-1.0 * t);
         return 0.5 * (up - down) + 0.5 * (up + down);
       }},
      {"sqrt", "2 - sqrt(1 - t)", 1.0, [](const auto& t) { return 2.0 - sqrt(1.0 - t); }},
  };
  return table;
}

namespace {

constexpr const char* kPolynomial = "poly:c=C,k=K";

double parse_number(const std::string& name, const std::string& text) {
  double value = 0.0;
  const auto [end, code] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (code != std::errc{} || end != text.data() + text.size())
    throw Error("[kernel] {}: '{}' is not a number; write {}", name, text, kPolynomial);
  return value;
}

/// "poly:c=1,k=3".
DotProductKernel polynomial(const std::string& name) {
  double c = 1.0;
  std::optional<double> degree_given;
  size_t at = std::string("poly:").size();
  while (at < name.size()) {
    const size_t end = std::min(name.find(',', at), name.size());
    const std::string option = name.substr(at, end - at);
    if (option.starts_with("c="))
      c = parse_number(name, option.substr(2));
    else if (option.starts_with("k="))
      degree_given = parse_number(name, option.substr(2));
    else
      throw Error("[kernel] {}: unknown option '{}'; write {}", name, option, kPolynomial);
    at = end + 1;
  }
  require(degree_given.has_value(), "[kernel] {}: k is missing; write {}", name, kPolynomial);
  const double k = *degree_given;
  require(c >= 0.0 && std::isfinite(c), "[kernel] {}: c is {} and must be >= 0", name, c);
  require(k >= 1.0 && k <= 64.0 && k == std::floor(k),
          "[kernel] {}: k is {} and must be a whole number from 1 to 64", name, k);
  const int degree = static_cast<int>(k);
  return {name, fmt::format("({} + t)^{}", c, degree), kEverywhere, [c, degree](const auto& t) {
            const auto base = c + t;
            auto power = base;
            for (int i = 1; i < degree; ++i) power = power * base;
            return power;
          }};
}

}  // namespace

DotProductKernel::DotProductKernel(std::string name, std::string formula, double radius,
                                   const PowerSeries& series, std::function<double(double)> value,
                                   std::function<Variable(const Variable&)> graph)
    : name_(std::move(name)),
      formula_(std::move(formula)),
      radius_(radius),
      value_(std::move(value)),
      graph_(std::move(graph)) {
  require(radius_ > 0.0, "[kernel] {}: the radius is {} and must be positive", name_, radius_);
  std::vector<double> a = series.coefficients();
  double largest = 0.0;
  for (size_t n = 0; n < a.size(); ++n) {
    if (!std::isfinite(a[n]))
      throw Error("[kernel] {}: the coefficient of degree {} is {}; rescale t", name_, n, a[n]);
    largest = std::max(largest, std::abs(a[n]));
    if (a[n] < -1e-14 * largest)
      throw Error(
          "[kernel] {}: the Maclaurin coefficient of degree {} is {}; random Maclaurin features "
          "need every coefficient >= 0",
          name_, n, a[n]);
    a[n] = std::max(a[n], 0.0);
  }
  // A stated radius that is too large shows up here as a series that does not converge to f.
  const double edge = std::isinf(radius_) ? 8.0 : 0.9 * radius_;
  for (const double t : {edge, 0.5 * edge, -0.5 * edge, -edge}) {
    double sum = 0.0;
    double magnitude = 0.0;
    for (size_t n = a.size(); n-- > 0;) {
      sum = sum * t + a[n];
      magnitude = magnitude * std::abs(t) + a[n];
    }
    const double expected = value_(t);
    const double last =
        a.back() == 0.0 ? 0.0 : a.back() * std::pow(std::abs(t), static_cast<double>(kMaxDegree));
    if (!(std::abs(sum - expected) <= 1e-9 * std::abs(expected) + 1e-12 * magnitude &&
          std::isfinite(magnitude) && last <= 1e-12 * magnitude))
      throw Error(
          "[kernel] {}: f({}) is {} but its Maclaurin series gives {}; is the radius of "
          "convergence {}?",
          name_, t, expected, sum, radius_);
  }
  coefficients_ = std::make_shared<const std::vector<double>>(std::move(a));
}

DotProductKernel dot_product_kernel(const std::string& name) {
  for (const DotProductKernel& kernel : dot_product_kernels())
    if (kernel.name() == name) return kernel;
  if (name.starts_with("poly:")) return polynomial(name);
  throw Error("[kernel] no dot-product kernel '{}'; there are: {}", name,
              dot_product_kernel_names());
}

std::string dot_product_kernel_names() {
  std::string names;
  for (const DotProductKernel& kernel : dot_product_kernels()) names += kernel.name() + ", ";
  return names + kPolynomial;
}

void check_domain(const DotProductKernel& kernel, double logit_scale, int64_t head_dim) {
  require(logit_scale > 0.0 && std::isfinite(logit_scale),
          "[kernel] logit_scale is {} and must be positive", logit_scale);
  require(head_dim >= 1, "[kernel] head_dim is {} and must be at least 1", head_dim);
  const double reach = logit_scale / std::sqrt(static_cast<double>(head_dim));
  if (!(reach < kernel.radius()))
    throw Error(
        "[kernel] {}: logit_scale {} with head_dim {} lets |t| reach {:.4g}, but the series "
        "converges for |t| < {}; use a logit_scale below {:.4g}",
        kernel.name(), logit_scale, head_dim, reach, kernel.radius(),
        kernel.radius() * std::sqrt(static_cast<double>(head_dim)));
}

double max_logit_scale(double radius, int64_t head_dim) {
  return 0.95 * radius * std::sqrt(static_cast<double>(head_dim));
}

}  // namespace macgrad::nn
