#include "experiments/multi30k/run_to_end.h"

#include <cstdio>
#include <filesystem>

#include "experiments/multi30k/checkpoint.h"
#include "experiments/multi30k/resume.h"
#include "experiments/multi30k/run.h"

namespace macgrad::experiments {
namespace fs = std::filesystem;

std::string results_path(const std::string& out) {
  return (fs::path(out) / "results.json").string();
}

int run_to_end(const Multi30kSettings& settings, const std::string& label) {
  const std::string& out = settings.common.out;
  const std::string checkpoint = checkpoint_path(out), results = results_path(out);
  const bool begun = fs::exists(checkpoint);
  if (begun) check_same_run(checkpoint_settings(checkpoint), settings, out);
  if (begun && fs::exists(results)) {
    Json wanted = to_json(settings), had = read_json(results).at("settings");
    // Resolved by the run: 0 means the CPUs at hand.
    had["common"]["threads"] = wanted["common"]["threads"];
    if (had == wanted) {
      fmt::print("{}: complete\n", label);
      return 0;
    }
  }
  fmt::print("{}: {}\n", label, begun ? "resumed" : "started");
  std::fflush(stdout);
  Multi30kSettings own = settings;
  return run_multi30k(own, begun ? Start::resume : Start::fresh);
}

}  // namespace macgrad::experiments
