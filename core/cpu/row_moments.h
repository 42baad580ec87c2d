// Mean and variance of a row by the corrected two-pass algorithm (Chan, Golub & LeVeque 1983). The
// first pass sums differences from the row's first value, so the mean of equal values is that
// value; the second also sums what is left of the differences, so a mean that falls between two
// numbers of type C is known all the same: at an offset of 1e8 those are 8 apart in float32.
#pragma once

#include <cstdint>

namespace macgrad::cpu {

template <class C>
struct RowMoments {
  C mean = 0;
  C correction = 0;  // the mean is mean + correction
  C squares = 0;     // Σ (x - mean)², of the corrected mean
};

/// n > 0.
template <class C, class T>
RowMoments<C> row_moments(const T* x, int64_t n) {
  const C first = static_cast<C>(x[0]), count = static_cast<C>(n);
  C sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) sum += static_cast<C>(x[i]) - first;
  const C mean = first + sum / count;
  C rest = 0, squares = 0;
#pragma omp simd reduction(+ : rest, squares)
  for (int64_t i = 0; i < n; ++i) {
    const C d = static_cast<C>(x[i]) - mean;
    rest += d;
    squares += d * d;
  }
  const C correction = rest / count;
  return {mean, correction, squares - rest * correction};
}

}  // namespace macgrad::cpu
