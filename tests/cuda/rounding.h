// What rounding may leave between a kernel and the same kernel in float64 on the CPU, in the
// measure of difference() (tests/op_cases.h). Comparing two float32 kernels with each other instead
// would depend on how each was compiled.
#pragma once

#include <algorithm>
#include <cmath>

#include "macgrad/core/tensor.h"

namespace macgrad::testing {

/// `terms`: numbers in the longest sum. Roundings of 2^-24 that fall at random leave about √terms
/// of them (Higham & Mary 2019); the formulas around the sums add no more than some 30. A bfloat16
/// result is that rounded once more, by half an ulp of its own.
inline double rounding_tolerance(DType dtype, int64_t terms) {
  const double unit = dtype == DType::float64 ? 0x1p-53 : 0x1p-24;
  const double roundings = 32 + 2 * std::sqrt(static_cast<double>(std::max<int64_t>(terms, 0)));
  // The reference rounds as well where it has the same unit.
  const double computed = (dtype == DType::float64 ? 2 : 1) * roundings * unit;
  return computed + (dtype == DType::bfloat16 ? 0x1p-8 : 0.0);
}

/// A copy on the CPU in float64; undefined stays undefined.
inline Tensor wide(const Tensor& t) {
  return t.defined() ? t.to(kCpu).to(DType::float64) : t;
}

}  // namespace macgrad::testing
