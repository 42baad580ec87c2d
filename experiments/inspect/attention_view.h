// What is inside kernelized attention, for one head and one sentence of a recorded step: the kernel
// matrix and its estimate by random Maclaurin features, the attention weights of both, and where
// the error comes from, degree by degree (nn/README.md, sections 1 to 4). Shape letters: T queries,
// S keys, d head dimension, D features.
#pragma once

#include <string>
#include <vector>

#include "macgrad/experiments/inspect/step_record.h"

namespace macgrad::experiments {

struct AttentionViewSettings {
  std::string attention = "all";  // a module's path, or all of them
  int64_t head = 0;
  int64_t sentence = 0;
  int64_t redraws = 100;  // draws beside the model's own
};

/// "attentions" of the page (page/README.md), from the queries and keys of a step recorded as
/// composites. Models with softmax attention are shown with the kernel exp, and with features drawn
/// by their settings: what RMFA would make of the same queries and keys. Each is shown with ppSBN
/// and without; rows of unit norm by `row` statistics stand in for what the model does not have.
/// Throws an Error that lists the attentions when the one asked for is not there.
Json attention_views(ModelStep& model, const RecordedStep& step,
                     const AttentionViewSettings& settings);

/// Throws, before any step is run, what attention_views would throw of its settings.
void check_view(ModelStep& model, const AttentionViewSettings& settings);

}  // namespace macgrad::experiments
