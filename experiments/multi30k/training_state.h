// All that a run knows beside tensors: where training stands and what came out so far. It is part
// of every checkpoint, so that a run goes on as if it had never stopped. Random streams and the
// order of the data need no place here: both are functions of (seed, epoch, update).
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "macgrad/autograd/attention.h"
#include "macgrad/experiments/common/json_fwd.h"

namespace macgrad::experiments {

/// Sums over the updates of one epoch; all of them, or those before a stop.
struct EpochSummary {
  int64_t updates = 0;
  int64_t tokens = 0;    // target tokens
  double loss_sum = 0;   // over tokens, with label smoothing
  double seconds = 0;    // of the updates
  bool stopped = false;  // by the callback
  DenominatorStatistics denominators = {};

  /// Mean a token.
  double loss() const { return loss_sum / static_cast<double>(tokens > 0 ? tokens : 1); }
};

/// Where training stands.
struct TrainingPlace {
  int64_t epoch = 1;    // the one under way, counted from 1
  int64_t updates = 0;  // made so far, over all epochs, skipped ones included
  EpochSummary done;    // of the epoch under way
  int64_t skipped = 0;
  int64_t skipped_in_a_row = 0;
};

/// A row of metrics.csv; what was not measured is NaN.
struct Metrics {
  int64_t epoch = 0;
  double train_loss = NAN, valid_loss = NAN, bleu = NAN;
  double seconds = 0;  // of the training updates
  int64_t tokens = 0;
  int64_t updates = 0;  // made when the epoch ended

  double perplexity() const { return std::exp(valid_loss); }
  double tokens_per_second() const {
    return seconds > 0 ? static_cast<double>(tokens) / seconds : 0.0;
  }
};

/// From an update on: which program and machine trained.
struct Sitting {
  int64_t from_update = 0;
  std::string commit, machine, device;
  int64_t threads = 0;
};

struct RunState {
  TrainingPlace place;
  std::vector<Metrics> epochs;  // that have been validated
  int64_t best_epoch = 0;       // of the lowest validation loss; 0: none yet
  double best_loss = std::numeric_limits<double>::infinity();
  double wall_seconds = 0;  // of the run, in all its sittings
  std::vector<Sitting> sittings;

  /// Adds a row; true when its validation loss is the lowest so far.
  bool add(const Metrics& epoch);
  int64_t epochs_without_improvement() const;
};

Json to_json(const std::vector<Sitting>& sittings);
Json to_json(const RunState& state);
/// What to_json wrote, bit for bit; throws nlohmann's exceptions, and an Error for numbers that no
/// run comes to.
RunState run_state_from_json(const Json& json);

}  // namespace macgrad::experiments
