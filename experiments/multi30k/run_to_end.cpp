#include "macgrad/experiments/multi30k/run_to_end.h"

#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "macgrad/experiments/common/output_files.h"
#include "macgrad/experiments/common/progress.h"
#include "macgrad/experiments/multi30k/checkpoint.h"
#include "macgrad/experiments/multi30k/resume.h"
#include "macgrad/experiments/multi30k/run.h"
#include "macgrad/experiments/multi30k/run_files.h"

namespace macgrad::experiments {
namespace fs = std::filesystem;

namespace {

// The settings that results depend on.
Json of_results(const Json& settings) {
  Json kept = Json::object();
  for (const auto& [name, value] : settings.items()) {
    const SettingRole role = setting_role(name);
    if (value.is_object()) {
      kept[name] = of_results(value);
    } else if (role != SettingRole::place && role != SettingRole::label) {
      kept[name] = value;
    }
  }
  return kept;
}

std::string results_path(const std::string& out) {
  return (fs::path(out) / "results.json").string();
}

}  // namespace

std::optional<Json> complete_results(const Multi30kSettings& settings) {
  // A run that begins anew removes the file, so that its presence means that it is of this one.
  const std::string path = results_path(settings.common.out);
  if (!fs::exists(path)) return std::nullopt;
  Json results = read_json(path);
  try {
    if (of_results(results.at("settings")) != of_results(to_json(settings))) return std::nullopt;
    for (const char* part : {"scores", "data", "updates", "wall_seconds"}) results.at(part);
  } catch (const nlohmann::json::exception& error) {
    throw Error("{}: not the results of a run: {}", path, error.what());
  }
  return results;
}

void check_same_data(const std::vector<std::pair<std::string, Json>>& runs) {
  const auto crc32 = [](const Json& results) { return results.at("data").value("crc32", Json()); };
  for (const auto& [name, results] : runs)
    require(crc32(results) == crc32(runs.front().second),
            "{} and {} were trained on other data (their results.json has other checksums) and "
            "cannot be compared; give the runs on this data another --out",
            runs.front().first, name);
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

void check_run_to_end(const Multi30kSettings& settings, const std::string& label) {
  if (complete_results(settings)) return;
  const std::string& out = settings.common.out;
  if (fs::exists(checkpoint_path(out))) {
    check_resume(settings);
  } else {
    require(!fs::exists(results_path(out)),
            "{}: {} is of a run with other settings, whose checkpoint is not there; choose another "
            "--out",
            label, results_path(out));
  }
}

int run_to_end(const Multi30kSettings& settings, const std::string& label) {
  if (complete_results(settings)) {
    say("{}: complete\n", label);
    return 0;
  }
  check_run_to_end(settings, label);
  const bool begun = fs::exists(checkpoint_path(settings.common.out));
  say("{}: {}\n", label, begun ? "resumed" : "started");
  std::fflush(stdout);
  Multi30kSettings own = settings;
  return run_multi30k(own, begun ? Start::resume : Start::fresh);
}

}  // namespace macgrad::experiments
