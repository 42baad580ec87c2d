// Updates that are recorded once per batch shape and replayed (core/step_graph.h). The first update
// of a shape runs eagerly, the second is recorded, and it is replayed from then on.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <vector>

#include "macgrad/core/step_graph.h"
#include "macgrad/experiments/multi30k/evaluation.h"
#include "macgrad/experiments/multi30k/settings.h"
#include "macgrad/nn/optimizer.h"

namespace macgrad::experiments {

class RecordedSteps {
 public:
  RecordedSteps(nn::Transformer& model, nn::Adam& optimizer, const Multi30kSettings& settings);

  struct Outcome {
    double loss = 0;  // summed over the batch
    double norm = 0;  // of the gradients of the loss a token, before clipping
    DenominatorStatistics rmfa;
  };
  /// The whole update, replayed; nothing when this batch has to be run eagerly: the shape is new,
  /// a feature draw is larger than its place in memory or that place has moved, a tool watches the
  /// kernels, a module has forward hooks, or the step cannot be recorded. The model's begin_step
  /// has been called for `update` and `epoch`.
  std::optional<Outcome> run(const BatchTensors& batch, int64_t update, int64_t epoch, double lr);

  /// Why shapes could not be recorded, once a reason; empty when all could.
  const std::vector<std::string>& refusals() const { return refusals_; }
  /// Updates that would have been replayed but for a draw larger than its place in memory.
  int64_t large_draws() const { return large_draws_; }

 private:
  struct Entry {
    int64_t seen = 0;
    bool refused = false;
    BatchTensors batch;  // what the recorded step reads
    Tensor loss;
    Tensors statistics;
    std::vector<int64_t> draws;  // of the eager runs and of what was recorded
    std::unique_ptr<StepGraph> graph;
  };
  void record(Entry& entry, const BatchTensors& batch);
  void refuse(Entry& entry, const std::string& reason);
  void tell(const std::string& reason);

  nn::Transformer& model_;
  nn::Adam& optimizer_;
  const Multi30kSettings& settings_;
  std::map<std::vector<int64_t>, Entry> entries_;  // by rows, source width, target width
  std::vector<std::string> refusals_;
  int64_t large_draws_ = 0;
};

/// Rows and widths of a batch rounded up to `multiple`; what is added is padding.
Batch rounded_up(const Batch& batch, int64_t multiple);

}  // namespace macgrad::experiments
