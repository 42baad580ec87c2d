// A run that is one of several: started, continued or left alone, whichever it needs.
#pragma once

#include <string>

#include "experiments/multi30k/settings.h"

namespace macgrad::experiments {

/// Nothing when the run in settings.common.out is complete with these settings; else goes on from
/// its checkpoint, or starts it. `label` begins the line that says which. Returns the exit code of
/// run_multi30k. Throws as check_same_run does when the folder holds another run.
int run_to_end(const Multi30kSettings& settings, const std::string& label);

/// The file that a complete run in folder `out` leaves.
std::string results_path(const std::string& out);

}  // namespace macgrad::experiments
