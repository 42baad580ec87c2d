// The training loop: a model, its optimizer and schedule, one epoch at a time. An update sums the
// losses of --accumulate batches and divides by all their tokens.
#pragma once

#include <functional>
#include <vector>

#include "macgrad/experiments/multi30k/data.h"
#include "macgrad/experiments/multi30k/training_state.h"
#include "macgrad/nn/training_step.h"

namespace macgrad::experiments {

/// The loss, or the gradients of many updates in a row, were not finite. The message names the
/// update and what to try.
class NotFinite : public Error {
 public:
  using Error::Error;
};

class Trainer {
 public:
  Trainer(const Multi30kSettings& settings, const TranslationData& data);

  /// One pass over the training pairs, or less: until `report` returns false or total_updates() is
  /// reached. Goes on with `epoch`, from 1, where it was left; another epoch than that under way
  /// is begun. Returns the sums of the whole epoch so far. Throws NotFinite; the parameters are
  /// then those of the update before.
  EpochSummary train_epoch(int64_t epoch, const std::function<bool(const nn::StepReport&)>& report);

  /// Of the whole run: epochs x updates an epoch, at most --max-updates.
  int64_t total_updates() const { return total_updates_; }
  int64_t updates() const { return place_.updates; }
  bool finished() const { return place_.updates >= total_updates_; }
  /// Whether the epoch under way has no updates left.
  bool epoch_complete() const { return place_.done.updates >= epoch_updates_; }

  /// Of an update, counted from 1.
  double learning_rate(int64_t update) const { return step_.options().lr(update); }

  const TrainingPlace& place() const { return place_; }
  /// Goes on from there; model and optimizer must hold what they held then.
  void restore(const TrainingPlace& place) {
    place_ = place;
    step_.resume(place.updates);
  }

  nn::Transformer& model() { return model_; }
  nn::Adam& optimizer() { return optimizer_; }
  nn::TrainingStep<BatchTensors>& step() { return step_; }

  /// Summed loss of a batch, with label smoothing.
  Variable loss(const BatchTensors& batch);

 private:
  // As an update reads it: where steps are replayed, of a shape that recurs.
  BatchTensors tensors(const Batch& batch) const;

  const Multi30kSettings& settings_;
  const TranslationData& data_;
  nn::Transformer model_;
  nn::Adam optimizer_;
  int64_t epoch_updates_;
  int64_t total_updates_;
  nn::TrainingStep<BatchTensors> step_;
  TrainingPlace place_;
};

}  // namespace macgrad::experiments
