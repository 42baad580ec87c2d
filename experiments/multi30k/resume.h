// Resuming a run: its settings come from its checkpoint, and options given with --resume may change
// only what leaves the training done so far true.
#pragma once

#include <string>

#include "macgrad/experiments/multi30k/settings.h"

namespace macgrad::experiments {

/// Throws an Error naming every option whose value in `asked` contradicts `saved`, the settings of
/// the run in `folder`.
void check_same_run(const Multi30kSettings& saved, const Multi30kSettings& asked,
                    const std::string& folder);

/// Whether the run in asked.common.out can go on with these settings, by its checkpoint: as
/// check_same_run, and an Error when it has made more updates or epochs than --max-updates or
/// --epochs allow, because training cannot be taken back, or has not kept the epochs that --average
/// needs.
void check_resume(const Multi30kSettings& asked);

}  // namespace macgrad::experiments
