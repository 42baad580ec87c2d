// Presets: named sets of defaults for --preset. Options given beside one win over it.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace macgrad::experiments {

struct Multi30kSettings;

/// "none" first.
std::vector<std::string> preset_names();

/// Puts the preset's values, and its name, in place of the defaults. An Error lists the names.
void apply_preset(Multi30kSettings& settings, std::string_view name);

}  // namespace macgrad::experiments
