#include "experiments/multi30k/run_to_end.h"

#include <cstdio>
#include <filesystem>

#include "experiments/multi30k/checkpoint.h"
#include "experiments/multi30k/resume.h"
#include "experiments/multi30k/run.h"
#include "experiments/multi30k/run_files.h"

namespace macgrad::experiments {
namespace fs = std::filesystem;

namespace {

// Settings as results depend on them: where a run lies and what it keeps make no other run.
Json of_results(Json settings) {
  for (const char* name : {"data", "checkpoint_minutes", "keep"}) settings.erase(name);
  for (const char* name : {"out", "device", "threads"}) settings.at("common").erase(name);
  return settings;
}

// Training cannot be taken back.
void check_budget(const RunState& state, const Multi30kSettings& s, const std::string& label) {
  const auto check = [&](int64_t done, int64_t limit, const char* what, const char* option) {
    require(limit == 0 || done <= limit,
            "{}: the run in {} has come to {} {}, beyond {} {}; give {} or more, or another --out",
            label, s.common.out, what, done, option, limit, done);
  };
  check(state.place.updates, s.max_updates, "update", "--max-updates");
  check(state.place.epoch, s.epochs, "epoch", "--epochs");
}

}  // namespace

std::optional<Json> complete_results(const Multi30kSettings& settings) {
  const std::string& out = settings.common.out;
  const std::string path = (fs::path(out) / "results.json").string();
  if (!fs::exists(path) || !fs::exists(checkpoint_path(out))) return std::nullopt;
  Json results = read_json(path);
  try {
    if (of_results(results.at("settings")) != of_results(to_json(settings))) return std::nullopt;
  } catch (const nlohmann::json::exception& error) {
    throw Error("{}: not the results of a run: {}", path, error.what());
  }
  return results;
}

std::optional<std::string> failure_of(const Multi30kSettings& settings) {
  const std::string path = (fs::path(settings.common.out) / "settings.json").string();
  if (!fs::exists(path)) return std::nullopt;
  const Json json = read_json(path);
  try {
    if (!json.contains("failure") ||
        of_results(json.at("settings")) != of_results(to_json(settings)))
      return std::nullopt;
    return json.at("failure").get<std::string>();
  } catch (const nlohmann::json::exception& error) {
    throw Error("{}: not the settings of a run: {}", path, error.what());
  }
}

int run_to_end(const Multi30kSettings& settings, const std::string& label) {
  const std::string& out = settings.common.out;
  const std::string checkpoint = checkpoint_path(out);
  const bool begun = fs::exists(checkpoint);
  if (begun) {
    check_same_run(checkpoint_settings(checkpoint), settings, out);
    check_budget(checkpoint_state(checkpoint), settings, label);
    if (complete_results(settings)) {
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
