// The numbers of the examples in nn/README.md, sections 2 to 6, each by enumeration of all outcomes
// or by the library itself: variances of features, the bias of a quotient, gradients of postSBN,
// errata.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <numbers>
#include <tuple>
#include <utility>
#include <vector>

#include "macgrad/autograd/attention.h"
#include "macgrad/autograd/engine.h"
#include "macgrad/core/feature_draw.h"
#include "macgrad/nn/maclaurin_draw.h"

namespace macgrad::nn {
namespace {

using Row = std::vector<double>;

struct Moments {
  double mean = 0.0, variance = 0.0;
};
/// Of (probability, value) pairs.
Moments moments(const std::vector<std::pair<double, double>>& outcomes) {
  double mean = 0.0, square = 0.0;
  for (const auto& [p, value] : outcomes) {
    mean += p * value;
    square += p * value * value;
  }
  return {mean, square - mean * mean};
}

/// All ±1 matrices (rows, columns).
std::vector<Tensor> sign_matrices(int64_t rows, int64_t columns) {
  std::vector<Tensor> all;
  for (int64_t bits = 0; bits < int64_t{1} << (rows * columns); ++bits) {
    Row signs;
    for (int64_t i = 0; i < rows * columns; ++i) signs.push_back((bits >> i) & 1 ? 1.0 : -1.0);
    all.push_back(Tensor::from_values(signs, Shape{rows, columns}, DType::float64));
  }
  return all;
}

double estimate(const FeatureDraw& draw, const Row& x, const Row& y) {
  const Row a = reference_features(draw, x), b = reference_features(draw, y);
  double sum = 0.0;
  for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

const Row kX = {0.6, 0.8}, kY = {1.0, 0.0};

/// (1 + t)² with t = x·y and the law (4, 2, 1)/7 of section 2.
FeatureSettings square_settings(DrawMethod method, int64_t features) {
  FeatureSettings s;
  s.method = method;
  s.features = features;
  s.head_dim = 2;
  s.logit_scale = std::sqrt(2.0);
  s.cap = 2;
  return s;
}

/// Of the kernel value with one random feature: over its degrees and all of its signs.
Moments one_feature(DrawMethod method, int64_t features) {
  const DotProductKernel kernel = dot_product_kernel("poly:c=1,k=2");
  const FeatureSettings s = square_settings(method, features);
  const FeaturePlan plan = feature_plan(kernel, s);
  REQUIRE(plan.tail_count == 1);
  std::vector<std::pair<double, double>> outcomes;
  for (size_t i = 0; i < plan.tail_law.size(); ++i) {
    const int64_t n = plan.tail_from + static_cast<int64_t>(i);
    FeatureDraw draw = weigh_features(kernel, s, plan, {n});
    const auto signs = sign_matrices(2, n);
    for (const Tensor& omega : signs) {
      draw.omega = omega;
      outcomes.emplace_back(plan.tail_law[i] / static_cast<double>(signs.size()),
                            estimate(draw, kX, kY));
    }
  }
  return moments(outcomes);
}

TEST_CASE("nn/README.md, section 2: variance of one feature, and what exact terms take from it") {
  for (const auto& [method, features, variance] :
       {std::tuple{DrawMethod::iid, 1, 16.1964}, std::tuple{DrawMethod::official, 2, 6.5664},
        std::tuple{DrawMethod::h01, 4, 0.8704}}) {
    CAPTURE(draw_method_name(method));
    const Moments m = one_feature(method, features);
    CHECK(m.mean == doctest::Approx(2.56).epsilon(1e-12));
    CHECK(m.variance == doctest::Approx(variance).epsilon(1e-12));
  }
}

TEST_CASE("nn/README.md, section 2: seven features with counts 4, 2, 1") {
  const DotProductKernel kernel = dot_product_kernel("poly:c=1,k=2");
  const FeatureSettings s = square_settings(DrawMethod::stratified, 7);
  const FeaturePlan plan = feature_plan(kernel, s);
  // Every draw has these counts.
  for (uint32_t i = 0; i < 20; ++i)
    CHECK(draw_degrees(plan, DrawKey{1, 2, 0, i}) == std::vector<int64_t>{2, 1, 1, 0, 0, 0, 0});
  FeatureDraw draw = weigh_features(kernel, s, plan, {2, 1, 1, 0, 0, 0, 0});
  REQUIRE(draw.projections() == 4);
  std::vector<std::pair<double, double>> outcomes;
  const auto signs = sign_matrices(2, 4);
  for (const Tensor& omega : signs) {
    draw.omega = omega;
    outcomes.emplace_back(1.0 / static_cast<double>(signs.size()), estimate(draw, kX, kY));
  }
  const Moments m = moments(outcomes);
  CHECK(m.mean == doctest::Approx(2.56).epsilon(1e-12));
  CHECK(m.variance == doctest::Approx(2.1504).epsilon(1e-12));
  CHECK(16.1964 / 7.0 == doctest::Approx(2.3138).epsilon(1e-4));
}

/// Signs and orders of two factors of d = 2, given by the bits of a number: 64 outcomes.
struct TwoFactors {
  int bits;
  int next() {
    const int bit = bits & 1;
    bits >>= 1;
    return bit;
  }
  void signs(int8_t* out, int64_t n) {
    for (int64_t i = 0; i < n; ++i) out[i] = next() != 0 ? 1 : -1;
  }
  void permutation(int32_t* out, int64_t n) {
    REQUIRE(n == 2);
    out[0] = next();
    out[1] = 1 - out[0];
  }
};

TEST_CASE("nn/README.md, section 2: features of degree 2 from shifted Hadamard blocks") {
  const double variances[] = {0.8704, 0.4096, 0.0967, 0.0};
  for (int64_t count = 1; count <= 4; ++count) {
    CAPTURE(count);
    std::vector<std::pair<double, double>> outcomes;
    for (int bits = 0; bits < 64; ++bits) {
      TwoFactors source{bits};
      std::vector<int8_t> signs(2);
      std::vector<int32_t> order(2);
      // (feature, factor): projections of x and y.
      std::vector<std::pair<double, double>> p(static_cast<size_t>(2 * count));
      hadamard_rows(2, 2, count, SignDesign::shifted_blocks, source, {signs.data(), order.data()},
                    Alone{}, [&](int64_t feature, int64_t factor, int64_t i, bool minus) {
                      auto& [px, py] = p[static_cast<size_t>(2 * feature + factor)];
                      px += (minus ? -1.0 : 1.0) * kX[static_cast<size_t>(i)];
                      py += (minus ? -1.0 : 1.0) * kY[static_cast<size_t>(i)];
                    });
      double mean = 0.0;
      for (size_t f = 0; f < static_cast<size_t>(count); ++f)
        mean += p[2 * f].first * p[2 * f].second * p[2 * f + 1].first * p[2 * f + 1].second;
      outcomes.emplace_back(1.0 / 64.0, mean / static_cast<double>(count));
    }
    const Moments m = moments(outcomes);
    CHECK(m.mean == doctest::Approx(0.36).epsilon(1e-12));
    CHECK(std::abs(m.variance - variances[count - 1]) < 5e-5);
  }
}

TEST_CASE("nn/README.md, section 2: the variance model at d = 2, q = k, against the circle") {
  const VarianceModel model(2, 1.0);
  using enum SignDesign;
  CHECK(model.second_moment(1) == doctest::Approx(1.5));
  CHECK(model.variance(1, 1, independent) == doctest::Approx(0.5));
  CHECK(model.variance(2, 1, independent) == doctest::Approx(1.25));
  // M = 1 + sin²(2θ): its mean is what the model has, the mean of M² is not the square of that.
  double first = 0.0, second = 0.0;
  constexpr int kAngles = 16;
  for (int i = 0; i < kAngles; ++i) {
    const double theta = 2.0 * std::numbers::pi * i / kAngles;
    const double c = std::cos(theta), s = std::sin(theta);
    const double M = 1.0 + 2.0 * (1.0 - c * c * c * c - s * s * s * s);
    first += M / kAngles;
    second += M * M / kAngles;
  }
  CHECK(first == doctest::Approx(1.5));
  CHECK(second - 1.0 == doctest::Approx(1.375));
  // (14) is ½ here: 2 and 4 features of degree 2, a complete block of degree 1.
  CHECK(model.variance(2, 2, shifted_blocks) == doctest::Approx(0.25));
  CHECK(std::abs(model.variance(2, 4, shifted_blocks)) < 1e-15);
  CHECK(std::abs(model.variance(1, 2, blocks)) < 1e-15);
}

/// Rows as (1, 1, T, d).
Variable rows(const std::vector<Row>& values) {
  Row flat;
  for (const Row& row : values) flat.insert(flat.end(), row.begin(), row.end());
  return Variable(Tensor::from_values(
      flat,
      Shape{1, 1, static_cast<int64_t>(values.size()), static_cast<int64_t>(values[0].size())},
      DType::float64));
}

/// Outputs for one query over all signs of `count` features of degree 1 and weight 1/√count.
Row outputs(const Row& q, const std::vector<Row>& k, double constant, int64_t count) {
  RmfaArgs args;
  args.levels = {count};
  args.constant = constant;
  const Tensor weight =
      Tensor::full({count}, 1.0 / std::sqrt(static_cast<double>(count)), DType::float64);
  Row all;
  for (const Tensor& omega : sign_matrices(2, count))
    all.push_back(rmfa(rows({q}), rows(k), rows({{1.0}, {0.0}}), {}, omega, weight, args).item());
  return all;
}
double mean_of(const Row& values) {
  double sum = 0.0;
  for (double v : values) sum += v;
  return sum / static_cast<double>(values.size());
}

TEST_CASE("nn/README.md, section 3: the bias of the quotient") {
  const std::vector<Row> k = {{1.0, 0.0}, {0.0, 1.0}};
  const double exact = 1.6 / 3.4;
  CHECK(exact == doctest::Approx(0.4706).epsilon(1e-4));
  for (double out : outputs(kX, k, 1.0, 1)) {
    const double nearest = out > 0.45 ? 0.5 : 0.4;
    CHECK(out == doctest::Approx(nearest).epsilon(1e-12));
  }
  CHECK(mean_of(outputs(kX, k, 1.0, 1)) == doctest::Approx(0.45).epsilon(1e-12));
  // Variance of the denominator and covariance for one feature; both fall as 1/count in (19).
  const double predicted = 1.6 * 1.4 * 1.4 / std::pow(3.4, 3.0) - 0.8 * 1.4 / std::pow(3.4, 2.0);
  CHECK(std::abs(predicted - -0.0171) < 5e-5);
  CHECK(std::abs(mean_of(outputs(kX, k, 1.0, 1)) - exact - -0.0206) < 5e-5);
  CHECK(std::abs(predicted / 4.0 - -0.0043) < 5e-5);
  CHECK(std::abs(mean_of(outputs(kX, k, 1.0, 4)) - exact - -0.0048) < 5e-5);
}

TEST_CASE("nn/README.md, section 6: one feature alone does not see the query") {
  const std::vector<Row> k = {{1.0, 0.0}, {0.6, 0.8}};
  for (const Row& q : {Row{1.0, 0.0}, Row{0.0, 1.0}, Row{0.8, -0.6}}) {
    const Row all = outputs(q, k, 0.0, 1);
    for (double out : all) {
      const double nearest = out > 0.8 ? 1.0 / 0.8 : 1.0 / 2.4;
      CHECK(out == doctest::Approx(nearest).epsilon(1e-12));
    }
    CHECK(mean_of(all) == doctest::Approx(0.8333).epsilon(1e-4));
  }
  CHECK(1.0 / (1.0 + 0.6) == 0.625);  // attention of f = t for q = (1, 0)
}

TEST_CASE("nn/README.md, section 4: postSBN by hand") {
  const auto number = [](double value) {
    return Variable(Tensor::full({1}, value, DType::float64), true);
  };
  const Variable a = number(0.25), gamma = number(2.0), beta = number(1.5);
  const Variable y = post_sbn(a, gamma, beta);
  CHECK(y.item() == doctest::Approx(0.3536).epsilon(1e-4));
  const Variables g = grad({y}, {a, gamma, beta});
  CHECK(g[0].item() == doctest::Approx(2.1213).epsilon(1e-4));
  CHECK(g[1].item() == doctest::Approx(0.2652).epsilon(1e-4));
  CHECK(g[2].item() == doctest::Approx(-0.2451).epsilon(1e-4));
  // At 0 the slope is ε_p^(β-1).
  const Variable zero = number(0.0);
  const Variable root = post_sbn(zero, number(1.0), number(0.5));
  CHECK(grad({root}, {zero})[0].item() == doctest::Approx(1000.0));
}

TEST_CASE("nn/README.md, section 4: in row mode the spread of a row does not matter") {
  const Variable x(Tensor::from_values(Row{3.0, -1.0, 0.5, 2.0}, Shape{1, 1, 1, 4}, DType::float64),
                   true);
  const Variable c(
      Tensor::from_values(Row{0.2, 0.7, -1.1, 0.4}, Shape{1, 1, 1, 4}, DType::float64));
  const auto at = [&](double eps) {
    const Variable y = pre_sbn(x, {}, SbnStatistics::row, eps, nullptr);
    return std::pair(y.value(), grad({y}, {x}, {c})[0].value());
  };
  const auto [y, dx] = at(0.0);
  const auto [y1, dx1] = at(1.0);
  CHECK(max_abs_difference(y, y1) < 1e-14);
  CHECK(max_abs_difference(dx, dx1) < 1e-14);
}

TEST_CASE("nn/README.md, section 6: misprinted coefficients and law") {
  const DotProductKernel log_kernel = dot_product_kernel("log"), root = dot_product_kernel("sqrt");
  CHECK(log_kernel(0.5) == doctest::Approx(1.6931).epsilon(1e-4));
  CHECK(root(0.9) == doctest::Approx(1.6838).epsilon(1e-4));
  double printed_log = 1.0, printed_root = 1.0, factor = 1.0;
  for (int n = 1; n <= 60; ++n) {
    factor *= 2.0 * n;
    printed_log += std::pow(0.5, n);
    printed_root += std::max(1.0, 2.0 * n - 3.0) / factor * std::pow(0.9, n);
    if (n == 4) CHECK(5.0 / factor == doctest::Approx(5.0 / 384.0));
  }
  CHECK(printed_log == doctest::Approx(2.0));
  CHECK(printed_root == doctest::Approx(1.6065).epsilon(1e-4));
  // p^(-n-1) against the true probability, at p = 3.
  double sum = 0.0;
  const auto law = geometric_law(3.0, 0, 40);
  for (int n = 0; n <= 40; ++n) {
    sum += std::pow(3.0, -n - 1);
    CHECK(law[static_cast<size_t>(n)] / std::pow(3.0, -n - 1) == doctest::Approx(2.0));
  }
  CHECK(sum == doctest::Approx(0.5));
}

TEST_CASE("nn/README.md, section 2: where the variance of inv is infinite") {
  // p·M/d of unit x = y with equal entries, from all signs.
  const auto growth = [](int64_t d) {
    double M = 0.0;
    for (const Tensor& omega : sign_matrices(d, 1)) {
      double sum = 0.0;
      for (double sign : omega.to_vector<double>()) sum += sign / std::sqrt(static_cast<double>(d));
      M += std::pow(sum, 4.0) / std::pow(2.0, static_cast<double>(d));
    }
    CHECK(M == doctest::Approx(3.0 - 2.0 / static_cast<double>(d)));
    return 2.0 * M / static_cast<double>(d);
  };
  CHECK(growth(5) > 1.0);
  CHECK(growth(6) < 1.0);
}

}  // namespace
}  // namespace macgrad::nn
