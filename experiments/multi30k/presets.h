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

/// Whether --toy is in argv.
bool asks_for_toy(int argc, const char* const* argv);

/// The defaults that --preset and --toy in argv ask for. Taken before the options are declared, so
/// that --help shows the defaults in force and options given beside them win over them; a wrong
/// name is left to the option's own check.
void start_from_preset(Multi30kSettings& settings, int argc, const char* const* argv);

}  // namespace macgrad::experiments
