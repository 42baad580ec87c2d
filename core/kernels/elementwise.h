// Elementwise kernels: any strides, all operands of one shape (broadcast = stride 0), one floating
// dtype.
#pragma once

#include "macgrad/core/kernel.h"
#include "macgrad/core/scalar_ops.h"

/// y of compare ops and condition are bool.
#define MACGRAD_ELEMENTWISE_KERNELS(KERNEL)      \
  MACGRAD_UNARY_OPS(KERNEL, In x, Out y)         \
  MACGRAD_BINARY_OPS(KERNEL, In a, In b, Out y)  \
  MACGRAD_COMPARE_OPS(KERNEL, In a, In b, Out y) \
  KERNEL(where, In condition, In a, In b, Out y)

MACGRAD_KERNELS(MACGRAD_ELEMENTWISE_KERNELS)
