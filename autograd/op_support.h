// What the op files share: checking and broadcasting operands, and seeing a tensor as (A, R, N).
#pragma once

#include <fmt/ranges.h>

#include <algorithm>

#include "macgrad/autograd/node.h"
#include "macgrad/autograd/ops.h"
#include "macgrad/autograd/scope.h"

namespace macgrad {

inline void check_defined(const char* op, const Variable& v, const char* role = "operand") {
  check(v.defined(), "[{}] {} is undefined", op, role);
}

inline void check_same_kind(const char* op, const Tensor& a, const Tensor& b) {
  if (a.dtype() == b.dtype() && a.device() == b.device()) [[likely]]
    return;
  check(a.dtype() == b.dtype(), "[{}] dtypes differ: {} {} and {} {}; cast one", op,
        name(a.dtype()), a.shape(), name(b.dtype()), b.shape());
  check(a.device() == b.device(), "[{}] devices differ: {} and {}; move one", op, text(a.device()),
        text(b.device()));
}

inline Shape broadcast(const char* op, const Shape& a, const Shape& b) {
  check(
      broadcasts_to(a, b) || broadcasts_to(b, a) ||
          [&] {
            for (int i = 1; i <= std::min(a.rank(), b.rank()); ++i) {
              const int64_t x = a[a.rank() - i], y = b[b.rank() - i];
              if (x != y && x != 1 && y != 1) return false;
            }
            return true;
          }(),
      "[{}] shapes {} and {} do not broadcast", op, a, b);
  return broadcast_shapes(a, b, op);
}

inline int checked_dim(const char* op, int dim, const Shape& shape) {
  check(dim >= -shape.rank() && dim < shape.rank(), "[{}] dimension {} is out of range for {}", op,
        dim, shape);
  return dim < 0 ? dim + shape.rank() : dim;
}

/// Dimensions as an attribute.
inline Shape shape_of(const std::vector<int>& dims) {
  Shape shape;
  for (const int d : dims) shape.push_back(d);
  return shape;
}

/// (…, N) as (R, N). Spelled out: an extent of -1 is not decided where N = 0.
inline Shape as_rows(const Shape& shape) {
  int64_t rows = 1;
  for (int d = 0; d < shape.rank() - 1; ++d) rows *= shape[d];
  return {rows, shape.back()};
}

/// `t`, contiguous, as (A, R, N) around `dim`.
inline Tensor around(const Tensor& t, int dim) {
  int64_t before = 1, after = 1;
  for (int d = 0; d < dim; ++d) before *= t.shape()[d];
  for (int d = dim + 1; d < t.rank(); ++d) after *= t.shape()[d];
  return t.contiguous().view({before, t.shape()[dim], after});
}

/// A view of `t` with unit last stride where it has one, else a copy.
inline Tensor unit_stride(const Tensor& t) {
  return t.size(-1) <= 1 || t.stride(-1) == 1 ? t : t.contiguous();
}

/// (B,H,T,d) laid out as (B,T,H,d), so that joining heads afterwards is a view.
inline Tensor empty_heads(int64_t B, int64_t H, int64_t T, int64_t d, const Tensor& like) {
  return Tensor::empty({B, T, H, d}, like.dtype(), like.device()).transpose(1, 2);
}

/// The complement of a bool mask.
inline Tensor not_(const Tensor& mask) {
  return equal(mask.to(DType::float32), 0.0);
}

inline Variable zeros_like(const Variable& v) {
  return Variable(Tensor::zeros(v.shape(), v.dtype(), v.device()));
}

/// x less its mean over `dims` (none: all), by the corrected two-pass algorithm: the first mean is
/// taken of differences from the first value, so equal values are 0 exactly; the second removes
/// what rounding left of it.
inline Variable centred(const Variable& x, const std::vector<int>& dims) {
  if (x.numel() == 0) return x;
  Tensor first = x.value();
  for (int d = 0; d < x.rank(); ++d)
    if (dims.empty() || std::count(dims.begin(), dims.end(), d) > 0) first = first.slice(d, 0, 1);
  const Variable from(first), values = x.detach();
  const Variable deviation = x - (from + mean(values - from, dims, true));
  return deviation - mean(deviation, dims, true);
}

/// 1/sqrt(v), and 0 with gradient 0 where v is 0.
inline Variable inverse_root(const Variable& v) {
  const Tensor zero = equal(v.value(), 0.0);
  return masked_fill(rsqrt(masked_fill(v, zero, 1.0)), zero, 0.0);
}

}  // namespace macgrad
