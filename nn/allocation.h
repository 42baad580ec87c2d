// How the D columns of a random Maclaurin feature map are given to the degrees (nn/README.md).
// Every draw method is one FeaturePlan: what is exact, how many features each low degree has, and a
// tail of features whose degree is random. A plan depends on kernel, d, D and the logit scale,
// never on data, and all plans give unbiased kernel estimates.
//
// Shape letters: d head dimension, D features (columns). t = logit_scale·q·k/√d with unit-norm q,
// k, so f(t) = Σ A_n (q·k)^n with A_n = a_n (logit_scale/√d)^n.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "macgrad/nn/dot_product_kernels.h"
#include "macgrad/nn/variance_model.h"

namespace macgrad::nn {

/// iid: Macformer (arXiv 2408.11656). official: its later code (arXiv 2505.12252), exact constant.
/// stratified: iid's degree law with systematic counts. srht: official, systematic counts, rows of
/// Hadamard blocks (Wacker, Kanagawa & Filippone 2024). h01: constant and linear term exact.
/// optimal: counts that minimise the variance predicted for the kernel, d, D and logit scale.
enum class DrawMethod : uint8_t { iid, official, stratified, srht, h01, optimal };

/// In the order of the enumeration.
const std::vector<std::string>& draw_method_names();
/// Throws an Error that lists the names.
DrawMethod draw_method(const std::string& name);
const std::string& draw_method_name(DrawMethod method);

/// Fewest features of a plan: its exact columns and a random one.
int64_t least_features(DrawMethod method, const DotProductKernel& kernel, int64_t head_dim);

struct FeatureSettings {
  DrawMethod method = DrawMethod::iid;
  int64_t features = 128;    // D, columns as the method nominally has them
  int64_t head_dim = 64;     // d
  double p = 2.0;            // degree law P[N = n] = (1 - 1/p) p^(-n); not used by optimal
  double logit_scale = 1.0;  // τ
  int64_t heads = 1;         // above 1: signs of their own for every head, degrees shared
  int64_t cap = kMaxDegree;  // largest degree; the law is renormalised to it
};

struct FeaturePlan {
  bool exact_constant = false;  // a_0 itself, in one column
  bool exact_linear = false;    // A_1 q·k itself, in d columns
  std::vector<int64_t> counts;  // features of degree n < tail_from
  int64_t tail_from = 0;        // degrees of the tail features are >= tail_from
  int64_t tail_count = 0;
  std::vector<double> tail_law;  // P[N = tail_from + i]; sums to one
  bool systematic = false;       // tail degrees by systematic sampling, else independent
  SignDesign design = SignDesign::independent;
  double logit_scale = 1.0;      // the scale the plan was made for
  double mixture = 0.0;          // share of q = k pairs it was made for (optimal)
  double mass_beyond_cap = 0.0;  // probability that the cap took from the degree law

  /// Random features: all columns but the exact ones.
  int64_t random_features() const;
  friend bool operator==(const FeaturePlan&, const FeaturePlan&) = default;
};

/// The plan of settings.method. Throws an Error when D is too small for the method, p <= 1, or the
/// logit scale leaves the kernel's domain.
FeaturePlan feature_plan(const DotProductKernel& kernel, const FeatureSettings& settings);

/// The degree law that `optimal` gives its tail, made for `logit_scale` and `mixture`.
std::vector<double> optimal_tail_law(const DotProductKernel& kernel, int64_t head_dim,
                                     double logit_scale, double mixture, int64_t tail_from,
                                     int64_t cap);

/// (1 - 1/p) p^(-n) on n >= from, renormalised to n <= cap, from = index 0.
std::vector<double> geometric_law(double p, int64_t from, int64_t cap);

/// Predicted mean squared error of one kernel value under a plan, for isotropic unit q and k, and
/// for q = k. Degrees above 64 are left out.
struct PredictedVariance {
  double isotropic = 0.0;
  double equal = 0.0;
};
PredictedVariance predicted_variance(const DotProductKernel& kernel,
                                     const FeatureSettings& settings, const FeaturePlan& plan);

}  // namespace macgrad::nn
