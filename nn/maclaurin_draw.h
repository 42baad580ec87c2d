// One draw of a random Maclaurin feature map (Kar & Karnick 2012; Macformer, arXiv 2408.11656):
//   φ(x) = [√constant, √linear·x, w_m Π_l (x Ω_l)_m],   E[φ(q)·φ(k)] = f(logit_scale·q·k/√d)
// (nn/README.md, equations (6), (8) and (15)).
// The scale of the logits is in the weights, so that φ takes raw unit-norm rows. Weights are
// computed in double and then rounded to the dtype asked for.
//
// Shape letters: H heads, d head dimension, D features, M features with a projection, P projections
// (sum of their degrees). Columns of Ω are level after level: all first factors, then the second
// factors of the features with degree >= 2, and so on (levels of RmfaArgs, core/kernels.h).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "macgrad/core/generator.h"
#include "macgrad/core/kernels/rmfa.h"
#include "macgrad/core/tensor.h"
#include "macgrad/nn/allocation.h"

namespace macgrad::nn {

struct FeatureDraw {
  FeatureSettings settings;
  FeaturePlan plan;
  DrawKey key{};
  std::vector<int64_t> degrees;  // (D), descending; an exact linear block is d ones, the rest 0
  std::vector<int64_t> levels;   // levels[l] = features of degree > l with a projection; [0] = M
  double constant = 0.0;         // what all features of degree 0 add to every kernel value
  double linear = 0.0;           // weight of the exact q·k (0: none)
  Tensor omega;                  // (d, P), or (H, d, P) with settings.heads > 1; entries ±1
  Tensor weight;                 // (M)
  // Where steps are recorded (nn/maclaurin_features.h): RmfaArgs::layout, and the two above wider
  // than P and M, with zeros beyond. Undefined elsewhere.
  Tensor layout;

  /// Projections, sum of levels.
  int64_t projections() const;
};

/// A fresh draw: pure function of its arguments. Features whose coefficient is 0 keep their place
/// in `degrees` and get no projection. Throws as feature_plan does.
FeatureDraw draw_features(const DotProductKernel& kernel, const FeatureSettings& settings,
                          const DrawKey& key, DType dtype = DType::float32);
/// The same with a plan made before (feature_plan is a search for `optimal`). The plan may have
/// been made for another logit scale: the estimate stays unbiased, its variance grows slowly.
FeatureDraw draw_features(const DotProductKernel& kernel, const FeatureSettings& settings,
                          const FeaturePlan& plan, const DrawKey& key,
                          DType dtype = DType::float32);

/// What the draws of a plan need, but for very few: mean + 6 standard deviations of independent
/// degrees, and no more than the largest draw.
struct DrawBounds {
  int64_t features = 0, projections = 0;
  friend bool operator==(const DrawBounds&, const DrawBounds&) = default;
};
DrawBounds draw_bounds(const DotProductKernel& kernel, const FeaturePlan& plan);

/// Degrees of the random features under a plan, descending.
std::vector<int64_t> draw_degrees(const FeaturePlan& plan, const DrawKey& key);

/// A draw with given degrees of its random features, without signs: levels, weights, constant and
/// linear are set, omega is undefined.
FeatureDraw weigh_features(const DotProductKernel& kernel, const FeatureSettings& settings,
                           const FeaturePlan& plan, const std::vector<int64_t>& random_degrees,
                           DType dtype = DType::float64);

/// What kernels::draw_features needs to make draw_features(kernel, settings, plan, key): arguments,
/// and the law that does not change from draw to draw.
FeatureDrawArgs feature_draw_args(const DotProductKernel& kernel, const FeatureSettings& settings,
                                  const FeaturePlan& plan, const DrawKey& key);
Tensor feature_law(const DotProductKernel& kernel, const FeatureSettings& settings,
                   const FeaturePlan& plan);
/// Whether that kernel can make this draw into tensors of these sizes.
bool draw_fits(const DotProductKernel& kernel, const FeaturePlan& plan, const DrawBounds& bounds,
               const DrawKey& key);

/// φ(x) in double, for tests: [√constant if any, √linear·x if any, M features].
std::vector<double> reference_features(const FeatureDraw& draw, std::span<const double> x,
                                       int64_t head = 0);

/// What a checkpoint stores of a draw: kRecordHeader + D integers, whatever was drawn.
inline constexpr int64_t kRecordHeader = 20;
std::vector<int64_t> to_record(const FeatureDraw& draw);
/// The draw again, bit for bit. The record does not name the kernel. Throws an
/// Error when it is no record or its degrees fit no plan.
FeatureDraw from_record(const DotProductKernel& kernel, std::span<const int64_t> record,
                        DType dtype = DType::float32);

}  // namespace macgrad::nn
