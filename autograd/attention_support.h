// What the attention ops share: checks of their operands, and masks as tensors.
#pragma once

#include "macgrad/autograd/attention.h"
#include "macgrad/autograd/op_support.h"

namespace macgrad {

/// Checks q (B,H,T,d), k (B,H,S,d), v (B,H,S,dv) and a mask that fits them.
inline void check_qkv(const char* op, const Variable& q, const Variable& k, const Variable& v,
                      const AttentionMask& mask) {
  check_defined(op, q, "query");
  check_defined(op, k, "key");
  check_defined(op, v, "value");
  check(q.rank() == 4 && k.rank() == 4 && v.rank() == 4,
        "[{}] needs q (B,H,T,d), k (B,H,S,d), v (B,H,S,dv); got {}, {}, {}", op, q.shape(),
        k.shape(), v.shape());
  check(q.size(0) == k.size(0) && q.size(1) == k.size(1) && q.size(3) == k.size(3) &&
            k.size(0) == v.size(0) && k.size(1) == v.size(1) && k.size(2) == v.size(2),
        "[{}] shapes do not fit: q {}, k {}, v {}", op, q.shape(), k.shape(), v.shape());
  check_same_kind(op, q.value(), k.value());
  check_same_kind(op, q.value(), v.value());
  const auto check_mask = [&](const Tensor& m, int64_t length, const char* role) {
    if (!m.defined()) return;
    check(m.dtype() == DType::boolean && m.shape() == Shape{q.size(0), length},
          "[{}] {} must be bool ({}, {}), is {} {}", op, role, q.size(0), length, name(m.dtype()),
          m.shape());
  };
  check_mask(mask.key_valid, k.size(2), "key_valid");
  check_mask(mask.query_valid, q.size(2), "query_valid");
}

/// The mask as the kernels read it.
inline Tensor packed(const Tensor& mask) {
  return mask.defined() ? mask.contiguous() : mask;
}

/// condition ? a : b of bool tensors whose shapes broadcast.
inline Tensor select_mask(const Tensor& condition, const Tensor& a, const Tensor& b) {
  const Shape shape =
      broadcast_shapes(broadcast_shapes(condition.shape(), a.shape(), "mask"), b.shape(), "mask");
  Tensor y = Tensor::empty(shape, DType::boolean, condition.device());
  kernels::where(condition.expand(shape), a.expand(shape), b.expand(shape), y);
  return y;
}
inline Tensor and_(const Tensor& a, const Tensor& b) {
  return select_mask(a, b, Tensor::zeros({}, DType::boolean, a.device()));
}
/// Undefined operands hide nothing.
inline Tensor or_(const Tensor& a, const Tensor& b) {
  if (!a.defined() || !b.defined()) return a.defined() ? a : b;
  return select_mask(a, a, b);
}

/// x with `value` where `hidden`, unless it is undefined, is true.
inline Variable hide(const Variable& x, const Tensor& hidden, double value) {
  return hidden.defined() ? masked_fill(x, hidden, value) : x;
}

/// (1, 1, T, S): j <= i + S - T. Counted on the device: a captured step may not copy to it.
Tensor not_ahead(int64_t T, int64_t S, Device device);

}  // namespace macgrad
