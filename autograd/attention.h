// Attention and ppSBN as fused ops: softmax attention, RMFA, preSBN and postSBN. Shape letters: B
// batch, H heads, T queries, S keys, d head dimension, dv value dimension, P projections, M
// features with a projection. Definitions: nn/README.md.
#pragma once

#include <limits>

#include "macgrad/autograd/variable.h"
#include "macgrad/core/generator.h"
#include "macgrad/core/kernels/rmfa.h"
#include "macgrad/core/kernels/sbn.h"

namespace macgrad {

/// Who is visible. true = visible; undefined tensors mean "all".
struct AttentionMask {
  Tensor key_valid;     // (B, S) bool
  Tensor query_valid;   // (B, T) bool; outputs and gradients at invalid queries are 0
  bool causal = false;  // key j visible to query i when j <= i + S - T
};

/// x (B,H,N,d) with zeros at places that valid (B,N) bool hides, whatever stands there, NaN
/// included, and gradients 0; x itself when valid is undefined.
Variable without_invalid(const Variable& x, const Tensor& valid);

/// The bool Tensor (B|1, 1, T, S) of what a mask shows; undefined when everything is visible.
Tensor visible(const AttentionMask& mask, int64_t T, int64_t S, Device device);

/// softmax(scale·q·kᵀ)·v: q (B,H,T,d), k (B,H,S,d), v (B,H,S,dv) -> (B,H,T,dv); memory
/// O((T+S)·d). Dropout acts on the weights and is replayed from `key`.
Variable softmax_attention(const Variable& q, const Variable& k, const Variable& v,
                           const AttentionMask& mask, double scale, double dropout = 0.0,
                           const DrawKey& key = {});

/// Denominators of calls of rmfa() and linear_attention(); empty by default.
struct DenominatorStatistics {
  int64_t rows = 0;        // queries with a visible key
  int64_t floored = 0;     // rows whose denominator was floored (without a floor: den <= 0)
  int64_t recomputed = 0;  // rows of linear_attention() that were summed again in log space
  /// Smallest den / Σ w_j over the visible keys (without weights: their number); for log-features
  /// the smallest shifted denominator.
  double smallest_ratio = std::numeric_limits<double>::infinity();

  DenominatorStatistics& operator+=(const DenominatorStatistics& other);
};
/// Reads what rmfa() or linear_attention() wrote; empty for an undefined tensor (the composite
/// ran).
DenominatorStatistics read_statistics(const Tensor& statistics);
/// Random Maclaurin feature attention: q, k, v, mask as above; omega (d, P) or (H, d, P), weight
/// (M), both constant, contiguous and perhaps wider (RmfaArgs). The composite cannot be recorded
/// for draws to come (args.layout): an Error then. The kernel leaves its statistics in a tensor on
/// q's device when asked, so that nothing waits for them; the composite leaves it alone.
Variable rmfa(const Variable& q, const Variable& k, const Variable& v, const AttentionMask& mask,
              const Tensor& omega, const Tensor& weight, const RmfaArgs& args,
              Tensor* statistics = nullptr);
/// phi(x) without the constant part: x (B,H,T,d) -> (B,H,T, M or d+M), in primitive ops.
Variable maclaurin_features(const Variable& x, const Tensor& omega, const Tensor& weight,
                            const RmfaArgs& args);

/// preSBN statistics (H, d): set by batch mode (of compute_dtype), read by fixed mode.
struct SbnMoments {
  Tensor mean;
  Tensor var;
};
/// Running statistics (H, d), both or neither: batch mode moves them in place by `momentum` towards
/// the batch's, the other modes leave them alone.
struct SbnRunning {
  Tensor mean;
  Tensor var;
  double momentum = 0.1;
};
/// preSBN (paper, Algorithm 1): x (B,H,T,d), valid (B,T) bool or undefined -> rows of unit norm, 0
/// at invalid places and where the norm is at most 1e-12. statistics: of batch and places a head
/// dimension (`moments`, if not null, is set to them), of each row (`moments` is not read), or
/// `fixed`, those in `moments`, (H,d) each and copied; an Error without them or with eps < 0.
Variable pre_sbn(const Variable& x, const Tensor& valid, SbnStatistics statistics, double eps,
                 SbnMoments* moments, const SbnRunning& running = {});
/// postSBN: s·(s² + eps²)^((beta-1)/2), s = gamma·x; gamma, beta (1) or (d), x (…, d).
Variable post_sbn(const Variable& x, const Variable& gamma, const Variable& beta,
                  double eps = 1e-6);

}  // namespace macgrad
