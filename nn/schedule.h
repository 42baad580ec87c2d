// Learning-rate schedules: plain functions of the step, counted from 1.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

namespace macgrad::nn {

using Schedule = std::function<double(int64_t step)>;

/// `peak` from `warmup` steps on, linear from 0 before.
Schedule constant_schedule(double peak, int64_t warmup = 0);
/// Linear to `peak` at `warmup`, then peak·√(warmup/step) (Vaswani et al. 2017, section 5.3).
Schedule inverse_sqrt_schedule(double peak, int64_t warmup);
/// Linear from 0 to `peak` at `warmup`, then linear to 0 at `total`.
Schedule one_cycle_schedule(double peak, int64_t warmup, int64_t total);
/// By name: "constant", "inverse-sqrt", "one-cycle"; an Error lists them.
Schedule parse_schedule(const std::string& name, double peak, int64_t warmup, int64_t total);

}  // namespace macgrad::nn
