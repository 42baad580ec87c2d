// The training loop: a model, its optimizer and schedule, one epoch at a time. An update sums the
// losses of --accumulate batches and divides by all their tokens.
#pragma once

#include <functional>
#include <vector>

#include "macgrad/experiments/multi30k/data.h"
#include "macgrad/experiments/multi30k/recorded_steps.h"
#include "macgrad/experiments/multi30k/training_state.h"
#include "macgrad/nn/optimizer.h"
#include "macgrad/nn/schedule.h"

namespace macgrad::experiments {

/// The loss, or the gradients of many updates in a row, were not finite. The message names the
/// update and what to try.
class NotFinite : public Error {
 public:
  using Error::Error;
};

/// One update, as reported.
struct UpdateReport {
  int64_t update = 0;  // counted from 1 over all epochs
  double loss = 0;     // a token, with label smoothing
  double norm = 0;     // of the gradients, before clipping
  double lr = 0;
  int64_t tokens = 0;          // target tokens, <eos> counted
  bool skipped = false;        // gradients were not finite: nothing was changed
  int64_t replays = 0;         // updates so far that were replayed, not run (core/step_graph.h)
  int64_t large_draws = 0;     // updates so far that RecordedSteps::large_draws() counts
  DenominatorStatistics rmfa;  // of this update; nothing seen without RMFA
};

class Trainer {
 public:
  Trainer(const Multi30kSettings& settings, const TranslationData& data);

  /// One pass over the training pairs, or less: until `report` returns false or total_updates() is
  /// reached. Goes on with `epoch`, from 1, where it was left; another epoch than that under way
  /// is begun. Returns the sums of the whole epoch so far. Throws NotFinite; the parameters are
  /// then those of the update before.
  EpochSummary train_epoch(int64_t epoch, const std::function<bool(const UpdateReport&)>& report);

  /// Of the whole run: epochs x updates an epoch, at most --max-updates.
  int64_t total_updates() const { return total_updates_; }
  int64_t updates() const { return place_.updates; }
  bool finished() const { return place_.updates >= total_updates_; }
  /// Whether the epoch under way has no updates left.
  bool epoch_complete() const { return place_.done.updates >= epoch_updates_; }

  /// Of an update, counted from 1.
  double learning_rate(int64_t update) const { return schedule_(update); }

  const TrainingPlace& place() const { return place_; }
  /// Goes on from there; model and optimizer must hold what they held then.
  void restore(const TrainingPlace& place) { place_ = place; }

  nn::Transformer& model() { return model_; }
  nn::Adam& optimizer() { return optimizer_; }
  /// Why updates of some shapes are not replayed; empty when all can be, or none should.
  std::vector<std::string> refused_replays() const;

 private:
  // One update from the batches [first, last); fills the report, which holds the update's number.
  void update(const std::vector<Batch>& batches, size_t first, size_t last, int64_t epoch,
              UpdateReport& report);

  const Multi30kSettings& settings_;
  const TranslationData& data_;
  nn::Transformer model_;
  nn::Adam optimizer_;
  int64_t epoch_updates_;
  int64_t total_updates_;
  nn::Schedule schedule_;
  std::optional<RecordedSteps> recorded_;
  int64_t replays_ = 0;
  TrainingPlace place_;
};

}  // namespace macgrad::experiments
