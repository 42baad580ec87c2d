// preSBN and postSBN (math of ppSBN: nn/README.md). Operands of one floating dtype unless said
// otherwise.
#pragma once

#include "macgrad/core/kernel.h"

namespace macgrad {

/// preSBN: statistics over batch and valid positions (batch), given ones (fixed), or of a row
/// (row).
enum class SbnStatistics { batch, fixed, row };

/// y: x centred, divided by sqrt(var + eps) (in `row` mode of the row itself), then each row
/// divided by its L2 norm; rows of a norm up to 1e-12 and invalid rows are 0.
struct PreSbnForward {
  using KernelOperands = void;
  In x;      // (B, H, T, d), unit last stride, any others
  In valid;  // (B, T) bool, or absent
  SbnStatistics statistics;
  double eps;
  /// (H, d) of any floating dtype: written by `batch` (biased), read by `fixed`, absent for `row`.
  InOut mean, var;
  /// (H, d) of any floating dtype, or absent: `batch` makes them (1 - momentum) of what they were
  /// plus momentum of what it wrote; the other modes leave them alone.
  InOut running_mean, running_var;
  double momentum;
  Out y;  // of x's shape
};
/// Operands as in PreSbnForward, grad of y's shape. `batch` differentiates through the statistics;
/// `fixed` treats them as constants.
struct PreSbnBackward {
  using KernelOperands = void;
  In x, valid, mean, var, grad;
  SbnStatistics statistics;
  double eps;
  Out dx;
};

/// Operands as in post_sbn_forward, grad of y's shape.
struct PostSbnBackward {
  using KernelOperands = void;
  In x, gamma, beta, grad;
  double eps;
  Out dx, dgamma, dbeta;
};

}  // namespace macgrad

#define MACGRAD_SBN_KERNELS(KERNEL)                                                           \
  KERNEL(pre_sbn_forward, const PreSbnForward& x)                                             \
  KERNEL(pre_sbn_backward, const PreSbnBackward& x)                                           \
  /* y = s·(s² + eps²)^((beta-1)/2), s = gamma·x; x (…, d) with unit last stride, gamma \
     and beta (1) or (d). */                                                                  \
  KERNEL(post_sbn_forward, In x, In gamma, In beta, double eps, Out y)                        \
  KERNEL(post_sbn_backward, const PostSbnBackward& x)

MACGRAD_KERNELS(MACGRAD_SBN_KERNELS)
