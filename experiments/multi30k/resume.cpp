// Settings are compared as JSON, name by name; the name of an option is that of its setting.
#include "macgrad/experiments/multi30k/resume.h"

#include <fmt/ranges.h>

#include <nlohmann/json.hpp>

#include "macgrad/experiments/multi30k/checkpoint.h"
#include "macgrad/experiments/multi30k/run_files.h"

namespace macgrad::experiments {
namespace {

// "--lr 0.1 (the run has 0.001)" for each setting that differs and may not.
void compare(const Json& saved, const Json& asked, std::vector<std::string>& contradictions) {
  for (const auto& [name, value] : asked.items()) {
    if (value.is_object()) {
      compare(saved.at(name), value, contradictions);
      continue;
    }
    if (value == saved.at(name) || may_change(setting_role(name))) continue;
    contradictions.push_back(fmt::format("{} {} (the run has {})", option_of(name), value.dump(),
                                         saved.at(name).dump()));
  }
}

}  // namespace

void check_same_run(const Multi30kSettings& saved, const Multi30kSettings& asked,
                    const std::string& folder) {
  std::vector<std::string> contradictions;
  compare(to_json(saved), to_json(asked), contradictions);
  require(contradictions.empty(),
          "{}: other settings than the run there was started with: {}; leave them out, or start a "
          "new run in another folder. What may change: {}",
          folder, fmt::join(contradictions, ", "), fmt::join(changeable_options(), ", "));
  require(asked.schedule != "one-cycle" ||
              (saved.epochs == asked.epochs && saved.max_updates == asked.max_updates),
          "{}: --schedule one-cycle ends with the run's last update; --epochs and "
          "--max-updates must stay {} and {}",
          folder, saved.epochs, saved.max_updates);
}

void check_resume(const Multi30kSettings& asked) {
  const std::string& out = asked.common.out;
  const std::string checkpoint = checkpoint_path(out);
  check_same_run(checkpoint_settings(checkpoint), asked, out);
  const TrainingPlace place = checkpoint_state(checkpoint).place;
  const auto check = [&](int64_t done, int64_t limit, const char* what, const char* option) {
    require(limit == 0 || done <= limit,
            "the run in {} has come to {} {}, beyond {} {}; give {} or more, or another --out", out,
            what, done, option, limit, done);
  };
  check(place.updates, asked.max_updates, "update", "--max-updates");
  check(place.epoch, asked.epochs, "epoch", "--epochs");
  check_average(asked);
}

}  // namespace macgrad::experiments
