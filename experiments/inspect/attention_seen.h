// One head of one attention and one sentence, as a recorded step saw it: queries and keys before
// and after preSBN, logit scale, feature draw; and kernel matrices of such rows by that draw. What
// the page (attention_view.h) and `inspect attention` (attention_sharpness.h) are computed from.
// Shape letters: T queries, S keys, d head dimension, D features.
#pragma once

#include <string>
#include <vector>

#include "macgrad/experiments/inspect/step_record.h"
#include "macgrad/nn/maclaurin_draw.h"

namespace macgrad::experiments {

/// The random stream of draws that are made beside the model's own.
inline constexpr uint32_t kViewDraws = 3;

struct HeadRows {
  std::vector<double> values;  // (n, d)
  int64_t n = 0, d = 0;
};

struct SeenAttention {
  std::string name;
  int64_t head = 0;
  double scale = 1.0;  // τ
  bool causal = false;
  std::vector<std::string> query_tokens, key_tokens;
  nn::FeatureDraw draw;     // the model's own; without one what its settings would draw
  HeadRows q, k;            // as projected
  HeadRows unit_q, unit_k;  // through preSBN, `row` where the model has none
  bool normalises = false;  // the model has preSBN
};

/// Paths of the model's attentions.
std::vector<std::string> attention_paths(ModelStep& model);

/// f of the model's attention; exp for softmax, which it is the numerator of.
nn::DotProductKernel shown_kernel(const Multi30kSettings& settings);

/// From a step recorded as composites; `name` is one of attention_paths, `sentence` one of the
/// step.
SeenAttention see_attention(ModelStep& model, const RecordedStep& step, const std::string& name,
                            int64_t head, int64_t sentence);

/// A kernel matrix taken apart: entry (i, j) of `degrees[n]` is what the features of degree n add.
struct KernelEstimate {
  std::vector<double> total;                 // (T, S)
  std::vector<std::vector<double>> degrees;  // by degree
};

/// t = τ q·k/√d (T, S) of rows of this attention, NaN where a query does not see a key.
std::vector<double> logits_of(const SeenAttention& seen, const HeadRows& q, const HeadRows& k);

/// f(t) (T, S); NaN where t is, and outside the radius, where the series does not give f.
std::vector<double> kernel_values(const nn::DotProductKernel& kernel,
                                  const std::vector<double>& logits);

/// kernel_estimate with the logit scale of this attention, whatever the draw was made for: a
/// trained one moves on, and q makes up for it, as in training.
KernelEstimate kernel_estimate(const SeenAttention& seen, const nn::FeatureDraw& draw,
                               const HeadRows& q, const HeadRows& k);

/// Φ(q)Φ(k)ᵀ of a draw for rows q (T, d) and k (S, d), in float64.
KernelEstimate kernel_estimate(const nn::FeatureDraw& draw, int64_t head,
                               const std::vector<double>& q, const std::vector<double>& k);

}  // namespace macgrad::experiments
