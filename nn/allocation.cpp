// Plans of the draw methods, and the search behind `optimal`: for every choice of an exact linear
// block and of the degree at which the tail starts, columns go one by one to the degree whose
// predicted variance falls most.
#include "macgrad/nn/allocation.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>

#include "macgrad/core/error.h"

namespace macgrad::nn {

const std::vector<std::string>& draw_method_names() {
  static const std::vector<std::string> names = {"iid",  "official", "stratified",
                                                 "srht", "h01",      "optimal"};
  return names;
}

DrawMethod draw_method(const std::string& name) {
  const auto& names = draw_method_names();
  const auto at = std::find(names.begin(), names.end(), name);
  if (at == names.end())
    throw Error("[features] no draw method '{}'; there are: {}", name, fmt::join(names, ", "));
  return static_cast<DrawMethod>(at - names.begin());
}

const std::string& draw_method_name(DrawMethod method) {
  return draw_method_names()[static_cast<size_t>(method)];
}

namespace {

bool has_exact_constant(DrawMethod method) {
  return method != DrawMethod::iid && method != DrawMethod::stratified;
}

}  // namespace

int64_t least_features(DrawMethod method, const DotProductKernel& kernel, int64_t head_dim) {
  // `optimal` gives the constant a column only where there is one.
  const bool constant =
      method == DrawMethod::optimal ? kernel.coefficient(0) > 0.0 : has_exact_constant(method);
  return (constant ? 1 : 0) + (method == DrawMethod::h01 ? head_dim : 0) + 1;
}

int64_t FeaturePlan::random_features() const {
  int64_t total = tail_count;
  for (int64_t count : counts) total += count;
  return total;
}

std::vector<double> geometric_law(double p, int64_t from, int64_t cap) {
  std::vector<double> law;
  for (int64_t n = from; n <= cap; ++n)
    law.push_back((1.0 - 1.0 / p) * std::pow(p, -static_cast<double>(n - from)));
  const double kept = 1.0 - std::pow(p, -static_cast<double>(cap + 1 - from));
  for (double& probability : law) probability /= kept;
  return law;
}

namespace {

/// A_n = a_n (τ/√d)^n.
std::vector<double> scaled_coefficients(const DotProductKernel& kernel, int64_t head_dim,
                                        double logit_scale) {
  const double scale = logit_scale / std::sqrt(static_cast<double>(head_dim));
  std::vector<double> a;
  for (int64_t n = 0; n <= kMaxDegree; ++n) a.push_back(kernel.coefficient(n, scale));
  return a;
}

/// Variance of the tail, whose features of degree n number tail_count·P[n] on average; with
/// systematic counts the number is that mean rounded down or up (nn/README.md, equation (13)).
double tail_variance(const VarianceModel& model, const FeaturePlan& plan,
                     const std::vector<double>& a) {
  double total = 0.0;
  for (size_t i = 0; i < plan.tail_law.size() && plan.tail_count > 0; ++i) {
    const int64_t n = plan.tail_from + static_cast<int64_t>(i);
    if (n > VarianceModel::kModelDegree) break;
    const double a2 = a[static_cast<size_t>(n)] * a[static_cast<size_t>(n)];
    const double mean = static_cast<double>(plan.tail_count) * plan.tail_law[i];
    if (a2 == 0.0 || mean == 0.0) continue;
    if (!plan.systematic) {
      // (11) subtracts the square of the sum over degrees, this the sum of their squares.
      total += a2 * (model.second_moment(n) / mean -
                     model.squared_mean(n) / static_cast<double>(plan.tail_count));
      continue;
    }
    const double low = std::floor(mean);
    for (const double count : {low, low + 1.0}) {
      const double share = count == low ? low + 1.0 - mean : mean - low;
      const double ratio = count / mean;
      double error = (ratio - 1.0) * (ratio - 1.0) * model.squared_mean(n);
      if (count > 0.0)
        error += ratio * ratio * model.variance(n, static_cast<int64_t>(count), plan.design);
      total += share * a2 * error;
    }
  }
  return total;
}

double plan_variance(const VarianceModel& model, const FeaturePlan& plan,
                     const std::vector<double>& a) {
  double total = tail_variance(model, plan, a);
  for (size_t n = 0; n < plan.counts.size(); ++n)
    if (plan.counts[n] > 0)
      total += a[n] * a[n] * model.variance(static_cast<int64_t>(n), plan.counts[n], plan.design);
  return total;
}

/// P[n] ∝ A_n √M^n, which makes the sum of (11) least (nn/README.md, section 2).
std::vector<double> tail_law_of(const VarianceModel& model, const std::vector<double>& a,
                                int64_t from, int64_t cap) {
  std::vector<double> law;
  double total = 0.0;
  for (int64_t n = from; n <= cap; ++n) {
    const auto at = static_cast<size_t>(n);
    const int64_t known = std::min(n, VarianceModel::kModelDegree);
    double g = a[at] * std::sqrt(model.second_moment(known));
    // Moments may outgrow a falling series; the law must sum, so that there it falls as well.
    if (!law.empty() && law.back() > 0.0 && a[at] <= a[at - 1]) g = std::min(g, 0.97 * law.back());
    law.push_back(g);
    total += g;
  }
  for (double& probability : law) probability /= total;
  return law;
}

/// Features one by one to the degrees from..last (those with A_n > 0) and the tail beyond `last`.
std::optional<FeaturePlan> greedy(const VarianceModel& model, const std::vector<double>& a,
                                  int64_t highest, FeaturePlan plan, int64_t from, int64_t last,
                                  int64_t budget, int64_t cap, bool single_tail) {
  struct Option {
    int64_t degree;  // -1: the tail
    int64_t count;
    double now, next;
  };
  plan.counts.assign(static_cast<size_t>(last + 1), 0);
  plan.tail_from = last + 1;
  double tail = 0.0;
  std::vector<Option> options;
  for (int64_t n = from; n <= last; ++n)
    if (a[static_cast<size_t>(n)] > 0.0) options.push_back({n, 1, 0.0, 0.0});
  if (last < highest) {
    plan.tail_law = tail_law_of(model, a, last + 1, cap);
    plan.tail_count = 1;
    FeaturePlan only_tail;
    only_tail.tail_from = plan.tail_from;
    only_tail.tail_law = plan.tail_law;
    only_tail.tail_count = 1;
    tail = tail_variance(model, only_tail, a);
    options.push_back({-1, 1, 0.0, 0.0});
  }
  auto variance = [&](const Option& option, int64_t count) {
    if (option.degree < 0) return tail / static_cast<double>(single_tail ? 1 : count);
    const double c = a[static_cast<size_t>(option.degree)];
    return c * c * model.variance(option.degree, count, plan.design);
  };
  int64_t left = budget - static_cast<int64_t>(options.size());
  if (left < 0) return std::nullopt;
  for (Option& option : options) {
    option.now = variance(option, 1);
    option.next = variance(option, 2);
  }
  for (; left > 0 && !options.empty(); --left) {
    auto best = std::max_element(options.begin(), options.end(), [](const auto& x, const auto& y) {
      return x.now - x.next < y.now - y.next;
    });
    if (best->now - best->next <= 0.0) break;
    best->now = best->next;
    best->next = variance(*best, ++best->count + 1);
  }
  for (const Option& option : options)
    (option.degree < 0 ? plan.tail_count : plan.counts[static_cast<size_t>(option.degree)]) =
        option.count;
  return plan;
}

/// The plans of the other methods at this D, which the best one must not lose to.
std::vector<FeaturePlan> rival_plans(const DotProductKernel& kernel,
                                     const FeatureSettings& settings) {
  std::vector<FeaturePlan> rivals;
  FeatureSettings other = settings;
  for (const DrawMethod method : {DrawMethod::srht, DrawMethod::h01}) {
    if (settings.features < least_features(method, kernel, settings.head_dim)) continue;
    other.method = method;
    rivals.push_back(feature_plan(kernel, other));
  }
  return rivals;
}

FeaturePlan optimal_plan(const DotProductKernel& kernel, const FeatureSettings& settings) {
  const std::vector<double> a =
      scaled_coefficients(kernel, settings.head_dim, settings.logit_scale);
  int64_t highest = settings.cap;
  while (highest > 0 && a[static_cast<size_t>(highest)] == 0.0) --highest;
  const VarianceModel isotropic(settings.head_dim, 0.0);
  const VarianceModel equal(settings.head_dim, 1.0);
  double equal_limit = std::numeric_limits<double>::infinity();
  for (const FeaturePlan& rival : rival_plans(kernel, settings))
    equal_limit = std::min(equal_limit, plan_variance(equal, rival, a));

  // Smallest isotropic variance among the plans that also hold for q = k; if none does, the best
  // one there. A tail of one feature keeps P nearly fixed from draw to draw and an exact linear
  // block costs no projection: they win when the difference is small.
  std::optional<FeaturePlan> best;
  double best_isotropic = 0.0;
  double best_equal = 0.0;
  const int64_t free = settings.features - (a[0] > 0.0 ? 1 : 0);
  const int64_t d = settings.head_dim;
  FeaturePlan start;
  start.exact_constant = true;
  start.systematic = true;
  start.design = SignDesign::shifted_blocks;
  start.logit_scale = settings.logit_scale;
  for (const double mixture : {0.0, 0.003, 0.01, 0.03, 0.1, 0.3}) {
    const VarianceModel model(d, mixture);
    start.mixture = mixture;
    for (const bool exact_linear : {true, false}) {
      if (exact_linear && (free < d || a[1] == 0.0)) continue;
      start.exact_linear = exact_linear;
      const int64_t from = exact_linear ? 2 : 1;
      for (const bool single_tail : {true, false}) {
        double least = std::numeric_limits<double>::infinity();
        int worse = 0;  // a later start of the tail helps up to a point; four misses end the walk
        for (int64_t last = from - 1; last <= std::min<int64_t>(highest, 32) && worse < 4; ++last) {
          const auto plan = greedy(model, a, highest, start, from, last,
                                   free - (exact_linear ? d : 0), settings.cap, single_tail);
          if (!plan) break;
          const double handicap = (single_tail ? 1.0 : 1.02) * (exact_linear ? 1.0 : 1.001);
          const double v = plan_variance(isotropic, *plan, a) * handicap;
          const double e = plan_variance(equal, *plan, a);
          worse = v < least ? 0 : worse + 1;
          least = std::min(least, v);
          const bool holds = e <= equal_limit;
          const bool best_holds = best && best_equal <= equal_limit;
          if (!best || (holds && !best_holds) ||
              (holds == best_holds && (holds ? v < best_isotropic : e < best_equal))) {
            best = plan;
            best_isotropic = v;
            best_equal = e;
          }
        }
      }
    }
  }
  require(best.has_value(), "[features] optimal: no plan of {} features for {}", settings.features,
          kernel.name());
  return *best;
}

}  // namespace

std::vector<double> optimal_tail_law(const DotProductKernel& kernel, int64_t head_dim,
                                     double logit_scale, double mixture, int64_t tail_from,
                                     int64_t cap) {
  return tail_law_of(VarianceModel(head_dim, mixture),
                     scaled_coefficients(kernel, head_dim, logit_scale), tail_from, cap);
}

FeaturePlan feature_plan(const DotProductKernel& kernel, const FeatureSettings& settings) {
  check_domain(kernel, settings.logit_scale, settings.head_dim);
  const std::string& method = draw_method_name(settings.method);
  const int64_t D = settings.features;
  require(settings.p > 1.0 && std::isfinite(settings.p),
          "[features] {}: p is {} and must be above 1", method, settings.p);
  require(settings.cap >= 2 && settings.cap <= kMaxDegree,
          "[features] {}: cap is {} and must be from 2 to {}", method, settings.cap, kMaxDegree);
  require(settings.heads >= 1, "[features] {}: heads is {} and must be at least 1", method,
          settings.heads);
  const int64_t least = least_features(settings.method, kernel, settings.head_dim);
  require(D >= least,
          "[features] {}: {} features are too few for {} with head_dim {}; use at least {}", method,
          D, kernel.name(), settings.head_dim, least);
  if (settings.method == DrawMethod::optimal) return optimal_plan(kernel, settings);

  FeaturePlan plan;
  plan.logit_scale = settings.logit_scale;
  plan.exact_constant = has_exact_constant(settings.method);
  plan.exact_linear = settings.method == DrawMethod::h01;
  plan.systematic = settings.method != DrawMethod::iid && settings.method != DrawMethod::official;
  if (settings.method == DrawMethod::srht) plan.design = SignDesign::blocks;
  plan.tail_from = (plan.exact_constant ? 1 : 0) + (plan.exact_linear ? 1 : 0);
  plan.counts.assign(static_cast<size_t>(plan.tail_from), 0);
  plan.tail_count = D - (plan.exact_constant ? 1 : 0) - (plan.exact_linear ? settings.head_dim : 0);
  plan.tail_law = geometric_law(settings.p, plan.tail_from, settings.cap);
  plan.mass_beyond_cap =
      std::pow(settings.p, -static_cast<double>(settings.cap + 1 - plan.tail_from));
  return plan;
}

PredictedVariance predicted_variance(const DotProductKernel& kernel,
                                     const FeatureSettings& settings, const FeaturePlan& plan) {
  const std::vector<double> a =
      scaled_coefficients(kernel, settings.head_dim, settings.logit_scale);
  return {plan_variance(VarianceModel(settings.head_dim, 0.0), plan, a),
          plan_variance(VarianceModel(settings.head_dim, 1.0), plan, a)};
}

}  // namespace macgrad::nn
