// What linear_attention() and projected_attention() share: checks, and the key log-weight ℓ as a
// fourth input.
#pragma once

#include <cmath>

#include "macgrad/autograd/attention_support.h"
#include "macgrad/core/kernels/linear_attention.h"

namespace macgrad {

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

class WeightedAttentionOp : public AttentionOp {
 public:
  using AttentionOp::AttentionOp;

  Tensor statistics;  // of the forward kernel, once it has run

 protected:
  /// q, k, v and perhaps ℓ.
  static Tensors rows_with_weight(const Tensors& x) {
    Tensors rows = rows_of(x);
    if (x.size() > 3) rows.push_back(x[3].contiguous());
    return rows;
  }
  static const Tensor& weight_of(const Tensors& x) {
    static const Tensor none;
    return x.size() > 3 ? x[3] : none;
  }
  static Tensors gradients_with_weight(const Tensors& x) {
    Tensors d = gradients_of(x);
    if (x.size() > 3) d.push_back(Tensor::empty(x[3].shape(), DType::float64, x[3].device()));
    return d;
  }
};

}  // namespace macgrad
