// Degrees, weights and signs of random Maclaurin features, and their record.
#include "macgrad/nn/maclaurin_draw.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <functional>
#include <numeric>
#include <utility>

#include "macgrad/core/error.h"
#include "macgrad/core/feature_draw.h"

namespace macgrad::nn {

namespace {

bool has_projection(const DotProductKernel& kernel, int64_t degree) {
  return degree > 0 && kernel.coefficient(degree) > 0.0;
}

/// Degrees of the features that have a projection, descending.
std::vector<int64_t> projected_degrees(const DotProductKernel& kernel,
                                       const std::vector<int64_t>& random_degrees) {
  std::vector<int64_t> degrees;
  for (int64_t n : random_degrees)
    if (has_projection(kernel, n)) degrees.push_back(n);
  return degrees;
}

/// The random features' part of a stored degree list: without the d ones of an exact linear block
/// and without the zeros of an exact constant and of unused columns.
std::vector<int64_t> random_part(const FeaturePlan& plan, int64_t head_dim,
                                 const std::vector<int64_t>& degrees) {
  std::vector<int64_t> part = degrees;
  if (plan.exact_constant) std::erase(part, 0);
  if (plan.exact_linear) {
    const auto first = std::find(part.begin(), part.end(), 1);
    part.erase(first, first + std::min<int64_t>(head_dim, part.end() - first));
  }
  return part;
}

/// Omega (H, d, P) or (d, P), from the numbers of the draw after those of its degrees.
Tensor signs_of(const FeatureDraw& draw, const std::vector<int64_t>& degrees, DType dtype) {
  const FeatureSettings& s = draw.settings;
  const int64_t P = draw.projections();
  const size_t n = degrees.empty() ? 1 : static_cast<size_t>(degrees.front()) + 1;
  std::vector<int64_t> room(4 * n, 0);
  const DegreeGroups groups{static_cast<int64_t>(n) - 1, room.data(), room.data() + n,
                            room.data() + 2 * n, room.data() + 3 * n};
  for (int64_t degree : degrees) ++groups.count[degree];
  groups.complete();
  const auto size = static_cast<size_t>(hadamard_size(s.head_dim));
  std::vector<int8_t> signs(size);
  std::vector<int32_t> order(size);
  const Tensor omega =
      Tensor::empty(s.heads > 1 ? Shape{s.heads, s.head_dim, P} : Shape{s.head_dim, P}, dtype);
  dispatch_floating(dtype, "draw_features", [&]<class T>() {
    draw_omega(s.head_dim, s.heads, draw.plan.design, groups, draw.key,
               tail_numbers(draw.plan.systematic, draw.plan.tail_count),
               {signs.data(), order.data()}, Alone{}, omega.data<T>(), P);
  });
  return omega;
}

FeatureDraw finish(FeatureDraw draw, const DotProductKernel& kernel,
                   const std::vector<int64_t>& random_degrees, const DrawKey& key, DType dtype) {
  draw.key = key;
  draw.omega = signs_of(draw, projected_degrees(kernel, random_degrees), dtype);
  return draw;
}

/// P[N >= tail_from + i] of the tail's law, unnormalised: [0] is the sum.
std::vector<double> survival_of(const FeaturePlan& plan) {
  std::vector<double> survival(plan.tail_law.size());
  double sum = 0.0;
  for (size_t i = survival.size(); i-- > 0;) survival[i] = sum += plan.tail_law[i];
  return survival;
}

/// Square of the weight of a feature of degree n: nn/README.md, equation (15).
double square_weight(const DotProductKernel& kernel, const FeaturePlan& plan, double scale,
                     int64_t n) {
  // The number of features of this degree, or its mean when the degree is random.
  const double count = n < plan.tail_from
                           ? static_cast<double>(plan.counts[static_cast<size_t>(n)])
                           : static_cast<double>(plan.tail_count) *
                                 plan.tail_law[static_cast<size_t>(n - plan.tail_from)];
  return kernel.coefficient(n, scale) / count;
}

double scale_of(const FeatureSettings& settings) {
  return settings.logit_scale / std::sqrt(static_cast<double>(settings.head_dim));
}

}  // namespace

int64_t FeatureDraw::projections() const {
  return std::accumulate(levels.begin(), levels.end(), int64_t{0});
}

std::vector<int64_t> draw_degrees(const FeaturePlan& plan, const DrawKey& key) {
  std::vector<int64_t> degrees;
  const std::vector<double> survival = survival_of(plan);
  for (int64_t k = 0; k < plan.tail_count; ++k)
    degrees.push_back(plan.tail_from +
                      tail_degree(survival.data(), std::ssize(survival),
                                  tail_level(key, plan.systematic, k, plan.tail_count)));
  for (size_t n = 0; n < plan.counts.size(); ++n)
    degrees.insert(degrees.end(), static_cast<size_t>(plan.counts[n]), static_cast<int64_t>(n));
  std::sort(degrees.begin(), degrees.end(), std::greater<>());
  return degrees;
}

DrawBounds draw_bounds(const DotProductKernel& kernel, const FeaturePlan& plan) {
  DrawBounds fixed;
  for (int64_t n = 0; n < std::ssize(plan.counts); ++n) {
    if (!has_projection(kernel, n)) continue;
    fixed.features += plan.counts[static_cast<size_t>(n)];
    fixed.projections += n * plan.counts[static_cast<size_t>(n)];
  }
  if (plan.tail_count == 0) return fixed;
  // Of one tail feature: a number with its mean, mean square and largest value.
  struct Law {
    double mean = 0.0, square = 0.0, largest = 0.0;
    void add(double probability, double value) {
      mean += probability * value;
      square += probability * value * value;
      largest = std::max(largest, value);
    }
    int64_t bound(int64_t count) const {
      const auto tail = static_cast<double>(count);
      const double deviation = std::sqrt(tail * std::max(0.0, square - mean * mean));
      return static_cast<int64_t>(
          std::min(std::ceil(tail * mean + 6.0 * deviation), tail * largest));
    }
  } feature, degree;
  for (size_t i = 0; i < plan.tail_law.size(); ++i) {
    const int64_t n = plan.tail_from + static_cast<int64_t>(i);
    if (plan.tail_law[i] <= 0.0 || !has_projection(kernel, n)) continue;
    feature.add(plan.tail_law[i], 1.0);
    degree.add(plan.tail_law[i], static_cast<double>(n));
  }
  return {fixed.features + feature.bound(plan.tail_count),
          fixed.projections + degree.bound(plan.tail_count)};
}

FeatureDraw weigh_features(const DotProductKernel& kernel, const FeatureSettings& settings,
                           const FeaturePlan& plan, const std::vector<int64_t>& random_degrees,
                           DType dtype) {
  FeatureDraw draw;
  draw.settings = settings;
  draw.plan = plan;
  const double scale = scale_of(settings);
  draw.constant = plan.exact_constant ? kernel.coefficient(0) : 0.0;
  draw.linear = plan.exact_linear ? kernel.coefficient(1) * scale : 0.0;
  std::vector<double> weight;
  for (int64_t n : random_degrees) {
    const double square = square_weight(kernel, plan, scale, n);
    if (n == 0) draw.constant += square;
    if (has_projection(kernel, n)) weight.push_back(std::sqrt(square));
  }
  const auto projected = projected_degrees(kernel, random_degrees);
  for (int64_t n : projected) {
    if (static_cast<int64_t>(draw.levels.size()) < n) draw.levels.resize(static_cast<size_t>(n), 0);
    for (int64_t l = 0; l < n; ++l) ++draw.levels[static_cast<size_t>(l)];
  }
  draw.degrees = random_degrees;
  if (plan.exact_linear)
    draw.degrees.insert(draw.degrees.end(), static_cast<size_t>(settings.head_dim), 1);
  draw.degrees.resize(static_cast<size_t>(settings.features), 0);
  std::sort(draw.degrees.begin(), draw.degrees.end(), std::greater<>());
  draw.weight = Tensor::from_values(weight, Shape{static_cast<int64_t>(weight.size())}, dtype);
  return draw;
}

FeatureDraw draw_features(const DotProductKernel& kernel, const FeatureSettings& settings,
                          const FeaturePlan& plan, const DrawKey& key, DType dtype) {
  check_domain(kernel, settings.logit_scale, settings.head_dim);
  const std::vector<int64_t> degrees = draw_degrees(plan, key);
  return finish(weigh_features(kernel, settings, plan, degrees, dtype), kernel, degrees, key,
                dtype);
}

FeatureDraw draw_features(const DotProductKernel& kernel, const FeatureSettings& settings,
                          const DrawKey& key, DType dtype) {
  return draw_features(kernel, settings, feature_plan(kernel, settings), key, dtype);
}

FeatureDrawArgs feature_draw_args(const DotProductKernel& kernel, const FeatureSettings& settings,
                                  const FeaturePlan& plan, const DrawKey& key) {
  FeatureDrawArgs args;
  args.key = key;
  args.head_dim = settings.head_dim;
  args.tail_from = plan.tail_from;
  args.tail_count = plan.tail_count;
  const FeatureDraw exact = weigh_features(kernel, settings, plan, {});
  args.constant = exact.constant;
  args.linear = exact.linear;
  args.logit_scale = settings.logit_scale;
  args.design = plan.design;
  args.systematic = plan.systematic;
  return args;
}

Tensor feature_law(const DotProductKernel& kernel, const FeatureSettings& settings,
                   const FeaturePlan& plan) {
  std::vector<double> law(static_cast<size_t>(kLawTail), 0.0);
  const auto tail_end = plan.tail_from + std::ssize(plan.tail_law);
  for (int64_t n = 0; n < kLawDegrees; ++n) {
    double& weight = law[static_cast<size_t>(kLawWeights + n)];
    weight = -1.0;
    if (n < plan.tail_from) {
      if (n < std::ssize(plan.counts))
        law[static_cast<size_t>(n)] = static_cast<double>(plan.counts[static_cast<size_t>(n)]);
      if (law[static_cast<size_t>(n)] == 0.0) continue;
    } else if (plan.tail_count == 0 || n >= tail_end ||
               plan.tail_law[static_cast<size_t>(n - plan.tail_from)] == 0.0) {
      continue;
    }
    const double square = square_weight(kernel, plan, scale_of(settings), n);
    if (n == 0) weight = square;
    if (has_projection(kernel, n)) weight = std::sqrt(square);
  }
  if (plan.tail_count > 0) {
    const std::vector<double> survival = survival_of(plan);
    law.insert(law.end(), survival.begin(), survival.end());
  }
  return Tensor::from_vector(law);
}

bool draw_fits(const DotProductKernel& kernel, const FeaturePlan& plan, const DrawBounds& bounds,
               const DrawKey& key) {
  DrawBounds drawn;
  for (const int64_t n : draw_degrees(plan, key)) {
    if (!has_projection(kernel, n)) continue;
    if (n > kRmfaLayoutLevels) return false;
    ++drawn.features;
    drawn.projections += n;
  }
  return drawn.features <= bounds.features && drawn.projections <= bounds.projections;
}

std::vector<double> reference_features(const FeatureDraw& draw, std::span<const double> x,
                                       int64_t head) {
  const int64_t d = draw.settings.head_dim;
  require(static_cast<int64_t>(x.size()) == d, "[features] reference: x has {} entries, not {}",
          x.size(), d);
  std::vector<double> phi;
  if (draw.constant > 0.0) phi.push_back(std::sqrt(draw.constant));
  if (draw.linear > 0.0)
    for (double value : x) phi.push_back(std::sqrt(draw.linear) * value);
  const Tensor own = draw.omega.rank() == 3 ? draw.omega.select(0, head) : draw.omega;
  const auto omega = own.to_vector<double>();
  const int64_t width = own.size(1);
  std::vector<double> features = draw.weight.to_vector<double>();
  int64_t column = 0;
  for (int64_t level : draw.levels)
    for (int64_t m = 0; m < level; ++m, ++column) {
      double product = 0.0;
      for (int64_t i = 0; i < d; ++i)
        product += x[static_cast<size_t>(i)] * omega[static_cast<size_t>(i * width + column)];
      features[static_cast<size_t>(m)] *= product;
    }
  phi.insert(phi.end(), features.begin(), features.end());
  return phi;
}

std::vector<int64_t> to_record(const FeatureDraw& draw) {
  const FeatureSettings& s = draw.settings;
  const FeaturePlan& plan = draw.plan;
  auto bits = [](double value) { return std::bit_cast<int64_t>(value); };
  std::vector<int64_t> record = {1,
                                 static_cast<int64_t>(s.method),
                                 s.features,
                                 s.head_dim,
                                 s.heads,
                                 bits(s.p),
                                 s.cap,
                                 bits(s.logit_scale),
                                 std::bit_cast<int64_t>(draw.key.seed),
                                 draw.key.stream,
                                 draw.key.draw,
                                 draw.key.step,
                                 plan.exact_linear ? 1 : 0,
                                 plan.tail_from,
                                 plan.tail_count,
                                 bits(plan.logit_scale),
                                 bits(plan.mixture),
                                 0,
                                 0,
                                 0};
  record.insert(record.end(), draw.degrees.begin(), draw.degrees.end());
  return record;
}

namespace {

constexpr int64_t kMostRecorded = 1 << 16;  // heads or dimensions of a record that is whole

}  // namespace

FeatureDraw from_record(const DotProductKernel& kernel, std::span<const int64_t> record,
                        DType dtype) {
  auto fail = [&](const char* why) {
    throw Error("[features] a record of {} integers for kernel {}: {}", record.size(),
                kernel.name(), why);
  };
  if (std::ssize(record) < kRecordHeader || record[0] != 1) fail("not a record of a feature draw");
  auto real = [&](size_t at) { return std::bit_cast<double>(record[at]); };
  FeatureSettings s;
  if (record[1] < 0 || record[1] >= std::ssize(draw_method_names())) fail("unknown draw method");
  s.method = static_cast<DrawMethod>(record[1]);
  s.features = record[2];
  s.head_dim = record[3];
  s.heads = record[4];
  s.p = real(5);
  s.cap = record[6];
  s.logit_scale = real(7);
  const DrawKey key{std::bit_cast<uint64_t>(record[8]), static_cast<uint32_t>(record[9]),
                    static_cast<uint32_t>(record[10]), static_cast<uint32_t>(record[11])};
  if (std::ssize(record) != kRecordHeader + s.features) fail("its length is not header + D");
  if (s.head_dim < 1 || s.head_dim > kMostRecorded || s.heads < 1 || s.heads > kMostRecorded ||
      s.cap < 2 || s.cap > kMaxDegree)
    fail("sizes out of range");
  const std::vector<int64_t> degrees(record.begin() + kRecordHeader, record.end());
  if (!std::is_sorted(degrees.begin(), degrees.end(), std::greater<>()) || degrees.back() < 0 ||
      degrees.front() > s.cap)
    fail("degrees out of order or range");

  FeaturePlan plan;
  if (s.method == DrawMethod::optimal) {
    // The search is not run again: its outcome is in the record and in the degrees.
    plan.exact_constant = true;
    plan.systematic = true;
    plan.design = SignDesign::shifted_blocks;
    plan.exact_linear = record[12] == 1;
    plan.tail_from = record[13];
    plan.tail_count = record[14];
    plan.logit_scale = real(15);
    plan.mixture = real(16);
    if (plan.tail_from < 0 || plan.tail_from > s.cap + 1 || plan.tail_count < 0)
      fail("tail out of range");
    if (plan.tail_count > 0)
      plan.tail_law = optimal_tail_law(kernel, s.head_dim, plan.logit_scale, plan.mixture,
                                       plan.tail_from, s.cap);
    plan.counts.assign(static_cast<size_t>(plan.tail_from), 0);
  } else {
    plan = feature_plan(kernel, s);
    plan.logit_scale = real(15);
  }
  const std::vector<int64_t> random_degrees = random_part(plan, s.head_dim, degrees);
  int64_t tail = 0;
  for (int64_t n : random_degrees)
    n < plan.tail_from ? ++plan.counts[static_cast<size_t>(n)] : ++tail;
  if (tail != plan.tail_count) fail("the degrees do not fit the plan");
  return finish(weigh_features(kernel, s, plan, random_degrees, dtype), kernel, random_degrees, key,
                dtype);
}

}  // namespace macgrad::nn
