// Measuring: for every (kernel, map, matrix or draw method, length, D) the NMSE of linear attention
// against exact attention over repeats with fresh data and a fresh draw each, the same for the two
// baselines, and times.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "macgrad/experiments/nmse/settings.h"
#include "macgrad/nn/attention_settings.h"

namespace macgrad::experiments {

/// Mean over repeats of a normalised error, as log10 with its standard error. NaN when unmeasured.
struct LogError {
  double log10 = 0;
  double se = 0;
};
LogError log_error(const std::vector<double>& errors);

/// One row of nmse.csv.
struct NmseRow {
  std::string kernel, map;
  std::string matrix, draws;  // "" where the map has none
  int64_t length = 0, features = 0;
  LogError approximate, mean, taylor1;          // outputs
  std::vector<LogError> approximate_gradients;  // dq, dk, dv; empty without --gradients
  std::vector<LogError> mean_gradients;
  std::vector<LogError> taylor1_gradients;
  double linear_ms = 0, draw_ms = 0;  // medians; linear_ms, of linear attention, without the draw
  double softmax_ms = 0;              // blockwise kernel
  double plain_ms = 0;                // n×n form; NaN when it would not fit
  int64_t unsafe_denominators = 0;    // denominators <= 0 over all repeats
  double smallest_ratio = 0;          // smallest denominator per key
  int64_t repeats = 0;

  /// log10 of softmax time over the time of linear attention, the draw included.
  double speedup() const;
  double speedup_plain() const;
};

/// A map with the matrix and the draw method it reads ("" for what it does not), and its D.
struct MapChoice {
  const nn::FeatureMapKind* map = nullptr;
  std::string matrix, draws;
  std::vector<int64_t> features;
};
std::vector<MapChoice> map_choices(const NmseSettings& settings);

/// Called after every measured cell: cells done and all. Returns false to stop early.
using CellProgress = std::function<bool(int64_t done, int64_t all, const std::string& what)>;

/// Measures the grid of `settings`, one length after the other; `on_length` receives the rows of a
/// finished length. Returns false when stopped.
bool measure(const NmseSettings& settings, const CellProgress& progress,
             const std::function<void(const std::vector<NmseRow>&)>& on_length,
             const std::function<void(const std::string&)>& note);

}  // namespace macgrad::experiments
