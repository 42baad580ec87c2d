// `inspect statistics`: what preSBN's running statistics cost in evaluation. Training normalises
// queries and keys by the statistics of their batch, evaluation by a running mean over batches;
// where batches hold sentences of like length, no batch has those.
#pragma once

#include <string>
#include <vector>

#include "macgrad/experiments/inspect/model_step.h"

namespace macgrad::experiments {

/// Cross entropy a target token (nats) of one validation batch.
struct StatisticsCost {
  int64_t sentences = 0;
  int64_t longest = 0;  // tokens of the longest source
  int64_t tokens = 0;   // target tokens
  double running = 0;   // preSBN with running statistics: evaluation as it is
  double own = 0;       // with the batch's own
};

/// Of every validation batch, by length. Throws an Error when no preSBN of the model has batch
/// statistics.
std::vector<StatisticsCost> statistics_cost(ModelStep& model);

/// argv[0] is "statistics".
int statistics_command(int argc, const char* const* argv);

}  // namespace macgrad::experiments
