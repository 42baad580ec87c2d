// Softmax attention that never holds a T×S matrix. Shape letters: B batch, H heads, T query length,
// S key length, d head dimension, dv value dimension.
#pragma once

#include "macgrad/core/generator.h"
#include "macgrad/core/kernel.h"

namespace macgrad {

/// Key j is visible to query i when key_valid and, if causal, j <= i + S - T.
struct SoftmaxAttentionArgs {
  double scale = 1.0;  // multiplies q·k
  bool causal = false;
  double dropout = 0.0;  // on the normalised weights; kept ones are scaled by 1/(1-dropout)
  DrawKey key{};         // element ((b·H + h)·T + i)·S + j decides
};

struct SoftmaxAttentionOperands {
  using KernelOperands = void;
  In q, k, v;  // (B, H, T, d), (B, H, S, d), (B, H, S, dv): last stride 1, others any
  In key_valid, query_valid;  // (B, S), (B, T) bool, true = visible, contiguous, or absent
  const SoftmaxAttentionArgs& args;
};
struct SoftmaxAttentionForward {
  using KernelOperands = void;
  SoftmaxAttentionOperands in;
  Out out;  // (B, H, T, dv), last stride 1
  /// (B, H, T, 2) of compute_dtype, contiguous: m, the largest of q·k (of -q·k for a negative
  /// scale), and Σ exp(|scale| (±q·k - m)), kept apart as in cross_entropy_forward; -inf and 0
  /// where no key is visible (out is 0 there).
  Out statistics;
  Scratch scratch{};
};
struct SoftmaxAttentionBackward {
  using KernelOperands = void;
  SoftmaxAttentionOperands in;
  In out, statistics;  // of the forward kernel
  In grad;             // of out's shape, last stride 1
  Out dq, dk, dv;      // of the shapes of q, k, v
  Scratch scratch{};
};

}  // namespace macgrad

#define MACGRAD_ATTENTION_KERNELS(KERNEL, SCRATCH)            \
  SCRATCH(softmax_attention_forward, SoftmaxAttentionForward) \
  SCRATCH(softmax_attention_backward, SoftmaxAttentionBackward)

MACGRAD_SCRATCH_KERNELS(MACGRAD_ATTENTION_KERNELS)
