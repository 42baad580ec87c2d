// Moments of products of random sign projections, the model behind `optimal` (nn/README.md,
// equations (9), (10) and (14)). For a sign vector w, z = (w·q)(w·k) has mean t = q·k and second
// moment M = 1 + 2(t² - Σ q_i² k_i²); two rows of one Hadamard block of size b have E[z z'] =
// t² - (M - t²)/(b - 1), since their sum over the block is exact. A feature of degree n is a
// product of n independent z.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "macgrad/core/kernels/rmfa.h"

namespace macgrad::nn {

/// Means over a distribution of (q, k), by degree 0 … kModelDegree.
class VarianceModel {
 public:
  static constexpr int64_t kModelDegree = 64;

  /// Mean over isotropic independent unit vectors (share 1 - mixture) and q = k (share mixture).
  VarianceModel(int64_t head_dim, double mixture);

  /// E[M^n].
  double second_moment(int64_t degree) const { return second_[static_cast<size_t>(degree)]; }
  /// E[t^2n].
  double squared_mean(int64_t degree) const {
    return second_[static_cast<size_t>(degree)] - own_[static_cast<size_t>(degree)];
  }
  /// Mean over pairs of Var[(1/m) Σ of m features of this degree], m >= 1.
  double variance(int64_t degree, int64_t m, SignDesign design) const;

 private:
  /// Variance of the sum of m <= block² features of one set of shifted blocks.
  double sum_variance(int64_t degree, int64_t m) const;

  int64_t block_;
  std::vector<double> second_;
  std::vector<double> own_;     // E[M^n - t^2n]
  std::vector<double> apart_;   // covariance of two features that share no row
  std::vector<double> shared_;  // … that share the row of one factor
};

}  // namespace macgrad::nn
