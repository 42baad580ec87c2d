// Checks that the tests of row kernels share: values against a tolerance, a gradient against
// central differences, sameness at several thread counts.
#pragma once

#include <doctest/doctest.h>
#include <omp.h>

#include <cmath>
#include <functional>
#include <limits>

#include "macgrad/core/kernels/random.h"

namespace macgrad::checks {

inline constexpr double kInf = std::numeric_limits<double>::infinity();
inline const double kNaN = std::nan("");
using Values = std::vector<double>;

inline Tensor random(const Shape& shape, uint32_t draw, DType dtype = DType::float64) {
  const Tensor t = Tensor::empty(shape, DType::float64);
  kernels::random_normal(t, {20, 1, draw, 0});
  return t.to(dtype);
}

inline Tensor like(const Tensor& t) {
  return Tensor::empty(t.shape(), t.dtype());
}

inline Tensor tensor(const Values& values, const Shape& shape) {
  return Tensor::from_vector(values, shape);
}

inline void check_close(const Tensor& a, const Values& expected, double tolerance) {
  const Values values = a.to_vector<double>();
  REQUIRE(values.size() == expected.size());
  for (size_t i = 0; i < values.size(); ++i) {
    CAPTURE(i);
    if (std::isnan(expected[i])) {
      CHECK(std::isnan(values[i]));
    } else if (std::isinf(expected[i])) {
      CHECK(values[i] == expected[i]);
    } else {
      CHECK(std::abs(values[i] - expected[i]) <= tolerance * (1 + std::abs(expected[i])));
    }
  }
}

// d(Σ cotangent · f())/dx by central differences, against the gradient `dx` of a kernel. f reads x,
// which is float64 and contiguous, and returns a fresh output.
inline void check_gradient(const Tensor& x, const Tensor& dx, const Tensor& cotangent,
                           const std::function<Tensor()>& f, double h = 1e-5,
                           double tolerance = 2e-8) {
  REQUIRE(dx.shape() == x.shape());
  const Values c = cotangent.to_vector<double>();
  const auto loss = [&] {
    const Values y = f().to_vector<double>();
    double sum = 0;
    for (size_t i = 0; i < y.size(); ++i) sum += c[i] == 0 ? 0 : c[i] * y[i];
    return sum;
  };
  const Values gradient = dx.to_vector<double>();
  auto* p = x.data<double>();
  for (size_t i = 0; i < gradient.size(); ++i) {
    const double old = p[i];
    p[i] = old + h;
    const double up = loss();
    p[i] = old - h;
    const double down = loss();
    p[i] = old;
    CAPTURE(i);
    const double expected = (up - down) / (2 * h);
    CHECK(std::abs(gradient[i] - expected) <= tolerance * (1 + std::abs(expected)));
  }
}

// Runs f at several thread counts; the tensors it returns must be the same bits each time.
inline void check_threads(const std::function<Tensors()>& f) {
  const int before = omp_get_max_threads();
  std::vector<Values> first;
  for (int threads : {1, 2, 3, 8, 16}) {
    omp_set_num_threads(threads);
    CAPTURE(threads);
    std::vector<Values> now;
    for (const Tensor& t : f()) now.push_back(t.to_vector<double>());
    if (threads == 1) first = now;
    CHECK(now == first);
  }
  omp_set_num_threads(before);
}

}  // namespace macgrad::checks
