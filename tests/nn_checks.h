// What the tests of nn share: random values and masks, small models, comparisons.
#pragma once

#include <doctest/doctest.h>
#include <omp.h>

#include <algorithm>
#include <functional>
#include <string>
#include <vector>

#include "macgrad/autograd/engine.h"
#include "macgrad/autograd/gradcheck.h"
#include "macgrad/autograd/ops.h"
#include "macgrad/core/kernels/random.h"
#include "macgrad/nn/maclaurin_features.h"
#include "macgrad/nn/transformer.h"
#include "macgrad/tests/errors.h"

namespace macgrad::checks {

using testing::contains;
using testing::error_of;

inline Tensor normal_tensor(const Shape& shape, uint32_t draw, DType dtype = DType::float64) {
  const Tensor t = Tensor::empty(shape, DType::float64);
  kernels::random_normal(t, {77, 3, draw, 0});
  return t.to(dtype);
}
inline Variable normal_leaf(const Shape& shape, uint32_t draw, DType dtype = DType::float64) {
  return Variable(normal_tensor(shape, draw, dtype), true);
}

/// (lengths.size(), width) bool: the first lengths[b] places of row b.
inline Tensor first_places(const std::vector<int64_t>& lengths, int64_t width) {
  std::vector<bool> valid;
  for (const int64_t n : lengths)
    for (int64_t i = 0; i < width; ++i) valid.push_back(i < n);
  return Tensor::from_vector(valid, Shape{static_cast<int64_t>(lengths.size()), width});
}

/// (rows, width) ids in [low, high).
inline Tensor random_ids(int64_t rows, int64_t width, int64_t low, int64_t high, uint32_t draw) {
  DrawReader reader({5, 9, draw, 0});
  std::vector<int64_t> ids(static_cast<size_t>(rows * width));
  for (int64_t& id : ids)
    id = low + static_cast<int64_t>(reader.below(static_cast<uint64_t>(high - low)));
  return Tensor::from_vector(ids, Shape{rows, width});
}

inline void check_near(const Tensor& a, const Tensor& b, double tolerance) {
  REQUIRE(a.shape() == b.shape());
  const double difference = max_abs_difference(a, b);
  CHECK_MESSAGE(difference <= tolerance, "largest difference ", difference);
}

/// Largest difference against the largest value of b, or 1 where that is smaller: for quotients
/// whose denominators may be small.
inline void check_relative(const Tensor& a, const Tensor& b, double tolerance) {
  check_near(a, b,
             tolerance * std::max(1.0, max_abs_difference(b, Tensor::zeros(b.shape(), b.dtype()))));
}

/// One thread while alive: for thousands of tiny forward passes, where waking threads costs more
/// than the work.
class OneThread {
 public:
  OneThread() : before_(omp_get_max_threads()) { omp_set_num_threads(1); }
  ~OneThread() { omp_set_num_threads(before_); }
  OneThread(const OneThread&) = delete;
  OneThread& operator=(const OneThread&) = delete;

 private:
  int before_;
};

/// The feature map of RMFA.
inline nn::RandomMaclaurinFeatures& maclaurin(nn::AttentionCore& core) {
  return dynamic_cast<nn::RandomMaclaurinFeatures&>(
      dynamic_cast<nn::LinearAttentionCore&>(core).map());
}

inline nn::AttentionSettings softmax_settings() {
  return {};
}
inline nn::AttentionSettings exact_settings(bool ppsbn = false) {
  nn::AttentionSettings s = nn::paper_attention();
  s.kind = nn::attention_kind("exact");
  s.ppsbn = ppsbn;
  return s;
}
inline nn::AttentionSettings rmfa_settings(int64_t features = 32, bool ppsbn = true) {
  nn::AttentionSettings s = nn::paper_attention();
  s.features = features;
  s.ppsbn = ppsbn;
  return s;
}

}  // namespace macgrad::checks
