// Positive random features, φ_i(x) = exp(ω_i·x)/√m (Choromanski et al. 2021, FAVOR+): every
// denominator is a sum of positive numbers. E[φ(x)·φ(y)] = exp(|x + y|²/2), which the key weight
// turns into the softmax or the Gaussian kernel.
#pragma once

#include <cmath>

#include "macgrad/nn/projected_features.h"

namespace macgrad::nn {

class PositiveFeatures : public ProjectedFeatures {
 public:
  PositiveFeatures(Module* parent, std::string name, const AttentionSettings& settings,
                   const AttentionSite& site, const LogitScale* scale)
      : ProjectedFeatures(parent, std::move(name), "positive", settings, site, scale, 1, 0.5) {}

  std::optional<ProjectionFunction> function() const override {
    return ProjectionFunction::exponential;
  }

  std::optional<double> predicted_variance(double squared_x, double squared_y,
                                           double dot) const override {
    if (!has_variance_formula()) return std::nullopt;
    const double k = (*kernel())(squared_x, squared_y, dot);
    const double z = squared_x + squared_y + 2.0 * dot, m = static_cast<double>(rows());
    const auto d = static_cast<double>(head_dim());
    const double orthogonal =
        rows_of_block() * (std::exp(-z) * hypergeometric_1f1(d, 0.5 * d, 0.5 * z) - 1.0);
    return k * k * (std::exp(z) - 1.0 + orthogonal) / m;
  }
};

}  // namespace macgrad::nn
