// Features that are functions of projections, for one block of rows at a time, and the gradient of
// the rows. Rows of features are rows of memory: the product with Ω then needs no transposition.
// Shape letters: n rows of a block, d head dimension, m projections, M features.
#pragma once

#include <cmath>
#include <cstdint>

#include "macgrad/core/cpu/gemm.h"
#include "macgrad/core/kernels/linear_attention.h"
#include "macgrad/core/vector_math.h"

namespace macgrad::cpu::linear {

/// Ω of one call and the function of u = s·xΩ; by default none, and features are given. The factor
/// 1/√m of exponential features cancels in the quotient and is left out.
template <class T>
class Projection {
 public:
  Projection() = default;
  Projection(const Tensor& omega, const ProjectedAttentionArgs& args)
      : omega_(omega.data<T>()),
        head_(omega.rank() == 3 ? omega.stride(0) : 0),
        d_(omega.size(-2)),
        m_(omega.size(-1)),
        trigonometric_(args.function == ProjectionFunction::trigonometric),
        scale_(static_cast<T>(args.scale)) {}

  explicit operator bool() const { return m_ > 0; }
  int64_t head_dim() const { return d_; }
  /// M.
  int64_t columns() const { return trigonometric_ ? 2 * m_ : m_; }

  /// phi (n, M) of x (n, d) of head h: log φ of the exponential, φ of the others.
  void features(int64_t h, int64_t n, const T* x, int64_t ldx, T* phi) const {
    gemm(false, false, n, m_, d_, scale_, x, ldx, omega(h), m_, T(0), phi, columns());
    if (!trigonometric_) return;
    const T norm = T(1) / std::sqrt(static_cast<T>(m_));
    for (int64_t i = 0; i < n; ++i) {
      T *cosine = phi + i * 2 * m_, *sine = cosine + m_;
      // In one loop g++ would merge the two calls into sincos, which has no vector variant.
#pragma omp simd
      for (int64_t j = 0; j < m_; ++j) sine[j] = norm * math::sin(cosine[j]);
#pragma omp simd
      for (int64_t j = 0; j < m_; ++j) cosine[j] = norm * math::cos(cosine[j]);
    }
  }

  /// dx (n, d) from d (n, M), the gradient of what features() wrote, which is overwritten.
  void pull(int64_t h, int64_t n, const T* phi, T* d, T* dx, int64_t lddx) const {
    if (trigonometric_)
      for (int64_t i = 0; i < n; ++i) {
        const T *cosine = phi + i * 2 * m_, *sine = cosine + m_;
        T *du = d + i * 2 * m_, *dsine = du + m_;
#pragma omp simd
        for (int64_t j = 0; j < m_; ++j) du[j] = cosine[j] * dsine[j] - sine[j] * du[j];
      }
    gemm(false, true, n, d_, m_, scale_, d, columns(), omega(h), m_, T(0), dx, lddx);
  }

 private:
  const T* omega(int64_t h) const {
    return omega_ + h * head_;
  }

  const T* omega_ = nullptr;
  int64_t head_ = 0, d_ = 0, m_ = 0;
  bool trigonometric_ = false;
  T scale_ = 1;
};

}  // namespace macgrad::cpu::linear
