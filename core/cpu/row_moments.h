// Mean and variance of a row by the corrected two-pass algorithm (Chan, Golub & LeVeque 1983). The
// first pass sums differences from the row's first value, so the mean of equal values is that
// value; the second also sums what is left of the differences, so a mean that falls between two
// numbers of type C is still represented: at an offset of 1e8 those are 8 apart in float32.
#pragma once

#include <cstdint>

namespace macgrad::cpu {

template <class C>
struct RowMoments {
  C mean = 0;
  C correction = 0;  // the mean is mean + correction
  C squares = 0;     // Σ (x - mean)², of the corrected mean
};

/// The mean as far as one number of type C holds it; n > 0. Both halves of the row are summed at
/// once, since a single sum would wait for each addition.
template <class C, class T>
C row_mean(const T* x, int64_t n) {
  const int64_t half = n / 2;
  const T* y = x + half;
  const C first = static_cast<C>(x[0]);
  C sum = 0, sum_y = n % 2 ? static_cast<C>(x[n - 1]) - first : C(0);
#pragma omp simd reduction(+ : sum, sum_y)
  for (int64_t i = 0; i < half; ++i) {
    sum += static_cast<C>(x[i]) - first;
    sum_y += static_cast<C>(y[i]) - first;
  }
  return first + (sum + sum_y) / static_cast<C>(n);
}

template <class C, class T>
RowMoments<C> row_moments(const T* x, int64_t n) {
  const C mean = row_mean<C>(x, n);
  const int64_t half = n / 2;
  const T* y = x + half;
  C rest = n % 2 ? static_cast<C>(x[n - 1]) - mean : C(0), rest_y = 0;
  C squares = rest * rest, squares_y = 0;
#pragma omp simd reduction(+ : rest, rest_y, squares, squares_y)
  for (int64_t i = 0; i < half; ++i) {
    const C d = static_cast<C>(x[i]) - mean, e = static_cast<C>(y[i]) - mean;
    rest += d;
    rest_y += e;
    squares += d * d;
    squares_y += e * e;
  }
  rest += rest_y;
  const C correction = rest / static_cast<C>(n);
  return {mean, correction, squares + squares_y - rest * correction};
}

}  // namespace macgrad::cpu
