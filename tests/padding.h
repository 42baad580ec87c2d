// Padding for tests of attention kernels.
#pragma once

#include <cstdint>
#include <limits>
#include <vector>

#include "macgrad/core/tensor.h"

namespace macgrad::testing {

/// Sets the rows of x (B,H,n,columns) that valid (B,n) hides to NaN: nothing may depend on them.
inline void fill_hidden_rows(std::vector<double>& x, const std::vector<uint8_t>& valid, int64_t B,
                             int64_t H, int64_t n, int64_t columns) {
  for (int64_t i = 0; i < B * H * n; ++i) {
    const int64_t b = i / (H * n);
    if (valid[static_cast<size_t>(b * n + i % n)]) continue;
    for (int64_t j = 0; j < columns; ++j)
      x[static_cast<size_t>(i * columns + j)] = std::numeric_limits<double>::quiet_NaN();
  }
}

/// The same for a tensor (B,H,n,columns) of any strides and a mask (B,n), or an undefined one.
inline void fill_hidden_rows(const Tensor& x, const Tensor& valid) {
  if (!valid.defined()) return;
  const auto values = valid.to_vector<double>();
  for (int64_t i = 0; i < valid.numel(); ++i) {
    if (values[static_cast<size_t>(i)] != 0) continue;
    const int64_t n = valid.size(1);
    x.select(0, i / n).select(1, i % n).fill(std::numeric_limits<double>::quiet_NaN());
  }
}

}  // namespace macgrad::testing
