// Random Maclaurin draws: worked examples (fixtures/maclaurin.json), unbiasedness of every method
// by enumeration of all signs (and all permutations of Hadamard rows), expected counts, the
// variance model, the figures that `optimal` must reach, and the record of a draw.
#include "macgrad/nn/maclaurin_draw.h"

#include <doctest/doctest.h>

#include <cmath>
#include <nlohmann/json.hpp>
#include <numeric>

#include "macgrad/core/feature_draw.h"
#include "macgrad/core/generator.h"
#include "macgrad/core/kernels/rmfa.h"
#include "macgrad/experiments/common/output_files.h"

namespace macgrad::nn {
namespace {

using experiments::Json;
using Row = std::vector<double>;

const Json& fixture() {
  static const Json json = experiments::read_json(MACGRAD_FIXTURES "/maclaurin.json");
  return json;
}

double dot(const Row& a, const Row& b) {
  return std::inner_product(a.begin(), a.end(), b.begin(), 0.0);
}

double estimate(const FeatureDraw& draw, const Row& q, const Row& k, int64_t head = 0) {
  return dot(reference_features(draw, q, head), reference_features(draw, k, head));
}

FeatureSettings settings_of(DrawMethod method, int64_t D, int64_t d, double scale = 1.0) {
  FeatureSettings s;
  s.method = method;
  s.features = D;
  s.head_dim = d;
  s.logit_scale = scale;
  return s;
}

std::vector<DrawMethod> all_methods() {
  std::vector<DrawMethod> methods;
  for (const std::string& name : draw_method_names()) methods.push_back(draw_method(name));
  return methods;
}

/// Scaled coefficient A_n.
double scaled(const DotProductKernel& kernel, const FeatureSettings& s, int64_t n) {
  const double scale = s.logit_scale / std::sqrt(static_cast<double>(s.head_dim));
  return kernel.coefficient(n) * std::pow(scale, static_cast<double>(n));
}

/// Mean number of features of degree n under a plan.
double mean_count(const FeaturePlan& plan, int64_t n) {
  if (n < plan.tail_from) return static_cast<double>(plan.counts[static_cast<size_t>(n)]);
  const auto i = static_cast<size_t>(n - plan.tail_from);
  if (i >= plan.tail_law.size()) return 0.0;
  return static_cast<double>(plan.tail_count) * plan.tail_law[i];
}

TEST_CASE("features equal the worked examples") {
  const Json& example = fixture()["phi_example_plain_p2"];
  FeatureSettings plain = settings_of(DrawMethod::iid, 3, 2);
  FeatureSettings official = settings_of(DrawMethod::official, 3, 2);
  official.cap = 20;
  // Degrees (2, 1, 0); columns: first factors of both, then the second factor of the degree-2 one.
  const Tensor omega = Tensor::from_values(Row{1, 1, 1, 1, -1, -1}, Shape{2, 3}, DType::float64);
  for (const auto& [name, product] : example["dot_scaled"].items()) {
    CAPTURE(name);
    const DotProductKernel kernel = dot_product_kernel(name);
    auto check = [&](FeatureDraw draw, const char* x, const Json& expected) {
      draw.omega = omega;
      const Row phi = reference_features(draw, example[x].get<Row>());
      REQUIRE(phi.size() == 3);
      CHECK(phi[0] == doctest::Approx(expected[0].get<double>()).epsilon(1e-12));
      CHECK(phi[1] == doctest::Approx(expected[2].get<double>()).epsilon(1e-12));
      CHECK(phi[2] == doctest::Approx(expected[1].get<double>()).epsilon(1e-12));
    };
    const auto draw = weigh_features(kernel, plain, feature_plan(kernel, plain), {2, 1, 0});
    check(draw, "x", example["phi_x_scaled"][kernel.name()]);
    check(draw, "y", example["phi_y_scaled"][kernel.name()]);
    FeatureDraw both = draw;
    both.omega = omega;
    CHECK(estimate(both, example["x"].get<Row>(), example["y"].get<Row>()) ==
          doctest::Approx(product.get<double>()).epsilon(1e-12));
    check(weigh_features(kernel, official, feature_plan(kernel, official), {2, 1}), "x",
          fixture()["phi_example_official"]["phi_x_scaled"][kernel.name()]);
    // Without the τ/√d scale: τ = √d.
    if (std::isfinite(kernel.radius())) continue;
    FeatureSettings unscaled = plain;
    unscaled.logit_scale = std::sqrt(2.0);
    check(weigh_features(kernel, unscaled, feature_plan(kernel, unscaled), {2, 1, 0}), "x",
          example["phi_x_unscaled"][kernel.name()]);
  }
}

TEST_CASE("products of random signs have the enumerated moments") {
  const Json& example = fixture()["enumeration_test_d2"];
  const Row q = example["q_scaled"], k = example["k_scaled"];
  for (int64_t n = 1; n <= 3; ++n) {
    double mean = 0.0, second = 0.0;
    const int64_t outcomes = int64_t{1} << (2 * n);
    for (int64_t bits = 0; bits < outcomes; ++bits) {
      double z = 1.0;
      for (int64_t j = 0; j < n; ++j) {
        const double s0 = (bits >> (2 * j)) & 1 ? 1.0 : -1.0;
        const double s1 = (bits >> (2 * j + 1)) & 1 ? 1.0 : -1.0;
        z *= (s0 * q[0] + s1 * q[1]) * (s0 * k[0] + s1 * k[1]);
      }
      mean += z / static_cast<double>(outcomes);
      second += z * z / static_cast<double>(outcomes);
    }
    const Json& expected = example["degree"][std::to_string(n)];
    CHECK(mean == doctest::Approx(expected["expected_mean"].get<double>()).epsilon(1e-12));
    CHECK(second ==
          doctest::Approx(expected["expected_second_moment"].get<double>()).epsilon(1e-12));
  }
}

TEST_CASE("mean and variance of one kernel estimate") {
  const Json& example = fixture()["kernel_estimate_moments"];
  const Row q = example["q_scaled"], k = example["k_scaled"];
  const double m2 = example["M2"];
  const double t = dot(q, k);
  for (const auto& [name, expected] : example["per_kernel"].items()) {
    CAPTURE(name);
    const DotProductKernel kernel = dot_product_kernel(name);
    // The example's q and k are scaled by d^(-1/4); τ = √d makes weights of raw a_n.
    auto moments = [&](FeatureSettings s, int64_t from) {
      const FeaturePlan plan = feature_plan(kernel, s);
      double mean = from == 1 ? kernel.coefficient(0) : 0.0;
      double second = 0.0;
      for (int64_t n = from; n <= s.cap; ++n) {
        const double p = plan.tail_law[static_cast<size_t>(n - from)];
        const double weight = kernel.coefficient(n) / p;
        mean += p * weight * std::pow(t, static_cast<double>(n));
        second += p * weight * weight * std::pow(m2, static_cast<double>(n));
      }
      const double random = mean - (from == 1 ? kernel.coefficient(0) : 0.0);
      return std::pair(mean, second - random * random);
    };
    FeatureSettings plain = settings_of(DrawMethod::iid, 1, 2);
    const auto [mean, variance] = moments(plain, 0);
    CHECK(mean == doctest::Approx(expected["mean_plain"].get<double>()).epsilon(1e-10));
    CHECK(variance == doctest::Approx(expected["var_plain_D1"].get<double>()).epsilon(1e-7));
    FeatureSettings official = settings_of(DrawMethod::official, 2, 2);
    official.cap = 20;
    const auto [official_mean, official_variance] = moments(official, 1);
    CHECK(official_mean == doctest::Approx(expected["mean_official"].get<double>()).epsilon(1e-12));
    CHECK(official_variance ==
          doctest::Approx(expected["var_official_per_feature"].get<double>()).epsilon(1e-12));
  }
}

// E over degrees of Σ_m w_m² Π z = Σ_n E[count_n]·w_n²·t^n needs E[count_n]·w_n² = A_n; the z are
// enumerated below. Together with the exact terms that is unbiasedness.
TEST_CASE("every method: expected counts times squared weights are the coefficients") {
  for (const char* name : {"exp", "inv", "log", "sqrt", "poly:c=1,k=3", "poly:c=0,k=2"}) {
    const DotProductKernel kernel = dot_product_kernel(name);
    for (const double p : {1.5, 2.0, 3.0}) {
      for (const DrawMethod method : all_methods()) {
        for (const int64_t D : {6, 40}) {
          CAPTURE(name);
          CAPTURE(p);
          CAPTURE(D);
          CAPTURE(draw_method_name(method));
          FeatureSettings s = settings_of(method, D, 4, 1.3);
          s.p = p;
          const FeaturePlan plan = feature_plan(kernel, s);
          CHECK(plan.random_features() + (plan.exact_constant && method != DrawMethod::optimal) +
                    (plan.exact_linear ? 4 : 0) <=
                D);
          if (plan.tail_count > 0)
            CHECK(std::accumulate(plan.tail_law.begin(), plan.tail_law.end(), 0.0) ==
                  doctest::Approx(1.0).epsilon(1e-12));
          double t_sum = 0.0;
          for (int64_t n = 0; n <= 40; ++n) {
            const double a = scaled(kernel, s, n);
            if (n == 0 && plan.exact_constant) continue;
            if (n == 1 && plan.exact_linear) continue;
            if (a == 0.0) continue;
            REQUIRE(mean_count(plan, n) > 0.0);
            const FeatureDraw one = weigh_features(kernel, s, plan, {n});
            const double square = n == 0 ? one.constant : std::pow(one.weight.item(), 2.0);
            CHECK(mean_count(plan, n) * square == doctest::Approx(a).epsilon(1e-12));
            t_sum += a;
          }
          const FeatureDraw none = weigh_features(kernel, s, plan, {});
          if (plan.exact_constant) CHECK(none.constant == kernel.coefficient(0));
          CHECK(none.linear == doctest::Approx(plan.exact_linear ? scaled(kernel, s, 1) : 0.0));
          CHECK(t_sum > 0.0);
          // The paper's law, at its true probability.
          if (method != DrawMethod::optimal)
            for (size_t i = 0; i < 20; ++i)
              CHECK(plan.tail_law[i] ==
                    doctest::Approx((1.0 - 1.0 / p) * std::pow(p, -static_cast<double>(i))));
        }
      }
    }
  }
}

TEST_CASE("every method: drawn degrees follow the plan") {
  const DotProductKernel kernel = dot_product_kernel("inv");
  for (const double p : {1.5, 2.0, 3.0}) {
    for (const DrawMethod method : all_methods()) {
      CAPTURE(p);
      CAPTURE(draw_method_name(method));
      FeatureSettings s = settings_of(method, 24, 4, 1.2);
      s.p = p;
      const FeaturePlan plan = feature_plan(kernel, s);
      constexpr int kDraws = 3000;
      std::vector<double> total(12, 0.0);
      for (uint32_t i = 0; i < kDraws; ++i) {
        const auto degrees = draw_degrees(plan, DrawKey{11, 3, 0, i});
        REQUIRE(static_cast<int64_t>(degrees.size()) == plan.random_features());
        for (size_t n = 0; n < total.size(); ++n) {
          const auto count = static_cast<double>(
              std::count(degrees.begin(), degrees.end(), static_cast<int64_t>(n)));
          const double mean = mean_count(plan, static_cast<int64_t>(n));
          if (plan.systematic) REQUIRE(std::abs(count - mean) < 1.0);
          total[n] += count;
        }
      }
      for (size_t n = 0; n < total.size(); ++n) {
        const double mean = mean_count(plan, static_cast<int64_t>(n));
        // A count varies by at most a binomial's variance.
        CHECK(std::abs(total[n] / kDraws - mean) <= 4.5 * std::sqrt(mean / kDraws) + 1e-12);
      }
    }
  }
}

TEST_CASE("independent signs: the mean over all sign vectors is the kernel's term") {
  const Row q = {0.6, 0.8}, k = {0.28, -0.96};
  const double t = dot(q, k);
  for (const DrawMethod method :
       {DrawMethod::iid, DrawMethod::official, DrawMethod::stratified, DrawMethod::h01}) {
    for (const char* name : {"exp", "log"}) {
      const DotProductKernel kernel = dot_product_kernel(name);
      const FeatureSettings s = settings_of(method, 7, 2);
      const FeaturePlan plan = feature_plan(kernel, s);
      // One feature of each degree together: 2^(2·6) sign vectors.
      std::vector<int64_t> degrees;
      double expected = scaled(kernel, s, 0) + (plan.exact_linear ? scaled(kernel, s, 1) * t : 0.0);
      if (!plan.exact_constant) expected /= mean_count(plan, 0);
      for (int64_t n = 3; n >= plan.tail_from; --n) {
        degrees.push_back(n);
        if (n > 0)
          expected +=
              scaled(kernel, s, n) * std::pow(t, static_cast<double>(n)) / mean_count(plan, n);
      }
      FeatureDraw draw = weigh_features(kernel, s, plan, degrees);
      const int64_t P = draw.projections();
      double mean = 0.0;
      const int64_t outcomes = int64_t{1} << (2 * P);
      for (int64_t bits = 0; bits < outcomes; ++bits) {
        Row signs(static_cast<size_t>(2 * P));
        for (size_t i = 0; i < signs.size(); ++i) signs[i] = (bits >> i) & 1 ? 1.0 : -1.0;
        draw.omega = Tensor::from_values(signs, Shape{2, P}, DType::float64);
        mean += estimate(draw, q, k) / static_cast<double>(outcomes);
      }
      CAPTURE(draw_method_name(method));
      CHECK(mean == doctest::Approx(expected).epsilon(1e-12));
    }
  }
}

/// Walks through every outcome of the signs and permutations that hadamard_rows asks for.
class EnumeratedSource {
 public:
  void signs(int8_t* out, int64_t n) {
    int64_t choice = next(int64_t{1} << n);
    for (int64_t i = 0; i < n; ++i) {
      out[i] = choice % 2 == 0 ? 1 : -1;
      choice /= 2;
    }
  }
  void permutation(int32_t* out, int64_t n) {
    int64_t orders = 1;
    for (int64_t i = 2; i <= n; ++i) orders *= i;
    int64_t choice = next(orders);
    std::vector<int32_t> left(static_cast<size_t>(n));
    std::iota(left.begin(), left.end(), 0);
    while (!left.empty()) {
      const auto at = choice % std::ssize(left);
      choice /= std::ssize(left);
      *out++ = left[static_cast<size_t>(at)];
      left.erase(left.begin() + at);
    }
  }
  /// Moves to the next outcome; false after the last.
  bool advance() {
    at_ = 0;
    for (size_t i = choices_.size(); i-- > 0;) {
      if (++choices_[i] < bounds_[i]) return true;
      choices_[i] = 0;
    }
    return false;
  }

