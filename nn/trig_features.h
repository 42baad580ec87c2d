// Trigonometric random features, φ_i(x) = [cos ω_i·x, sin ω_i·x]/√m (Rahimi & Recht 2007; the map
// of RFA, Peng et al. 2021). E[φ(x)·φ(y)] = exp(-|x - y|²/2), the Gaussian kernel; the key weight
// |y|²/2 turns it into the softmax kernel.
#pragma once

#include <cmath>

#include "macgrad/nn/projected_features.h"

namespace macgrad::nn {

class TrigFeatures : public ProjectedFeatures {
 public:
  TrigFeatures(Module* parent, std::string name, const AttentionSettings& settings,
               const AttentionSite& site, const LogitScale* scale)
      : ProjectedFeatures(parent, std::move(name), "trig", settings, site, scale, 2, -0.5) {}

  std::optional<ProjectionFunction> function() const override {
    return ProjectionFunction::trigonometric;
  }
  /// exp(-|x|²) of rows of the reference norm, orthogonal to each other.
  double value_at_zero() const override { return std::exp(-reference_norm()); }

  std::optional<double> predicted_variance(double squared_x, double squared_y,
                                           double dot) const override {
    if (!has_variance_formula()) return std::nullopt;
    const double delta = squared_x + squared_y - 2.0 * dot, m = static_cast<double>(rows());
    const auto d = static_cast<double>(head_dim());
    const double own = 0.5 * std::pow(1.0 - std::exp(-delta), 2);
    const double orthogonal =
        rows_of_block() * (hypergeometric_1f1(d, 0.5 * d, -0.5 * delta) - std::exp(-delta));
    // K over the Gaussian kernel.
    const double weight = (*kernel())(squared_x, squared_y, dot) * std::exp(0.5 * delta);
    return weight * weight * (own + orthogonal) / m;
  }
};

}  // namespace macgrad::nn
