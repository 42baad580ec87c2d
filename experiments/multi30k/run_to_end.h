// A run that is one of several: started, continued or left alone, whichever it needs.
#pragma once

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "macgrad/experiments/multi30k/settings.h"

namespace macgrad::experiments {

/// Nothing when the run in settings.common.out is complete with these settings; else goes on from
/// its checkpoint, or starts it. `label` begins the line that says which. Returns the exit code of
/// run_multi30k. Throws as check_resume does when the folder holds a run that cannot go on with
/// these settings.
int run_to_end(const Multi30kSettings& settings, const std::string& label);

/// Throws what run_to_end would throw before it trains: for several runs, before the first one
/// takes its hours.
void check_run_to_end(const Multi30kSettings& settings, const std::string& label);

/// results.json of the run in settings.common.out if it is complete with these settings, but for
/// those that results do not depend on (SettingRole::place).
std::optional<Json> complete_results(const Multi30kSettings& settings);

/// Throws naming two of these runs (name, results.json) that were trained on other data.
void check_same_data(const std::vector<std::pair<std::string, Json>>& runs);

/// Why the run there, with these settings, stopped for good (NotFinite), if it did.
std::optional<std::string> failure_of(const Multi30kSettings& settings);

}  // namespace macgrad::experiments
