// Linear attention whose features are functions of projections x·ω, as a fused op: projection,
// function and attention are one kernel per direction, so that features never reach main memory.
// Shape letters: B batch, H heads, T queries, S keys, N rows, d head dimension, dv value dimension,
// m projections. Definitions: nn/README.md, other maps.
#pragma once

#include "macgrad/autograd/linear_attention.h"

namespace macgrad {

/// φ(x) with φ(x)·φ(y) = 1/m Σ_i e^(ω_i·(x+y)) or 1/m Σ_i cos(ω_i·(x−y)) of rows times args.scale:
/// x (B,H,N,d), omega (d,m) or (H,d,m) of x's dtype -> log φ (B,H,N,m) of the exponential function,
/// φ (B,H,N,2m) of the trigonometric one, in primitive ops.
Variable projected_features(const Variable& x, const Tensor& omega,
                            const ProjectedAttentionArgs& args);

/// linear_attention() on projected_features() of q (B,H,T,d) and k (B,H,S,d); v (B,H,S,dv),
/// log_weight, mask and statistics as there -> (B,H,T,dv). Overwriting omega before the gradient is
/// computed is an error. The kernel keeps the output, three numbers per query and, without a causal
/// mask and with at least dv keys, one state per head for the backward pass, and computes features
/// again. On devices without the kernel this is linear_attention() on features. bfloat16 is summed
/// in float32.
///
/// Errors: as linear_attention(), and an omega that does not fit.
Variable projected_attention(const Variable& q, const Variable& k, const Variable& v,
                             const Variable& log_weight, const AttentionMask& mask,
                             const Tensor& omega, const ProjectedAttentionArgs& args,
                             Tensor* statistics = nullptr);

}  // namespace macgrad
