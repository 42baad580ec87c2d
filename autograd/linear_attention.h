// Linear attention on given features, as a fused op: the core of every method whose kernel is
// φ_q·φ_k, whether the features are random, deterministic or learned. Shape letters: B batch,
// H heads, T queries, S keys, M features, dv value dimension. Definitions: nn/README.md.
#pragma once

#include "macgrad/autograd/attention.h"

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
/// shifted by their maxima over visible keys, which are constants to the gradient. No denominator
/// is floored then, and without a causal mask none of the shifted ones is below 1.
///
/// Queries without a visible key and invalid queries give 0 with gradients 0; values at hidden
/// positions are not read, NaN included. A floored denominator has no
/// gradient but that of the w_j in it. Errors: shapes,
/// dtypes or devices that do not fit, a negative κ or floor, a floor for log-features, a factor
/// with Normaliser::quotient. `statistics`, if not null, is set to what read_statistics() reads, on
/// the operands' device; the composite leaves it alone.
Variable linear_attention(const Variable& phi_q, const Variable& phi_k, const Variable& v,
                          const Variable& log_weight, const AttentionMask& mask,
                          const LinearAttentionArgs& args, Tensor* statistics = nullptr);

}  // namespace macgrad
