// `inspect attention`: how far each attention of a model is from a mean over its keys, and how much
// of that random features leave standing.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "macgrad/experiments/inspect/step_record.h"

namespace macgrad::experiments {

/// Means over the sentences of a step, the heads, and the queries that see two keys or more and
/// have weights.
struct AttentionSharpness {
  std::string attention;  // the module's path
  double logit_scale = 1.0;
  double logit_deviation = 0.0;  // of t = τ q·k/√d among the keys of a query, root mean square
  double keys = 0.0;             // that a query sees
  /// exp of the entropy of the exact weights, −Σ w log w: `keys` when all weigh the same, 1 when
  /// one has all the weight.
  double effective_keys = 0.0;
  double largest_weight = 0.0;
  /// Least exact Σ f(t) of a query, as a share of its keys times f(0); what a floor δ of (18) must
  /// lie below to leave the exact value alone. NaN where f(0) = 0, which has no floor.
  double least_denominator = 0.0;
  /// Of RMFA, else NaN. Over draws, the squared error of the estimated weights as a share of what
  /// attention says beyond a mean: Σ (ŵ − w)² / Σ (w − 1/keys)². Above 1, uniform weights would be
  /// closer.
  double weight_error = 0.0;
  /// Queries left out because Σ f(t) over their keys is not above 0, of kernels that take such
  /// values (a polynomial with odd powers, or f(0) = 0).
  int64_t without_weights = 0;
};

/// Every attention of a step recorded as composites, from its queries and keys. RMFA's weights are
/// estimated by `redraws` fresh draws (0: the draw of the step) with the model's floor under
/// denominators. Throws an Error where a kernel was given logits outside its radius.
std::vector<AttentionSharpness> attention_sharpness(ModelStep& model, const RecordedStep& step,
                                                    int64_t redraws);

/// argv[0] is "attention".
int attention_command(int argc, const char* const* argv);

}  // namespace macgrad::experiments
