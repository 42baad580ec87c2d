// What attention a model uses, as one value that programs fill from their options.
#pragma once

#include <cstdint>
#include <string>

#include "macgrad/nn/feature_map.h"

namespace macgrad::nn {

enum class AttentionKind { softmax, exact, rmfa };
/// "softmax", "exact", "rmfa"; an Error lists them.
AttentionKind parse_attention(const std::string& name);

/// Statistics of preSBN: over batch and positions, or a row's own. `automatic` is batch in
/// self-attention without a causal mask and row elsewhere, where batch statistics would let a
/// position see later ones.
enum class PreSbnMode { automatic, batch, row };
/// "auto", "batch", "row"; an Error lists them.
PreSbnMode parse_pre_sbn(const std::string& name);

/// Where an attention stands in a model.
enum class AttentionRole { self, causal_self, cross };

inline constexpr double kDenominatorFloor = 1e-3;
/// δ of equation (18), by which RMFA's denominators are floored at δ·(visible keys)·f(0): "floor"
/// (δ = 1e-3), "floor:DELTA" with 0 < DELTA, or "none" (0: as they come); an Error lists them.
double parse_denominator_floor(const std::string& text);

/// The automatic logit scale: 1, and √(2d) where ppSBN or qk_norm give queries and keys unit norm
/// (8 for 32 dimensions per head), at most half of the kernel's radius. Logits then reach ±√2; with
/// a scale of 1 they stay within ±1/√d, and attention is close to a mean.
inline constexpr double kAutomaticScale = 0.0;

struct AttentionSettings {
  AttentionKind kind = AttentionKind::softmax;
  DotProductKernel kernel = dot_product_kernel("exp");  // exact and rmfa

  // Logits are logit_scale·q·k/√d.
  double logit_scale = kAutomaticScale;
  bool train_logit_scale = false;

  // rmfa
  DrawMethod draws = DrawMethod::optimal;
  int64_t features = 128;
  double p = 2.0;
  bool draws_per_head = false;
  RedrawPolicy redraw;
  int eval_draws = 1;
  double floor = kDenominatorFloor;  // δ of equation (18); 0: denominators as they come

  // ppSBN
  bool ppsbn = false;
  PreSbnMode pre_sbn = PreSbnMode::row;
  double sbn_eps = 1e-13;
  bool post_sbn_per_dim = false;  // γ and β a head dimension; else two scalars
  bool qk_norm = false;           // rows of q and k to unit norm, without ppSBN
  bool unit_rows_given = false;   // the caller hands over rows of unit norm (inner cores)

  double dropout = 0.0;  // on the weights of softmax attention
};

/// The form of the paper (Macformer): RMFA with kernel exp, 128 independent draws per step, τ = 1
/// and ppSBN with batch statistics and ε = 1e-13. The defaults train better: experiments/multi30k.
AttentionSettings paper_attention();

/// settings.logit_scale, with kAutomaticScale replaced by what it stands for.
double resolved_logit_scale(const AttentionSettings& settings, int64_t head_dim);

}  // namespace macgrad::nn
