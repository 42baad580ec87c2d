// Settings are compared as JSON, name by name; the name of an option is that of its setting.
#include "experiments/multi30k/resume.h"

#include <algorithm>

namespace macgrad::experiments {
namespace {

std::string option_of(std::string name) {
  std::replace(name.begin(), name.end(), '_', '-');
  return "--" + name;
}

// "--lr 0.1 (the run has 0.001)" for each setting that differs and may not.
void compare(const Json& saved, const Json& asked, std::vector<std::string>& contradictions) {
  const std::vector<std::string>& changeable = changeable_options();
  for (const auto& [name, value] : asked.items()) {
    if (value.is_object()) {
      compare(saved.at(name), value, contradictions);
      continue;
    }
    const std::string option = option_of(name);
    if (value == saved.at(name) || option == "--out" ||
        std::find(changeable.begin(), changeable.end(), option) != changeable.end())
      continue;
    contradictions.push_back(
        fmt::format("{} {} (the run has {})", option, value.dump(), saved.at(name).dump()));
  }
}

}  // namespace

const std::vector<std::string>& changeable_options() {
  static const std::vector<std::string> options{
      "--epochs", "--max-updates", "--patience",           "--average",
      "--keep",   "--threads",     "--checkpoint-minutes", "--data",
      "--test",   "--beam",        "--length-penalty",     "--graph",
      "--device"};
  return options;
}

void check_same_run(const Multi30kSettings& saved, const Multi30kSettings& asked,
                    const std::string& folder) {
  std::vector<std::string> contradictions;
  compare(to_json(saved), to_json(asked), contradictions);
  require(contradictions.empty(),
          "--resume {}: other settings than the run was started with: {}; leave them out, or start "
          "a new run. What may change: {}",
          folder, fmt::join(contradictions, ", "), fmt::join(changeable_options(), ", "));
  require(asked.schedule != "one-cycle" ||
              (saved.epochs == asked.epochs && saved.max_updates == asked.max_updates),
          "--resume {}: --schedule one-cycle ends with the run's last update; --epochs and "
          "--max-updates must stay {} and {}",
          folder, saved.epochs, saved.max_updates);
}

}  // namespace macgrad::experiments
