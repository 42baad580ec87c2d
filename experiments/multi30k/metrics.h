// What a run writes of its epochs: metrics.csv, metrics.jsonl and the curves.
#pragma once

#include <string>
#include <vector>

#include "experiments/common/output_files.h"
#include "experiments/multi30k/training_state.h"

namespace macgrad::experiments {

/// Replaces metrics.csv and metrics.jsonl (one JSON object a line, the columns of the table).
void write_metrics(const RunDirectory& out, const std::vector<Metrics>& epochs);

/// loss and bleu as .svg, .png and .gp; what has no finite value is not drawn.
void draw_curves(const RunDirectory& out, const std::vector<Metrics>& epochs,
                 const std::string& title);

}  // namespace macgrad::experiments
