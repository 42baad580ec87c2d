// Kernels over rows: softmax, cross entropy, layer norm. R rows, N columns, V vocabulary;
// contiguous operands of one floating dtype.
#pragma once

#include "macgrad/core/kernel.h"

namespace macgrad {

/// Operands as in cross_entropy_forward.
struct CrossEntropyBackward {
  using KernelOperands = void;
  In logits, target, statistics;
  In grad;  // (R) of compute_dtype
  double smoothing;
  int64_t ignore;
  Out dlogits;  // (R, V)
};

/// x, y (R, N); weight, bias (N); mean (R, 2), rstd (R) of compute_dtype; biased variance. The mean
/// is the sum of two numbers, the second of which is what rounding takes from the first. rstd is 0
/// where variance and eps are.
struct LayerNormForward {
  using KernelOperands = void;
  In x, weight, bias;
  double eps;
  Out y, mean, rstd;
};
/// grad (R, N); mean and rstd of the forward kernel; the gradients of x, weight and bias.
struct LayerNormBackward {
  using KernelOperands = void;
  In x, weight, mean, rstd, grad;
  Out dx, dweight, dbias;
};

}  // namespace macgrad

#define MACGRAD_ROW_KERNELS(KERNEL)                                                               \
  /* x, y (R, N), over N. */                                                                      \
  KERNEL(softmax_forward, In x, Out y)                                                            \
  KERNEL(softmax_backward, In y, In grad, Out dx)                                                 \
  KERNEL(log_softmax_forward, In x, Out y)                                                        \
  KERNEL(log_softmax_backward, In y, In grad, Out dx)                                             \
  /* logits (R, V), target (R) int64 -> loss (R), statistics (R, 2) of compute_dtype: the         \
     largest logit m and Σ exp(logit - m), kept apart because their log-sum-exp is               \
     rounded to a unit of m. With smoothing s the target distribution is (1-s) on the             \
     target plus s/V everywhere; rows whose target is `ignore` have loss 0. */                    \
  KERNEL(cross_entropy_forward, In logits, In target, double smoothing, int64_t ignore, Out loss, \
         Out statistics)                                                                          \
  KERNEL(cross_entropy_backward, const CrossEntropyBackward& x)                                   \
  KERNEL(layer_norm_forward, const LayerNormForward& x)                                           \
  KERNEL(layer_norm_backward, const LayerNormBackward& x)

MACGRAD_KERNELS(MACGRAD_ROW_KERNELS)
