// Linear attention on given features, as a fused op: the core of every method whose kernel is
// φ_q·φ_k, whether the features are random, deterministic or learned. Shape letters: B batch,
// H heads, T queries, S keys, M features, dv value dimension. Definitions: nn/README.md.
#pragma once

#include "macgrad/autograd/attention.h"
#include "macgrad/core/kernels/linear_attention.h"

namespace macgrad {

/// out_i = Σ_j w_j (φ_q(i)·φ_k(j) + κ) v_j / Σ_j w_j (φ_q(i)·φ_k(j) + κ), w_j = exp(ℓ_j), over the
/// visible keys j: phi_q (B,H,T,M), phi_k (B,H,S,M), v (B,H,S,dv) of one floating dtype ->
/// (B,H,T,dv). bfloat16 is summed in float32.
///
/// log_weight is ℓ (B,H,S), or undefined for weights of 1. It enters the sums in float64: a running
/// sum of gates in float32 would lose 4e-3 of a weight over 65,536 positions. Pass float64; other
/// floating dtypes are converted. A key with ℓ = -inf is hidden, like one that mask.key_valid
/// hides. With mask.causal, ℓ_j = log(1-g_j) - Σ_{l<=j} log g_l is the gate of RFA (Peng et al.
/// 2021), ℓ_j = -Σ_{l<=j} log f_l a forget gate.
///
/// Neither large log-features nor a large range of ℓ overflows or underflows a sum: features are
/// shifted by their maxima over visible keys, which are constants to the gradient. Log-features
/// need no floor: without a causal mask no shifted denominator is below 1.
///
/// Queries without a visible key and invalid queries give 0 with gradients 0; values at hidden
/// positions, NaN included, change nothing. A floored denominator passes a gradient to ℓ through
/// the w_j of the floor, and none to features. The composite, which second derivatives use, holds
/// T·S numbers per head when causal, and T·S·M of log-features.
///
/// Errors: shapes, dtypes or devices that do not fit, a negative κ or floor, a floor for
/// log-features, a factor with Normaliser::quotient. `statistics`, if not null, is set to what
/// read_statistics() reads, on the operands' device; the composite leaves it alone.
Variable linear_attention(const Variable& phi_q, const Variable& phi_k, const Variable& v,
                          const Variable& log_weight, const AttentionMask& mask,
                          const LinearAttentionArgs& args, Tensor* statistics = nullptr);

}  // namespace macgrad