 private:
  int64_t next(int64_t bound) {
    if (at_ == choices_.size()) {
      choices_.push_back(0);
      bounds_.push_back(bound);
    }
    return choices_[at_++];
  }
  std::vector<int64_t> choices_, bounds_;
  size_t at_ = 0;
};

/// result[feature][factor·d + i].
std::vector<Row> signs_of_rows(int64_t d, int64_t degree, int64_t count, SignDesign design,
                               EnumeratedSource& source) {
  std::vector<Row> rows(static_cast<size_t>(count), Row(static_cast<size_t>(degree * d), 0.0));
  std::vector<int8_t> signs(static_cast<size_t>(d));
  std::vector<int32_t> order(static_cast<size_t>(hadamard_size(d)));
  hadamard_rows(d, degree, count, design, source, {signs.data(), order.data()}, Alone{},
                [&](int64_t feature, int64_t factor, int64_t i, bool minus) {
                  rows[static_cast<size_t>(feature)][static_cast<size_t>(factor * d + i)] =
                      minus ? -1.0 : 1.0;
                });
  return rows;
}

TEST_CASE("Hadamard rows: the mean over all signs and permutations is t^n for every feature") {
  struct Case {
    int64_t d, degree, count;
    SignDesign design;
  };
  using enum SignDesign;
  for (const Case& c :
       {Case{2, 1, 1, blocks}, Case{2, 1, 3, blocks}, Case{2, 2, 2, blocks},
        Case{2, 2, 3, shifted_blocks}, Case{2, 3, 4, shifted_blocks}, Case{4, 1, 3, blocks},
        Case{4, 2, 2, blocks}, Case{3, 2, 5, shifted_blocks}, Case{3, 1, 4, shifted_blocks}}) {
    CAPTURE(c.d);
    CAPTURE(c.degree);
    CAPTURE(c.count);
    const Row all_q = {0.6, -0.5, 0.4, 0.3}, all_k = {0.2, 0.7, -0.9, 0.5};
    const Row q(all_q.begin(), all_q.begin() + c.d), k(all_k.begin(), all_k.begin() + c.d);
    const double expected = std::pow(dot(q, k), static_cast<double>(c.degree));
    EnumeratedSource source;
    Row mean(static_cast<size_t>(c.count), 0.0);
    int64_t outcomes = 0;
    do {
      const auto rows = signs_of_rows(c.d, c.degree, c.count, c.design, source);
      for (size_t f = 0; f < rows.size(); ++f) {
        double z = 1.0;
        for (int64_t j = 0; j < c.degree; ++j) {
          double zq = 0.0, zk = 0.0;
          for (int64_t i = 0; i < c.d; ++i) {
            const double sign = rows[f][static_cast<size_t>(j * c.d + i)];
            zq += sign * q[static_cast<size_t>(i)];
            zk += sign * k[static_cast<size_t>(i)];
          }
          z *= zq * zk;
        }
        mean[f] += z;
      }
      ++outcomes;
    } while (source.advance());
    for (double m : mean)
      CHECK(m / static_cast<double>(outcomes) == doctest::Approx(expected).epsilon(1e-10));
  }
}

TEST_CASE("a complete Hadamard block is exact") {
  const Row x = {0.3, -0.4, 0.5, 0.7}, y = {-0.2, 0.9, 0.1, 0.4};
  double fixed = 0.0;
  for (const Json& row : fixture()["srht_exact_degree1"]["omega_rows"])
    fixed += dot(row.get<Row>(), x) * dot(row.get<Row>(), y) / 4.0;
  CHECK(fixed == doctest::Approx(dot(x, y)).epsilon(1e-14));

  EnumeratedSource source;
  do {
    double sum = 0.0;
    for (const Row& row : signs_of_rows(4, 1, 4, SignDesign::blocks, source))
      sum += dot(row, x) * dot(row, y) / 4.0;
    CHECK(sum == doctest::Approx(dot(x, y)).epsilon(1e-13));
  } while (source.advance());

  // Degree 2 from all shifts: K̂ of a quadratic kernel is exact in every draw.
  const DotProductKernel square = dot_product_kernel("poly:c=1,k=2");
  const Row q = {0.6, 0.8, 0.0, 0.0}, k = {0.5, 0.5, 0.5, 0.5};
  for (uint32_t i = 0; i < 5; ++i) {
    const FeatureDraw draw = draw_features(square, settings_of(DrawMethod::optimal, 21, 4, 2.0),
                                           DrawKey{5, 1, 0, i}, DType::float64);
    CHECK(estimate(draw, q, k) == doctest::Approx(square(dot(q, k))).epsilon(1e-12));
  }
}

TEST_CASE("layout of a draw") {
  const DotProductKernel kernel = dot_product_kernel("exp");
  for (const DrawMethod method : all_methods()) {
    for (const int64_t heads : {1, 3}) {
      CAPTURE(draw_method_name(method));
      FeatureSettings s = settings_of(method, 32, 6, 1.5);
      s.heads = heads;
      const DrawKey key{1, 2, 3, 4};
      const FeatureDraw draw = draw_features(kernel, s, key);
      CHECK(static_cast<int64_t>(draw.degrees.size()) == 32);
      CHECK(std::is_sorted(draw.degrees.rbegin(), draw.degrees.rend()));
      CHECK(std::is_sorted(draw.levels.rbegin(), draw.levels.rend()));
      const int64_t exact = draw.plan.exact_linear ? 6 : 0;
      CHECK(draw.projections() ==
            std::accumulate(draw.degrees.begin(), draw.degrees.end(), int64_t{0}) - exact);
      CHECK(draw.weight.numel() == draw.levels[0]);
      CHECK(draw.weight.dtype() == DType::float32);
      CHECK(draw.omega.shape() ==
            (heads == 1 ? Shape{6, draw.projections()} : Shape{heads, 6, draw.projections()}));
      for (float w : draw.omega.to_vector<float>()) REQUIRE(std::abs(w) == 1.0f);
      const FeatureDraw again = draw_features(kernel, s, key);
      CHECK(max_abs_difference(draw.omega, again.omega) == 0.0);
      CHECK(draw.degrees == again.degrees);
      DrawKey other = key;
      other.step = 5;
      const FeatureDraw fresh = draw_features(kernel, s, draw.plan, other);
      CHECK((fresh.omega.shape() != draw.omega.shape() ||
             max_abs_difference(draw.omega, fresh.omega) == 2.0));
      if (heads > 1)
        CHECK(max_abs_difference(draw.omega.select(0, 0), draw.omega.select(0, 1)) == 2.0);
    }
  }
  // Degrees whose coefficient is 0 stay in the list and get no projection.
  const FeatureDraw cube = draw_features(dot_product_kernel("poly:c=1,k=1"),
                                         settings_of(DrawMethod::iid, 64, 4), DrawKey{1, 0, 0, 0});
  CHECK(cube.degrees.front() > 1);
  CHECK(cube.levels.size() == 1);
}

TEST_CASE("a record gives the draw again") {
  for (const char* name : {"exp", "inv", "poly:c=1,k=3"}) {
    const DotProductKernel kernel = dot_product_kernel(name);
    for (const DrawMethod method : all_methods()) {
      for (const int64_t D : {10, 48}) {
        CAPTURE(draw_method_name(method));
        CAPTURE(D);
        FeatureSettings s = settings_of(method, D, 8, 1.0);
        s.p = 1.7;
        s.heads = 2;
        const FeaturePlan plan = feature_plan(kernel, s);
        s.logit_scale = 1.03;  // moved since the plan was made
        const FeatureDraw draw =
            draw_features(kernel, s, plan, DrawKey{~uint64_t{5}, 7, 8, 9}, DType::float64);
        const auto record = to_record(draw);
        CHECK(static_cast<int64_t>(record.size()) == kRecordHeader + D);
        const FeatureDraw again = from_record(kernel, record, DType::float64);
        CHECK(again.degrees == draw.degrees);
        CHECK(again.levels == draw.levels);
        CHECK(again.constant == draw.constant);
        CHECK(again.linear == draw.linear);
        CHECK(again.key == draw.key);
        CHECK(max_abs_difference(again.omega, draw.omega) == 0.0);
        CHECK(max_abs_difference(again.weight, draw.weight) == 0.0);
        CHECK(to_record(again) == record);

        auto damaged = record;
        damaged.pop_back();
        CHECK_THROWS_AS(from_record(kernel, damaged), Error);
        damaged = record;
        damaged[kRecordHeader] = 100000;
        CHECK_THROWS_AS(from_record(kernel, damaged), Error);
        damaged[0] = 99;
        CHECK_THROWS_AS(from_record(kernel, damaged), Error);
      }
    }
  }
}

TEST_CASE("settings out of range are refused") {
  const DotProductKernel exp_kernel = dot_product_kernel("exp");
  CHECK_THROWS_AS(feature_plan(exp_kernel, settings_of(DrawMethod::h01, 65, 64)), Error);
  feature_plan(exp_kernel, settings_of(DrawMethod::h01, 66, 64));
  CHECK_THROWS_AS(feature_plan(exp_kernel, settings_of(DrawMethod::official, 1, 64)), Error);
  // The message is about the method asked for, not about those that `optimal` compares itself with.
  CHECK_THROWS_WITH_AS(
      feature_plan(exp_kernel, settings_of(DrawMethod::optimal, 1, 64)),
      "[features] optimal: 1 features are too few for exp with head_dim 64; use at "
      "least 2",
      Error);
  // Every method draws with as few as it says, and with no fewer. A kernel with f(0) = 0 needs no
  // column for it.
  for (const char* name : {"exp", "poly:c=0,k=1", "poly:c=0,k=3"}) {
    const DotProductKernel kernel = dot_product_kernel(name);
    for (const std::string& method_name : draw_method_names()) {
      const DrawMethod method = draw_method(method_name);
      const int64_t least = least_features(method, kernel, 8);
      CAPTURE(name);
      CAPTURE(method_name);
      CHECK(feature_plan(kernel, settings_of(method, least, 8)).random_features() >= 1);
      CHECK_THROWS_WITH_AS(feature_plan(kernel, settings_of(method, least - 1, 8)),
                           doctest::Contains(("[features] " + method_name + ": ").c_str()), Error);
    }
  }
  CHECK(least_features(DrawMethod::optimal, dot_product_kernel("poly:c=0,k=3"), 8) == 1);
  feature_plan(exp_kernel, settings_of(DrawMethod::optimal, 2, 64));
  feature_plan(exp_kernel, settings_of(DrawMethod::iid, 1, 1));
  FeatureSettings s = settings_of(DrawMethod::iid, 16, 64);
  s.p = 1.0;
  CHECK_THROWS_AS(feature_plan(exp_kernel, s), Error);
  CHECK_THROWS_AS(
      feature_plan(dot_product_kernel("inv"), settings_of(DrawMethod::iid, 16, 64, 8.0)), Error);
  CHECK_THROWS_AS(draw_method("best"), Error);
}

TEST_CASE("the variance model predicts the mean squared error of drawn estimates") {
  const DotProductKernel kernel = dot_product_kernel("exp");
  constexpr int kPairs = 24, kDraws = 400;
  const int64_t d = 8;
  std::vector<Row> q(kPairs, Row(d)), k(kPairs, Row(d));
  DrawReader reader(DrawKey{21, 0, 0, 0});
  for (auto* rows : {&q, &k})
    for (Row& row : *rows) {
      for (double& x : row)  // Box-Muller
        x = std::sqrt(-2.0 * std::log(1.0 - reader.uniform())) *
            std::cos(6.283185307179586 * reader.uniform());
      const double norm = std::sqrt(dot(row, row));
      for (double& x : row) x /= norm;
    }
  for (const DrawMethod method : all_methods()) {
    for (const int64_t D : {8, 40}) {
      if (method == DrawMethod::h01 && D < d + 2) continue;
      const FeatureSettings s = settings_of(method, D, d, 1.5);
      const FeaturePlan plan = feature_plan(kernel, s);
      double error = 0.0;
      for (uint32_t i = 0; i < kDraws; ++i) {
        const FeatureDraw draw =
            draw_features(kernel, s, plan, DrawKey{33, 0, 0, i}, DType::float64);
        for (size_t j = 0; j < kPairs; ++j) {
          const double exact = kernel(1.5 / std::sqrt(8.0) * dot(q[j], k[j]));
          error += std::pow(estimate(draw, q[j], k[j]) - exact, 2.0) / (kPairs * kDraws);
        }
      }
      const double predicted = predicted_variance(kernel, s, plan).isotropic;
      CAPTURE(draw_method_name(method));
      CAPTURE(D);
      CHECK(std::abs(std::log10(error / predicted)) < 0.13);
    }
  }
}

TEST_CASE("optimal reaches its figures and is nowhere worse") {
  auto predicted = [](const char* kernel, DrawMethod method, int64_t D, double scale) {
    const FeatureSettings s = settings_of(method, D, 64, scale);
    const DotProductKernel f = dot_product_kernel(kernel);
    return predicted_variance(f, s, feature_plan(f, s));
  };
  // The NMSE of attention is this variance, to the data's own scatter of some 0.05.
  struct Figure {
    DrawMethod method;
    int64_t D;
    double log10_nmse;
  };
  using enum DrawMethod;
  for (const Figure& f :
       {Figure{official, 16, -2.65}, Figure{official, 128, -3.58}, Figure{srht, 64, -3.56},
        Figure{srht, 128, -5.37}, Figure{srht, 1024, -6.56}, Figure{h01, 128, -5.69},
        Figure{h01, 1024, -6.87}, Figure{optimal, 16, -2.97}, Figure{optimal, 64, -4.36},
        Figure{optimal, 128, -5.95}, Figure{optimal, 256, -6.44}}) {
    CAPTURE(draw_method_name(f.method));
    CAPTURE(f.D);
    CHECK(std::abs(std::log10(predicted("exp", f.method, f.D, 1.0).isotropic) - f.log10_nmse) <
          0.1);
  }
  CHECK(std::log10(predicted("exp", optimal, 1024, 1.0).isotropic) < -7.14);

  for (const char* kernel : {"exp", "inv", "log", "sqrt", "poly:c=1,k=3"})
    for (const double scale : {1.0, 4.0, 8.0, 40.0})  // 40/√64 to the largest degree overflows
      for (const int64_t D : {16, 64, 128, 512}) {
        if (scale >= 8.0 && std::isfinite(dot_product_kernel(kernel).radius())) continue;
        CAPTURE(kernel);
        CAPTURE(scale);
        CAPTURE(D);
        const PredictedVariance best = predicted(kernel, optimal, D, scale);
        for (const DrawMethod other : {iid, official, stratified, srht, h01}) {
          if (other == h01 && D < 66) continue;
          CAPTURE(draw_method_name(other));
          const PredictedVariance v = predicted(kernel, other, D, scale);
          CHECK(best.isotropic <= v.isotropic * 1.022);
          CHECK(best.equal <= v.equal * 1.03);
        }
      }
}

// The figures that experiments/multi30k/README.md gives for its polynomial kernel.
TEST_CASE("as sharp a kernel may have less variance") {
  struct Figure {
    const char* kernel;
    double largest;  // t, where f is 8 f(0)
    double of_peak, isotropic;
  };
  for (const Figure& f : {Figure{"exp", std::log(8.0), 0.084, 0.107},
                          Figure{"poly:c=1,k=2", std::sqrt(8.0) - 1.0, 0.0022, 0.039}}) {
    CAPTURE(f.kernel);
    const DotProductKernel kernel = dot_product_kernel(f.kernel);
    CHECK(kernel(f.largest) == doctest::Approx(8.0 * kernel(0.0)));
    const FeatureSettings s =
        settings_of(DrawMethod::optimal, 256, 32, f.largest * std::sqrt(32.0));
    const PredictedVariance v = predicted_variance(kernel, s, feature_plan(kernel, s));
    CHECK(v.equal / 64.0 == doctest::Approx(f.of_peak).epsilon(0.03));
    CHECK(v.isotropic == doctest::Approx(f.isotropic).epsilon(0.03));
  }
}

}  // namespace
TEST_CASE("bounds of a plan: mean and six deviations, and draws keep to them") {
  FeatureSettings s;
  s.head_dim = 8;
  s.features = 128;
  const DotProductKernel exp = dot_product_kernel("exp");
  // P[N = n] = 2^-(n+1): mean 1, variance 2; half of the features have a projection.
  const DrawBounds bounds = draw_bounds(exp, feature_plan(exp, s));
  CHECK(bounds.projections == 128 + 96);
  CHECK(bounds.features == 98);  // 64 + 6·√32
  for (const DrawMethod method : {DrawMethod::iid, DrawMethod::official, DrawMethod::stratified,
                                  DrawMethod::srht, DrawMethod::h01, DrawMethod::optimal}) {
    for (const char* name : {"exp", "inv", "trigh"}) {
      CAPTURE(draw_method_name(method));
      CAPTURE(name);
      const DotProductKernel kernel = dot_product_kernel(name);
      s.method = method;
      const FeaturePlan plan = feature_plan(kernel, s);
      const DrawBounds most = draw_bounds(kernel, plan);
      CHECK(most.features <= s.features);
      int64_t largest = 0;
      for (uint32_t step = 0; step < 200; ++step) {
        const FeatureDraw draw = draw_features(kernel, s, plan, DrawKey{5, 0, 0, step});
        REQUIRE(draw.projections() <= most.projections);
        REQUIRE(draw.weight.numel() <= most.features);
        largest = std::max(largest, draw.projections());
      }
      CHECK(largest > 0);
      if (plan.tail_count == 0) CHECK(largest == most.projections);
    }
  }
}

TEST_CASE("kernels::draw_features makes the draws of draw_features, with zeros beyond") {
  for (const std::string kernel_name : {"exp", "log", "poly:c=1,k=3"}) {
    const DotProductKernel kernel = dot_product_kernel(kernel_name);
    for (const DrawMethod method : all_methods()) {
      for (const auto& [d, heads] : {std::pair<int64_t, int64_t>{8, 1}, {5, 2}, {40, 1}}) {
        CAPTURE(kernel_name);
        CAPTURE(draw_method_name(method));
        CAPTURE(d);
        FeatureSettings s = settings_of(method, d + 30, d, 0.8);
        s.heads = heads;
        const FeaturePlan plan = feature_plan(kernel, s);
        const DrawBounds bounds = draw_bounds(kernel, plan);
        const Tensor law = feature_law(kernel, s, plan);
        const Shape shape =
            heads > 1 ? Shape{heads, d, bounds.projections} : Shape{d, bounds.projections};
        for (const DType dtype : {DType::float32, DType::float64, DType::bfloat16}) {
          const Tensor omega = Tensor::full(shape, 7.0, dtype),
                       weight = Tensor::full({bounds.features}, 7.0, dtype),
                       layout = Tensor::full({kRmfaLayout}, 7.0, DType::float64);
          int drawn = 0;
          for (uint32_t step = 1; step < 6; ++step) {
            const DrawKey key{3, 9, 0, step};
            if (!draw_fits(kernel, plan, bounds, key)) continue;
            ++drawn;
            const FeatureDraw wanted = draw_features(kernel, s, plan, key, dtype);
            kernels::draw_features(Tensors{law}, Tensors{omega}, Tensors{weight}, Tensors{layout},
                                   {feature_draw_args(kernel, s, plan, key)});
            const int64_t P = wanted.projections(), M = wanted.weight.numel();
            const int last = omega.rank() - 1;
            CHECK(omega.slice(last, 0, P).contiguous().to_vector<double>() ==
                  wanted.omega.to_vector<double>());
            CHECK(weight.slice(0, 0, M).to_vector<double>() == wanted.weight.to_vector<double>());
            for (const Tensor& beyond : {omega.slice(last, P, bounds.projections).contiguous(),
                                         weight.slice(0, M, bounds.features)})
              for (double value : beyond.to_vector<double>()) REQUIRE(value == 0.0);
            const auto numbers = layout.to_vector<double>();
            CHECK(numbers[0] == wanted.constant);
            CHECK(numbers[1] == wanted.linear);
            CHECK(numbers[kRmfaLayoutScale] == 0.8);
            std::vector<double> levels(wanted.levels.begin(), wanted.levels.end());
            levels.resize(static_cast<size_t>(kRmfaLayoutLevels), 0.0);
            CHECK(std::vector<double>(numbers.begin() + kRmfaLayoutHeader, numbers.end()) ==
                  levels);
          }
          CHECK(drawn > 0);
        }
      }
    }
  }
}

TEST_CASE("kernels::draw_features leaves a draw that does not fit, and says so") {
  const DotProductKernel kernel = dot_product_kernel("exp");
  const FeatureSettings s = settings_of(DrawMethod::srht, 16, 4, 1.0);
  const FeaturePlan plan = feature_plan(kernel, s);
  const DrawKey key{3, 9, 0, 1};
  const FeatureDraw wanted = draw_features(kernel, s, plan, key);
  const int64_t P = wanted.projections(), M = wanted.weight.numel();
  const auto constant_in = [&](int64_t width, int64_t features) {
    // The last row is a guard: nothing may be written behind Ω.
    const Tensor room = Tensor::full({5, width}, 7.0),
                 layout = Tensor::zeros({kRmfaLayout}, DType::float64);
    kernels::draw_features(Tensors{feature_law(kernel, s, plan)}, Tensors{room.slice(0, 0, 4)},
                           Tensors{Tensor::zeros({features})}, Tensors{layout},
                           {feature_draw_args(kernel, s, plan, key)});
    for (double value : room.select(0, 4).to_vector<double>()) CHECK(value == 7.0);
    const auto numbers = layout.to_vector<double>();
    CHECK(std::isnan(numbers[0]) == (numbers[kRmfaLayoutHeader] == 0.0));
    return numbers[0];
  };
  CHECK(constant_in(P, M) == wanted.constant);
  CHECK(std::isnan(constant_in(P - 1, M)));
  CHECK(std::isnan(constant_in(P, M - 1)));
}

TEST_CASE("kernels::draw_features names the map whose tensors do not go together") {
  const DotProductKernel kernel = dot_product_kernel("exp");
  const FeatureSettings s = settings_of(DrawMethod::iid, 8, 4, 1.0);
  const FeaturePlan plan = feature_plan(kernel, s);
  const FeatureDrawArgs args = feature_draw_args(kernel, s, plan, DrawKey{});
  const DrawBounds bounds = draw_bounds(kernel, plan);
  const Tensor law = feature_law(kernel, s, plan), omega = Tensor::zeros({4, bounds.projections}),
               weight = Tensor::zeros({bounds.features}),
               layout = Tensor::zeros({kRmfaLayout}, DType::float64);
  CHECK_THROWS_WITH_AS(
      kernels::draw_features(Tensors{law, law}, Tensors{omega, omega.transpose(0, 1).contiguous()},
                             Tensors{weight, weight}, Tensors{layout, layout}, {args, args}),
      doctest::Contains("[draw_features] map 1: law float64"), Error);
}

}  // namespace macgrad::nn
