// Conventions of the linear_attention kernels that both backends share, so that they shift,
// recompute and count the same rows. Reasons: core/cpu/linear_attention_problem.h.
#pragma once

#include <cmath>
#include <limits>

#include "macgrad/core/host_device.h"

namespace macgrad::linear {

/// 2^-60: products of factors of at most 1 that matter to a larger sum are normal float32 numbers.
/// Rows of log-features with a smaller shifted denominator are summed again in log space.
inline constexpr double kSmallest = 0x1p-60;

/// The third of the numbers that the forward kernel leaves of a query: it has no denominator, one,
/// a floored one, or one that was summed again in log space.
inline constexpr double kNone = 0.0, kUsed = 1.0, kFloored = 2.0, kRecomputed = 3.0;

/// Below every log-feature: c of a feature that no key has. Finite, so that differences are
/// numbers.
inline constexpr double kLowest = -1e30;

/// exp(before - after), and 0 where there was nothing before.
MACGRAD_HD inline double growth(double before, double after) {
  return before == -std::numeric_limits<double>::infinity() ? 0.0 : std::exp(before - after);
}

}  // namespace macgrad::linear
