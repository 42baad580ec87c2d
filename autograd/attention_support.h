// What the attention ops share: checks of their operands, masks as tensors, and their base class.
#pragma once

#include "macgrad/autograd/attention.h"
#include "macgrad/autograd/fused.h"
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

/// A fused op of q (B,H,T,d), k (B,H,S,d), v (B,H,S,dv) and perhaps more, with its mask.
class AttentionOp : public FusedOp {
 public:
  explicit AttentionOp(const AttentionMask& given)
      : mask_(given),
        key_valid_(packed(given.key_valid)),
        query_valid_(packed(given.query_valid)) {}

 protected:
  std::vector<SavedTensor> mask_constants() const {
    return {{key_valid_, std::string(name()) + "'s key mask"},
            {query_valid_, std::string(name()) + "'s query mask"}};
  }
  /// Memory for the result (B,H,T,dv).
  static Tensor output_of(const Tensors& x) {
    return empty_heads(x[0].size(0), x[0].size(1), x[0].size(2), x[2].size(3), x[0]);
  }
  /// q, k and v with unit last stride.
  static Tensors rows_of(const Tensors& x) {
    return {unit_stride(x[0]), unit_stride(x[1]), unit_stride(x[2])};
  }
  /// Memory for the gradients of q, k and v.
  static Tensors gradients_of(const Tensors& x) {
    const auto like = [](const Tensor& t) {
      return empty_heads(t.size(0), t.size(1), t.size(2), t.size(3), t);
    };
    return {like(x[0]), like(x[1]), like(x[2])};
  }

  AttentionMask mask_;
  Tensor key_valid_, query_valid_;  // of the mask, contiguous
};

/// a and b, a or b of bool tensors whose shapes broadcast; undefined operands of or_ hide nothing.
Tensor and_(const Tensor& a, const Tensor& b);
Tensor or_(const Tensor& a, const Tensor& b);

/// x with `value` where `hidden`, unless it is undefined, is true.
inline Variable hide(const Variable& x, const Tensor& hidden, double value) {
  return hidden.defined() ? masked_fill(x, hidden, value) : x;
}

/// Which keys queries see, for composites.
struct Visibility {
  Tensor shown;   // (B|1, 1, T, S) bool, undefined: everything
  Tensor hidden;  // its complement
  Tensor count;   // (B|1, 1, T, 1) floating: visible keys of each query
};
Visibility visibility(const AttentionMask& mask, const Variable& q, const Variable& k);

/// (1, 1, T, S): j <= i + S - T. Counted on the device: a captured step may not copy to it.
Tensor not_ahead(int64_t T, int64_t S, Device device);

}  // namespace macgrad
