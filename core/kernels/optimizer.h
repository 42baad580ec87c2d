// Optimizer updates over lists of tensors, one entry per parameter; every tensor contiguous.
#pragma once

#include <limits>

#include "macgrad/core/kernel.h"

namespace macgrad {

/// Step of AdamArgs and SgdArgs in a captured CUDA step: step, lr, grad_scale and beta1 or momentum
/// are then read from device memory (cuda/step_values.h), and lr and grad_scale of the arguments
/// multiply those.
inline constexpr int64_t kLiveUpdate = -1;

struct AdamArgs {
  double lr = 1e-3;
  double beta1 = 0.9;
  double beta2 = 0.999;
  double eps = 1e-8;
  double weight_decay = 0.0;
  bool decoupled = true;    // AdamW; false adds weight_decay·p to the gradient
  double grad_scale = 1.0;  // multiplies the gradient first (clipping, averaging)
  // Elements of the scaled gradient are then kept within ±clip_value.
  double clip_value = std::numeric_limits<double>::infinity();
  int64_t step = 1;  // counted from 1, for the bias correction
  // Updated parameters below it are set to it.
  double lower_bound = -std::numeric_limits<double>::infinity();
};

/// As AdamArgs; weight decay is added to the gradient.
struct SgdArgs {
  double lr = 1e-3;
  double momentum = 0.0;
  double weight_decay = 0.0;
  double grad_scale = 1.0;
  double clip_value = std::numeric_limits<double>::infinity();
  int64_t step = 1;  // only tells a captured step (kLiveUpdate) from another
  double lower_bound = -std::numeric_limits<double>::infinity();
};

}  // namespace macgrad

#define MACGRAD_OPTIMIZER_KERNELS(KERNEL)                                                 \
  /* Without masters (an empty list) moments have the parameter's dtype. With them        \
     parameters are bfloat16, masters and moments float32: the master is updated, and the \
     parameter becomes the master rounded. */                                             \
  KERNEL(adam, InOutList params, InOutList masters, InList grads, InOutList first,        \
         InOutList second, const AdamArgs& args)                                          \
  /* Lists as those of adam, with one moment: b = momentum·b + gradient, parameter -=    \
     lr·b (Sutskever et al. 2013, in PyTorch's form). Without moments (an empty list) b  \
     is the gradient. */                                                                  \
  KERNEL(sgd, InOutList params, InOutList masters, InList grads, InOutList moments,       \
         const SgdArgs& args)                                                             \
  /* total (1) float64: sum of squares of all elements of all tensors. */                 \
  KERNEL(sum_of_squares, InList tensors, Out total)

MACGRAD_KERNELS(MACGRAD_OPTIMIZER_KERNELS)
