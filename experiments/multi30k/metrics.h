// What a run writes of its epochs: metrics.csv and metrics.jsonl.
#pragma once

#include <string>
#include <vector>

#include "macgrad/experiments/common/output_files.h"
#include "macgrad/experiments/multi30k/training_state.h"

namespace macgrad::experiments {

/// Replaces metrics.csv and metrics.jsonl (one JSON object a line, the columns of the table).
void write_metrics(const RunDirectory& out, const std::vector<Metrics>& epochs);

}  // namespace macgrad::experiments
