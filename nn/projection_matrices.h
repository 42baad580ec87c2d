// Projection matrices Ω (m, d) of random feature maps, one row ω per projection. A matrix is one
// entry of the table in nn/projection_matrices.cpp.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "macgrad/core/generator.h"
#include "macgrad/core/tensor.h"

namespace macgrad::nn {

struct ProjectionMatrix {
  std::string name;
  std::string description;
  /// Each row is exactly N(0, I), so that maps made for Gaussian rows are unbiased.
  bool gaussian_rows = false;
  /// How rows depend on each other, for variances: not at all, or Haar-distributed orthogonal rows
  /// in blocks of d, independent of other blocks and of their norms. Both false: in another way.
  bool independent_rows = false;
  bool orthogonal_blocks = false;
  /// Ω (m, d) float64 on the CPU: a function of its arguments alone, with the same bits on every
  /// machine setting and thread count.
  std::function<Tensor(const DrawKey& key, int64_t m, int64_t d)> draw;
};

/// iid, orf (orthogonal blocks with norms of independent rows; Yu et al. 2016) and rademacher.
const std::vector<ProjectionMatrix>& projection_matrices();
/// Throws an Error that lists the names.
const ProjectionMatrix& projection_matrix(const std::string& name);

}  // namespace macgrad::nn
