// What the attention ops share: checks of their operands, and masks as tensors.
#pragma once

#include <cmath>

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

/// Checks the floor of linear attention.
inline void check_floor(const char* op, const LinearAttentionArgs& args) {
  check(args.floor >= 0.0 && std::isfinite(args.floor),
        "[{}] the floor {} must be a finite number >= 0", op, args.floor);
  check(args.floor == 0.0 || (!args.log_features && args.normaliser == Normaliser::quotient),
        "[{}] floor {}: only denominators of features, not of log-features, are floored; use 0", op,
        args.floor);
}

/// The key log-weight of k (B,H,S,·), checked, in float64.
inline Variable wide_log_weight(const char* op, const Variable& log_weight, const Variable& k) {
  check(log_weight.shape() == Shape{k.size(0), k.size(1), k.size(2)} &&
            is_floating(log_weight.dtype()) && log_weight.device() == k.device(),
        "[{}] log_weight {} {} on {} must be floating (B = {}, H = {}, S = {}) on {}", op,
        name(log_weight.dtype()), log_weight.shape(), text(log_weight.device()), k.size(0),
        k.size(1), k.size(2), text(k.device()));
  return cast(log_weight, DType::float64);
}
/// ℓ of q, k, v and perhaps ℓ, as the kernels read it.
inline Tensor weight_of(const Tensors& x) {
  return x.size() > 3 ? x[3].contiguous() : Tensor();
}
/// For the gradients of q, k, v and ℓ, undefined without it.
inline Tensors empty_gradients(const Tensors& x) {
  Tensors d;
  for (size_t i = 0; i < 3; ++i)
    d.push_back(empty_heads(x[i].size(0), x[i].size(1), x[i].size(2), x[i].size(3), x[i]));
  d.push_back(x.size() > 3 ? Tensor::empty(x[3].shape(), DType::float64, x[3].device()) : Tensor());
  return d;
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
