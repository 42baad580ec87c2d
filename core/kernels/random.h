// Random numbers (core/generator.h): the same bits on every device and at any thread count.
// Contiguous tensors of any floating dtype.
#pragma once

#include "macgrad/core/generator.h"
#include "macgrad/core/kernel.h"

#define MACGRAD_RANDOM_KERNELS(KERNEL)                                                   \
  /* Uniform in [0, 1): float32 and bfloat16 from one 32-bit number per element, float64 \
     from two. */                                                                        \
  KERNEL(random_uniform, Out y, DrawKey key)                                             \
  /* Standard normal by Box-Muller: element pair (2i, 2i+1) from numbers 4i … 4i+3. */ \
  KERNEL(random_normal, Out y, DrawKey key)                                              \
  /* -1 or +1: the top bit of number `element`, 1 meaning +1. */                         \
  KERNEL(random_signs, Out y, DrawKey key)                                               \
  /* y = x/(1-p) where uniform(element) >= p, else 0. */                                 \
  KERNEL(dropout, In x, Out y, double p, DrawKey key)

MACGRAD_KERNELS(MACGRAD_RANDOM_KERNELS)
