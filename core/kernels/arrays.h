// Copies, reductions, products and indexing. "(A, R, N)" is any tensor seen as three dimensions
// with the middle one worked on. Unless said otherwise operands are contiguous and of one floating
// dtype.
#pragma once

#include "macgrad/core/kernel.h"

#define MACGRAD_ARRAY_KERNELS(KERNEL)                                                         \
  /* Any strides on both sides, any pair of dtypes (casts round to nearest), one shape. */    \
  KERNEL(copy, In x, Out y)                                                                   \
  /* Any strides, any dtype. */                                                               \
  KERNEL(fill, Out y, double value)                                                           \
                                                                                              \
  /* x (A, R, N) -> y (A, N). */                                                              \
  KERNEL(sum, In x, Out y)                                                                    \
  /* x (A, R, N) -> y (A, N), index (A, N) int64: the first position of the extremum. R       \
     >= 1. NaN wins. */                                                                       \
  KERNEL(max, In x, Out y, Out index)                                                         \
  KERNEL(min, In x, Out y, Out index)                                                         \
  /* x, y (A, R, N): running sums along R, from the end when reverse. */                      \
  KERNEL(cumsum, In x, Out y, bool reverse)                                                   \
                                                                                              \
  /* c = alpha·a·b + beta·c over batches: a (…, M, K), b (…, K, N), c (…, M, N) with \
     equal batch dimensions (expanded ones have stride 0). In a, b and c one of the last      \
     two strides is 1. K = 0 gives beta·c. */                                                \
  KERNEL(matmul, In a, In b, Out c, double alpha, double beta)                                \
                                                                                              \
  /* x (A, R, N), index (A, K, N) int64 in [0, R) -> y (A, K, N): y[a,k,n] = x[a,             \
     index[a,k,n], n]. */                                                                     \
  KERNEL(gather, In x, In index, Out y)                                                       \
  /* index, source (A, K, N), y (A, R, N): y[a, index[a,k,n], n] += source[a,k,n], in         \
     order of k. A bfloat16 y is summed in float32 and rounded once, here and in              \
     index_add. */                                                                            \
  KERNEL(scatter_add, In index, In source, InOut y)                                           \
  /* x (A, R, N), index (K) int64 in [0, R) -> y (A, K, N). */                                \
  KERNEL(index_select, In x, In index, Out y)                                                 \
  /* index (K), source (A, K, N), y (A, R, N): y[a, index[k], n] += source[a,k,n], in         \
     order of k. */                                                                           \
  KERNEL(index_add, In index, In source, InOut y)

MACGRAD_KERNELS(MACGRAD_ARRAY_KERNELS)
