// What attention a model uses, as one value: the kind of attention, and for linear attention its
// feature map and projection matrix. Kinds, maps and matrices are rows of tables
// (nn/attention_kinds.cpp, nn/feature_maps.cpp, nn/projection_matrices.cpp); a program outside the
// library can fill in rows that are in no table.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "macgrad/nn/allocation.h"
#include "macgrad/nn/feature_map.h"
#include "macgrad/nn/pair_kernel.h"
#include "macgrad/nn/projection_matrices.h"

namespace macgrad::nn {

class AttentionCore;
struct AttentionSettings;

/// Where an attention stands in a model.
enum class AttentionRole { self, causal_self, cross };

struct AttentionSite {
  AttentionRole role = AttentionRole::self;
  int64_t heads = 1;
  int64_t head_dim = 64;
  ModelRandom* random = nullptr;
};

/// A kind of attention. `reads` names the settings that have an effect, spelled as options of the
/// programs without dashes; they derive from it which options to reject.
struct AttentionKind {
  std::string name;
  std::string formula;
  std::vector<std::string> reads;
  bool uses_map = false;  // the settings that settings.map reads have an effect, too
  std::function<std::unique_ptr<AttentionCore>(Module* parent, const std::string& name,
                                               const AttentionSettings&, const AttentionSite&)>
      make;
};

/// softmax, exact, linear, rmfa (linear attention with the map maclaurin) and mean.
const std::vector<AttentionKind>& attention_kinds();
/// Throws an Error that lists the names.
const AttentionKind& attention_kind(const std::string& name);

/// A feature map of the table.
struct FeatureMapKind {
  std::string name;
  std::string formula;
  std::vector<std::string> reads;  // as in AttentionKind
  int64_t columns_per_row = 0;  // columns of φ per row of Ω; 0: Ω has a form of its own, or none
  std::string matrix;           // Ω unless the settings give another; "": the map has none
  /// Whether the map can estimate this kernel; absent: it estimates none.
  std::function<bool(const PairKernel&)> estimates;
  std::function<std::unique_ptr<FeatureMap>(Module* parent, const std::string& name,
                                            const AttentionSettings&, const AttentionSite&,
                                            const LogitScale*)>
      make;
};

/// maclaurin, positive, trig and elu.
const std::vector<FeatureMapKind>& feature_maps();
/// Throws an Error that lists the names.
const FeatureMapKind& feature_map(const std::string& name);
/// Throws an Error when the map cannot estimate the kernel, has no use for the matrix or cannot
/// have that number of features, or when the floor of denominators is negative.
void check_feature_map(const AttentionSettings& settings);
/// The map that the settings describe, checked.
std::unique_ptr<FeatureMap> make_feature_map(Module* parent, const std::string& name,
                                             const AttentionSettings& settings,
                                             const AttentionSite& site, const LogitScale* scale);

/// Statistics of preSBN: over batch and positions, or a row's own. `automatic` is batch in
/// self-attention without a causal mask and row elsewhere, where batch statistics would let a
/// position see later ones.
enum class PreSbnMode { automatic, batch, row };
/// "auto", "batch", "row"; an Error lists them.
PreSbnMode parse_pre_sbn(const std::string& name);

inline constexpr double kDenominatorFloor = 1e-3;
/// δ of equation (18), by which denominators of signed features are floored at δ·(visible
/// keys)·f(0): "floor" (δ = 1e-3), "floor:DELTA" with 0 < DELTA, or "none" (0: not floored); an
/// Error lists them.
double parse_denominator_floor(const std::string& text);

/// The automatic logit scale: 1, and √(2d) where ppSBN or qk_norm give queries and keys unit norm
/// (8 for 32 dimensions per head), at most half of the kernel's radius. Logits then reach ±√2; with
/// a scale of 1 they stay within ±1/√d, and attention is close to a mean.
inline constexpr double kAutomaticScale = 0.0;

struct AttentionSettings {
  AttentionKind kind = attention_kind("softmax");
  PairKernel kernel = dot_product_kernel("exp");

  // Logits are logit_scale·q·k/√d.
  double logit_scale = kAutomaticScale;
  bool train_logit_scale = false;

  // Linear attention.
  FeatureMapKind map = feature_map("maclaurin");
  std::optional<ProjectionMatrix> matrix;  // absent: the map's
  int64_t features = 128;                  // D, columns of φ
  bool draws_per_head = false;
  RedrawPolicy redraw;
  int eval_draws = 1;
  double denominator = kDenominatorFloor;  // δ of equation (18); 0: not floored

  // The map maclaurin.
  DrawMethod draws = DrawMethod::optimal;
  double p = 2.0;

  // ppSBN
  bool ppsbn = false;
  PreSbnMode pre_sbn = PreSbnMode::row;
  double sbn_eps = 1e-13;
  bool post_sbn_per_dim = false;  // γ and β per head dimension; else two scalars
  bool qk_norm = false;           // rows of q and k to unit norm, without ppSBN
  bool unit_rows_given = false;   // the caller hands over rows of unit norm (inner cores)

  double dropout = 0.0;  // on the weights of softmax attention

  /// Whether the setting of that name has an effect with this kind and map.
  bool reads(const std::string& setting) const;
};

/// The form of the paper (Macformer): RMFA with kernel exp, 128 independent draws per step, τ = 1
/// and ppSBN with batch statistics and ε = 1e-13. The defaults train better: experiments/multi30k.
AttentionSettings paper_attention();

/// settings.logit_scale, with kAutomaticScale replaced by what it stands for.
double resolved_logit_scale(const AttentionSettings& settings, int64_t head_dim);

}  // namespace macgrad::nn
