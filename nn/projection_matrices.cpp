#include "macgrad/nn/projection_matrices.h"

#include <algorithm>
#include <cmath>

#include <fmt/ranges.h>

#include "macgrad/core/error.h"
#include "macgrad/core/kernels/random.h"

namespace macgrad::nn {

namespace {

Tensor normal(const DrawKey& key, const Shape& shape) {
  Tensor t = Tensor::empty(shape, DType::float64);
  kernels::random_normal(t, key);
  return t;
}

Tensor iid(const DrawKey& key, int64_t m, int64_t d) {
  return normal(key, {m, d});
}

Tensor rademacher(const DrawKey& key, int64_t m, int64_t d) {
  Tensor t = Tensor::empty({m, d}, DType::float64);
  kernels::random_signs(t, key);
  return t;
}

double norm(const double* row, int64_t d) {
  double squares = 0.0;
  for (int64_t i = 0; i < d; ++i) squares += row[i] * row[i];
  return std::sqrt(squares);
}

// Orthonormalises the `count` rows of length d in place, which leaves them Haar-distributed when
// they were normal: the factor R of A = QR then has a positive diagonal. Each row is projected
// twice, since one pass of Gram-Schmidt loses orthogonality.
void orthonormalise(double* rows, int64_t count, int64_t d) {
  for (int64_t i = 0; i < count; ++i) {
    double* row = rows + i * d;
    for (int pass = 0; pass < 2; ++pass) {
      for (int64_t j = 0; j < i; ++j) {
        const double* other = rows + j * d;
        double dot = 0.0;
        for (int64_t c = 0; c < d; ++c) dot += row[c] * other[c];
        for (int64_t c = 0; c < d; ++c) row[c] -= dot * other[c];
      }
    }
    const double length = norm(row, d);
    for (int64_t c = 0; c < d; ++c) row[c] /= length;
  }
}

// The first m·d numbers of the draw become directions, the next m·d norms.
Tensor orthogonal(const DrawKey& key, int64_t m, int64_t d) {
  const Tensor numbers = normal(key, {2 * m, d});
  const Tensor omega = numbers.slice(0, 0, m).clone();
  double* rows = omega.data<double>();
  const double* others = numbers.data<double>() + m * d;
  for (int64_t from = 0; from < m; from += d)
    orthonormalise(rows + from * d, std::min(d, m - from), d);
  for (int64_t i = 0; i < m; ++i) {
    const double length = norm(others + i * d, d);
    for (int64_t c = 0; c < d; ++c) rows[i * d + c] *= length;
  }
  return omega;
}

}  // namespace

const std::vector<ProjectionMatrix>& projection_matrices() {
  // To add a matrix, add a row: name, description, Gaussian rows, independent rows, orthogonal
  // blocks, draw.
  static const std::vector<ProjectionMatrix> table = {
      {"iid", "independent normal entries", true, true, false, iid},
      {"orf", "orthogonal rows in blocks of d, with chi norms", true, false, true, orthogonal},
      {"rademacher", "independent entries ±1", false, true, false, rademacher},
  };
  return table;
}

const ProjectionMatrix& projection_matrix(const std::string& name) {
  std::vector<std::string> names;
  for (const ProjectionMatrix& matrix : projection_matrices()) {
    if (matrix.name == name) return matrix;
    names.push_back(matrix.name);
  }
  throw Error("projection matrix '{}' is unknown; use {}", name, fmt::join(names, ", "));
}

}  // namespace macgrad::nn
