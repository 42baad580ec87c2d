// Every compute kernel of macgrad: the contents page of both backends. A family of kernels is a
// header of core/kernels/ with one list: name, operands, meaning. From it come the declarations of
// the CPU functions (core/cpu/) and the CUDA functions (cuda/ has a file for each of core/cpu/),
// the slots, and their registration. Sources include the family that they use, so that a change of
// a kernel does not rebuild the others.
#pragma once

#include "macgrad/core/kernels/arrays.h"
#include "macgrad/core/kernels/attention.h"
#include "macgrad/core/kernels/elementwise.h"
#include "macgrad/core/kernels/linear_attention.h"
#include "macgrad/core/kernels/optimizer.h"
#include "macgrad/core/kernels/random.h"
#include "macgrad/core/kernels/rmfa.h"
#include "macgrad/core/kernels/rows.h"
#include "macgrad/core/kernels/sbn.h"

/// KERNEL(name, operands) or SCRATCH(name, operand struct) of every slot that both backends have.
#define MACGRAD_SHARED_KERNELS(KERNEL, SCRATCH)     \
  MACGRAD_ARRAY_KERNELS(KERNEL)                     \
  MACGRAD_ELEMENTWISE_KERNELS(KERNEL)               \
  MACGRAD_RANDOM_KERNELS(KERNEL)                    \
  MACGRAD_ROW_KERNELS(KERNEL)                       \
  MACGRAD_SBN_KERNELS(KERNEL)                       \
  MACGRAD_ATTENTION_KERNELS(KERNEL, SCRATCH)        \
  MACGRAD_RMFA_KERNELS(KERNEL, SCRATCH)             \
  MACGRAD_LINEAR_ATTENTION_KERNELS(KERNEL, SCRATCH) \
  MACGRAD_OPTIMIZER_KERNELS(KERNEL)

/// Of every slot.
#define MACGRAD_ALL_KERNELS(KERNEL, SCRATCH) \
  MACGRAD_SHARED_KERNELS(KERNEL, SCRATCH)    \
  MACGRAD_PROJECTED_ATTENTION_KERNELS(KERNEL, SCRATCH)
