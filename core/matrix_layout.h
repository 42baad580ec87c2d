// How a matrix operand lies in memory, for the GEMM libraries of both backends.
#pragma once

#include <algorithm>

#include "macgrad/core/tensor.h"

namespace macgrad {

/// A matrix operand as a GEMM library takes it: row-major with a leading dimension, maybe
/// transposed.
struct MatrixLayout {
  bool transpose = false;
  int64_t ld = 1;
};

/// Of the last two dimensions of `t`. Throws, naming `role`, when neither has stride 1.
inline MatrixLayout matrix_layout(const Tensor& t, const char* role) {
  const int64_t rows = t.size(-2), columns = t.size(-1);
  const int64_t sr = t.stride(-2), sc = t.stride(-1);
  if (rows == 0 || columns == 0) return {false, std::max<int64_t>(1, columns)};
  if (sc == 1 || columns <= 1) {
    if (rows <= 1) return {false, std::max<int64_t>(1, columns)};
    if (sr >= std::max<int64_t>(1, columns)) return {false, sr};
  }
  if (sr == 1 || rows <= 1) {
    if (columns <= 1) return {true, std::max<int64_t>(1, rows)};
    if (sc >= std::max<int64_t>(1, rows)) return {true, sc};
  }
  throw Error("[matmul] {} of shape {} with strides {} has no unit stride; make it contiguous",
              role, t.shape(), t.strides());
}

}  // namespace macgrad
