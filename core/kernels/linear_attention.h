// Linear attention on given features (autograd/linear_attention.h) and on functions of projections
// (autograd/projected_attention.h). Shape letters: B batch, H heads, T query length, S key length,
// d head dimension, m projections, M features, dv value dimension.
#pragma once

#include "macgrad/core/kernel.h"

namespace macgrad {

/// Result divided by the sum of the weights, or the weighted sum itself.
enum class Normaliser : uint8_t { quotient, none };

struct LinearAttentionArgs {
  bool log_features = false;  // phi_q and phi_k hold log φ; -inf is a feature of value 0
  double constant = 0.0;      // κ >= 0: added to every φ_q·φ_k
  double floor = 0.0;         // den is floored at floor·Σ_visible w_j; 0: not floored
  Normaliser normaliser = Normaliser::quotient;
  double factor = 1.0;  // multiplies the result with Normaliser::none
};

struct LinearAttentionOperands {
  using KernelOperands = void;
  In phi_q, phi_k, v;  // (B, H, T, M), (B, H, S, M), (B, H, S, dv): last stride 1, others any
  In log_weight;       // (B, H, S) float64, contiguous, or absent
  In key_valid, query_valid;  // as in SoftmaxAttentionOperands
  const LinearAttentionArgs& args;
  bool causal;  // key j is visible to query i when j <= i + S - T
};
struct LinearAttentionForward {
  using KernelOperands = void;
  LinearAttentionOperands in;
  Out out;  // (B, H, T, dv), last stride 1
  /// (B, H, T, 3) float64: the denominator used over exp(shift); shift; kNone, kUsed, kFloored or
  /// kRecomputed (core/linear_attention_shifts.h).
  Out sums;
  /// (4) float64: denominators, floored, recomputed, and the smallest den/Σ w (of log-features: the
  /// smallest shifted den).
  Out stats;
  Scratch scratch{};
};
struct LinearAttentionBackward {
  using KernelOperands = void;
  LinearAttentionOperands in;
  In out, sums;            // of the forward kernel
  In grad;                 // of out's shape, last stride 1
  Out dphi_q, dphi_k, dv;  // of the shapes of phi_q, phi_k, v
  Out dlog_weight;         // (B, H, S) float64, absent without log_weight
  Scratch scratch{};
};

/// How features are computed from the m projections u = s·xΩ of a row (nn/README.md, other maps).
enum class ProjectionFunction : uint8_t {
  exponential,    // φ = e^u/√m, as log-features
  trigonometric,  // φ = [cos u, sin u]/√m
};

struct ProjectedAttentionArgs {
  ProjectionFunction function = ProjectionFunction::exponential;
  double scale = 1.0;  // s
  double floor = 0.0;  // as in LinearAttentionArgs
};

/// Of linear attention on the features.
inline LinearAttentionArgs linear_args(const ProjectedAttentionArgs& args) {
  return {.log_features = args.function == ProjectionFunction::exponential, .floor = args.floor};
}

struct ProjectedAttentionOperands {
  using KernelOperands = void;
  In q, k, v;                             // (B, H, T, d), (B, H, S, d), (B, H, S, dv)
  In log_weight, key_valid, query_valid;  // as in LinearAttentionOperands
  In omega;                               // (d, m) or (H, d, m), contiguous
  const ProjectedAttentionArgs& args;
  bool causal;
};
struct ProjectedAttentionForward {
  using KernelOperands = void;
  ProjectedAttentionOperands in;
  Out out, sums, stats;  // as in LinearAttentionForward
  /// Both or neither, for the backward kernel, which sums them again otherwise; absent with a
  /// causal mask. state (B, H, M, dv) of q's dtype: Σ_j φ_k v_jᵀ. state_sums (B, H, 2, M + 1)
  /// float64: row 0 holds Σ_j φ_k, then Σ_j w_j; row 1 the shifts of the features, then that of the
  /// weights.
  Out state, state_sums;
  Scratch scratch{};
};
struct ProjectedAttentionBackward {
  using KernelOperands = void;
  ProjectedAttentionOperands in;
  In out, sums, state, state_sums;  // of the forward kernel
  In grad;                          // of out's shape, last stride 1
  Out dq, dk, dv, dlog_weight;      // as in LinearAttentionBackward
  Scratch scratch{};
};

}  // namespace macgrad

#define MACGRAD_LINEAR_ATTENTION_KERNELS(KERNEL, SCRATCH)   \
  SCRATCH(linear_attention_forward, LinearAttentionForward) \
  SCRATCH(linear_attention_backward, LinearAttentionBackward)

MACGRAD_SCRATCH_KERNELS(MACGRAD_LINEAR_ATTENTION_KERNELS)

/// These have no CUDA functions: on a GPU projected_attention() is linear attention on features.
#define MACGRAD_PROJECTED_ATTENTION_KERNELS(KERNEL, SCRATCH)      \
  SCRATCH(projected_attention_forward, ProjectedAttentionForward) \
  SCRATCH(projected_attention_backward, ProjectedAttentionBackward)

MACGRAD_SCRATCH_KERNELS(MACGRAD_PROJECTED_ATTENTION_KERNELS)
