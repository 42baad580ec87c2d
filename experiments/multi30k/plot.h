// `multi30k plot`: the curves of runs from their metrics.csv and settings.json (or results.json),
// as the three panels of Macformer's Figure 3: loss, perplexity and BLEU over epochs. Runs that
// differ in their seed alone become one curve with a band.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "macgrad/experiments/common/csv.h"
#include "macgrad/experiments/common/plots.h"

namespace macgrad::experiments {

struct PlottedRun {
  std::string folder;
  CsvTable metrics;
  std::string title;  // of its data: "Multi30K de-en (tok)", "" when it is not recorded
  /// Settings that make curves differ (SettingRole), by name, as JSON; those that the run's
  /// attention does not read are left out. "training text": its checksums.
  std::map<std::string, std::string> settings;
};

/// A folder that holds metrics.csv, or the folders one and two levels down that do (all of those,
/// sorted by name: runs/softmax, runs/quick/seed-1). Throws naming the folder, or the file and line
/// that is damaged.
std::vector<PlottedRun> read_runs(const std::string& folder);

/// Runs of equal settings.
struct Configuration {
  std::string name;  // "rmfa + ppSBN, features 64 (3 runs)": attention, and what differs
  std::vector<const PlottedRun*> runs;
};

/// In the order of their first runs. `runs` must outlive the result.
std::vector<Configuration> group_runs(const std::vector<PlottedRun>& runs);

enum class Band { range, deviation };  // lowest to highest; mean ± standard deviation

/// Mean over a configuration's runs of a column by epoch, at epochs that all of them measured; with
/// a band when there are several. Without points when a run lacks the column.
Curve mean_curve(const Configuration& configuration, const std::string& column, Band band);

/// Reads the runs in `folders` (as read_runs, each run once) and writes their panels to
/// `base`.svg, .png and .gp; throws as training_panels does.
struct DrawnRuns {
  std::vector<std::pair<std::string, std::vector<std::string>>> configurations;  // name, folders
  bool drawn = false;  // false: gnuplot is missing or failed, as said on stderr
};
DrawnRuns draw_runs(const std::vector<std::string>& folders, Band band, const std::string& base);

/// Panels without a single value are left out; throws when all are.
Panels training_panels(const std::vector<Configuration>& configurations, Band band);

}  // namespace macgrad::experiments
