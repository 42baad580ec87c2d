// Several runs that differ in their seed alone, one after the other, and their mean.
#pragma once

#include <cstdint>
#include <vector>

#include "macgrad/experiments/multi30k/settings.h"

namespace macgrad::experiments {

/// Runs in OUT/seed-1 …, then writes OUT/summary.json and summary.csv: mean and standard deviation
/// (of a sample, n - 1) of every final score. A seed that is complete with the same settings is not
/// run again, one that has a checkpoint goes on from it, one whose loss is no longer finite is
/// listed in the summary as failed. Returns the exit code, 1 when every seed failed.
int run_seeds(const Multi30kSettings& settings, const std::vector<int64_t>& seeds);

}  // namespace macgrad::experiments
