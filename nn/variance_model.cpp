// The moments by quadrature over the angle between query and key, uniform directions in head_dim
// dimensions plus a share of equal ones, and from them the variance of a sum of m features of one
// degree, by counting which pairs share a row or a block.
#include "macgrad/nn/variance_model.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "macgrad/core/feature_draw.h"

namespace macgrad::nn {

VarianceModel::VarianceModel(int64_t head_dim, double mixture)
    : block_(hadamard_size(head_dim)),
      second_(kModelDegree + 1, 0.0),
      own_(kModelDegree + 1, 0.0),
      apart_(kModelDegree + 1, 0.0),
      shared_(kModelDegree + 1, 0.0) {
  const auto d = static_cast<double>(head_dim);
  auto add = [&](double t2, double share) {
    // (9), with E[Σ q_i² k_i² | t] = (1 + 2t²)/(d + 2) for isotropic unit vectors.
    const double m = 1.0 + 2.0 * t2 - 2.0 * (1.0 + 2.0 * t2) / (d + 2.0);
    // (14)
    const double pair = block_ > 1 ? t2 - (m - t2) / static_cast<double>(block_ - 1) : t2;
    double mn = 1.0, tn = 1.0, pn = 1.0, pn_less = 1.0;  // powers n of m, t², pair; n - 1 of pair
    for (size_t n = 0; n <= kModelDegree; ++n) {
      second_[n] += share * mn;
      own_[n] += share * (mn - tn);
      apart_[n] += share * (pn - tn);
      if (n > 0) shared_[n] += share * (m * pn_less - tn);
      pn_less = pn;
      mn *= m, tn *= t2, pn *= pair;
    }
  };
  if (head_dim == 1) {
    add(1.0, 1.0);
    return;
  }
  // t = cos θ with density ∝ sin^(d-2) θ; everything is even in t. Pairs beyond the last 1e-4 are
  // left out: they would rule the high moments, and hardly ever come.
  constexpr int kPoints = 512;
  std::vector<double> density(kPoints), cosine(kPoints);
  double total = 0.0;
  for (size_t i = 0; i < kPoints; ++i) {
    const double theta = (static_cast<double>(i) + 0.5) / kPoints * (std::numbers::pi / 2.0);
    density[i] = std::pow(std::sin(theta), d - 2.0);
    cosine[i] = std::cos(theta);
    total += density[i];
  }
  double rare = 0.0;
  for (size_t i = 0; rare + density[i] < 1e-4 * total; ++i) {
    rare += density[i];
    density[i] = 0.0;
  }
  total -= rare;
  for (size_t i = 0; i < kPoints; ++i)
    add(cosine[i] * cosine[i], (1.0 - mixture) * density[i] / total);
  if (mixture > 0.0) add(1.0, mixture);
}

double VarianceModel::sum_variance(int64_t degree, int64_t m) const {
  const auto n = static_cast<size_t>(degree);
  const int64_t full = m / block_;
  const int64_t rest = m % block_;
  // Ordered pairs inside a block share no row; of those across two blocks one in `block_` shares
  // the row of a given factor. That a pair may share two rows (degree >= 3) is left out.
  const double inside = static_cast<double>(full * block_ * (block_ - 1) + rest * (rest - 1));
  const double across = static_cast<double>(m * m - m) - inside;
  const double sharing =
      static_cast<double>(std::min(degree, block_)) / static_cast<double>(block_);
  return static_cast<double>(m) * own_[n] + inside * apart_[n] +
         across * (sharing * shared_[n] + (1.0 - sharing) * apart_[n]);
}

double VarianceModel::variance(int64_t degree, int64_t m, SignDesign design) const {
  const auto n = static_cast<size_t>(degree);
  if (degree == 0) return 0.0;
  if (design == SignDesign::independent) return own_[n] / static_cast<double>(m);
  // Sets of features are independent of each other.
  const bool shifted = design == SignDesign::shifted_blocks && degree > 1;
  const int64_t set = shifted ? block_ * block_ : block_;
  const double sum = static_cast<double>(m / set) * std::max(sum_variance(degree, set), 0.0) +
                     std::max(sum_variance(degree, m % set), 0.0);
  return sum / (static_cast<double>(m) * static_cast<double>(m));
}

}  // namespace macgrad::nn
