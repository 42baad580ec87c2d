// Dot-product kernels: coefficients against exact fractions (fixtures/maclaurin.json), series
// against f, radius, refusals, and f on Variables.
#include "macgrad/nn/dot_product_kernels.h"

#include <doctest/doctest.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "macgrad/autograd/engine.h"
#include "macgrad/experiments/common/output_files.h"
#include "macgrad/tests/errors.h"

namespace macgrad::nn {
namespace {

using experiments::Json;
using std::exp;
using std::log;
using std::pow;
using std::sqrt;
using testing::error_of;

const Json& fixture() {
  static const Json json = experiments::read_json(MACGRAD_FIXTURES "/maclaurin.json");
  return json;
}

double series(const DotProductKernel& kernel, double t) {
  double sum = 0.0;
  for (int64_t n = kMaxDegree; n >= 0; --n) sum = sum * t + kernel.coefficient(n);
  return sum;
}

TEST_CASE("coefficients to degree 40 equal the exact fractions") {
  for (const auto& [name, expected] : fixture()["coefficients"].items()) {
    const DotProductKernel kernel = dot_product_kernel(name);
    REQUIRE(expected.size() == 41);
    for (size_t n = 0; n <= 40; ++n) {
      CAPTURE(name);
      CAPTURE(n);
      const double a = expected[n];
      CHECK(std::abs(kernel.coefficient(static_cast<int64_t>(n)) - a) <= 1e-13 * a);
    }
  }
}

TEST_CASE("where the paper's table is misprinted") {
  // log is printed 1/min(1, N), sqrt with 2N - 3 for its double factorial, trigh as a fifth kernel.
  CHECK(dot_product_kernel("log").coefficient(0) == 1.0);
  CHECK(dot_product_kernel("log").coefficient(5) == doctest::Approx(1.0 / 5.0).epsilon(1e-15));
  CHECK(dot_product_kernel("sqrt").coefficient(4) == doctest::Approx(5.0 / 128.0).epsilon(1e-15));
  for (int64_t n = 0; n <= 40; ++n)
    CHECK(dot_product_kernel("trigh").coefficient(n) ==
          doctest::Approx(dot_product_kernel("exp").coefficient(n)).epsilon(1e-13));
}

TEST_CASE("every series meets f inside the radius and diverges outside") {
  std::vector<DotProductKernel> kernels = dot_product_kernels();
  for (const char* name : {"poly:c=1,k=3", "poly:c=0,k=2", "poly:c=0.5,k=7"})
    kernels.push_back(dot_product_kernel(name));
  for (const DotProductKernel& kernel : kernels) {
    CAPTURE(kernel.name());
    const double edge = std::isinf(kernel.radius()) ? 3.0 : 0.95 * kernel.radius();
    for (double t = -edge; t <= edge; t += edge / 8)
      CHECK(std::abs(series(kernel, t) - kernel(t)) <= 1e-9 * kernel(std::abs(t)));
    if (std::isfinite(kernel.radius())) {
      // a_n / a_(n+1) tends to the radius like R(1 + c/n).
      const double ratio = kernel.coefficient(kMaxDegree - 1) / kernel.coefficient(kMaxDegree);
      CHECK(ratio == doctest::Approx(kernel.radius()).epsilon(4.0 / kMaxDegree));
    } else {
      // Below any geometric series: root test.
      CHECK(std::pow(kernel.coefficient(100), 0.01) < 0.05);
    }
  }
}

TEST_CASE("a kernel of one's own is one expression") {
  const DotProductKernel kernel("own", "(1 - t)^-1.5", 1.0,
                                [](const auto& t) { return pow(1.0 - t, -1.5); });
  // Binomial series: a_n = a_(n-1)·(n + 1/2)/n.
  double a = 1.0;
  for (int64_t n = 1; n <= 40; ++n) {
    a *= (static_cast<double>(n) + 0.5) / static_cast<double>(n);
    CHECK(kernel.coefficient(n) == doctest::Approx(a).epsilon(1e-13));
  }
}

TEST_CASE("refused kernels are named with the reason") {
  const std::string negative = error_of([] {
    DotProductKernel("dent", "exp(t) - t^3/5", kEverywhere,
                     [](const auto& t) { return exp(t) - 0.2 * t * t * t; });
  });
  CHECK(negative.find("dent") != std::string::npos);
  CHECK(negative.find("degree 3") != std::string::npos);
  CHECK_THROWS_AS(DotProductKernel("decay", "exp(-t)", kEverywhere,
                                   [](const auto& t) { return exp(-1.0 * t); }),
                  Error);
  // A radius that is too large.
  CHECK_THROWS_AS(DotProductKernel("wide", "", 2.0, [](const auto& t) { return 1.0 / (1.0 - t); }),
                  Error);
  CHECK_THROWS_AS(
      DotProductKernel("wide", "", kEverywhere, [](const auto& t) { return 1.0 / (1.0 - t); }),
      Error);
  CHECK_THROWS_AS(DotProductKernel("pole", "", 1.0, [](const auto& t) { return 1.0 / t; }), Error);
}

TEST_CASE("names and polynomials") {
  const DotProductKernel cube = dot_product_kernel("poly:c=2,k=3");
  CHECK(cube.formula() == "(2 + t)^3");
  CHECK(cube.coefficient(0) == 8.0);
  CHECK(cube.coefficient(1) == 12.0);
  CHECK(cube.coefficient(2) == 6.0);
  CHECK(cube.coefficient(3) == 1.0);
  CHECK(cube.coefficient(4) == 0.0);
  CHECK(cube(0.5) == 15.625);
  for (const char* bad : {"gauss", "poly:c=-1,k=2", "poly:c=1,k=1.5", "poly:c=1", "poly:c=x,k=2",
                          "poly:c=1,k=2,z=3", "poly:"})
    CHECK_THROWS_AS(dot_product_kernel(bad), Error);
  CHECK(error_of([] { dot_product_kernel("gauss"); }).find("trigh") != std::string::npos);
}

TEST_CASE("the logit scale must keep t inside the radius") {
  const DotProductKernel inv = dot_product_kernel("inv");
  check_domain(inv, 7.9, 64);
  CHECK_THROWS_AS(check_domain(inv, 8.0, 64), Error);
  CHECK_THROWS_AS(check_domain(inv, 1.0, 1), Error);
  CHECK_THROWS_AS(check_domain(inv, 0.0, 64), Error);
  check_domain(dot_product_kernel("exp"), 1000.0, 64);
  CHECK(max_logit_scale(inv.radius(), 64) == doctest::Approx(7.6));
  CHECK(std::isinf(max_logit_scale(dot_product_kernel("exp").radius(), 64)));
}

TEST_CASE("power series arithmetic") {
  const auto t = PowerSeries::variable(12);
  const PowerSeries s = 2.0 + 3.0 * t - t * t / 4.0;
  auto same = [](const PowerSeries& a, const PowerSeries& b) {
    for (size_t n = 0; n <= a.degree(); ++n)
      CHECK(std::abs(a[n] - b[n]) <= 1e-11 * (1.0 + std::abs(b[n])));
  };
  same(exp(log(s)), s);
  same(sqrt(s) * sqrt(s), s);
  same(pow(s, -1), 1.0 / s);
  same(pow(s, 3.0), s * s * s);
  same(pow(s, 0.25) * pow(s, 1.75), s * s);
  same((s * exp(t)) / exp(t), s);
  same(s - s, 0.0 * t);
  CHECK_THROWS_AS(1.0 / t, Error);
  CHECK_THROWS_AS(log(t), Error);
  CHECK_THROWS_AS(sqrt(t), Error);
  CHECK_THROWS_AS(s + PowerSeries::variable(3), Error);
}

TEST_CASE("f on Variables has f's values and the series' derivative") {
  const std::vector<double> points = {-0.8, -0.25, 0.0, 0.4, 0.85};
  std::vector<DotProductKernel> kernels = dot_product_kernels();
  kernels.push_back(dot_product_kernel("poly:c=1,k=3"));
  for (const DotProductKernel& kernel : kernels) {
    CAPTURE(kernel.name());
    const Variable t(Tensor::from_vector(points), true);
    const Variable y = kernel(t);
    const auto values = y.value().to_vector<double>();
    const auto slopes = grad({y}, {t}, {Variable(Tensor::full(t.shape(), 1.0, DType::float64))})[0]
                            .value()
                            .to_vector<double>();
    for (size_t i = 0; i < points.size(); ++i) {
      CHECK(values[i] == doctest::Approx(kernel(points[i])).epsilon(1e-13));
      double slope = 0.0;
      for (int64_t n = kMaxDegree; n >= 1; --n)
        slope = slope * points[i] + static_cast<double>(n) * kernel.coefficient(n);
      CHECK(slopes[i] == doctest::Approx(slope).epsilon(1e-9));
    }
  }
}

}  // namespace
}  // namespace macgrad::nn
