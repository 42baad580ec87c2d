// Learning-rate schedules: plain functions of the step, counted from 1.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

namespace macgrad::nn {

using Schedule = std::function<double(int64_t step)>;

// Each rises linearly from `from` at step 0 to `peak` at step `warmup`.

/// `peak` from then on.
Schedule constant_schedule(double peak, int64_t warmup = 0, double from = 0.0);
/// Then peak·√(warmup/step) (Vaswani et al. 2017, section 5.3).
Schedule inverse_sqrt_schedule(double peak, int64_t warmup, double from = 0.0);
/// Then linear to 0 at `total`.
Schedule one_cycle_schedule(double peak, int64_t warmup, int64_t total, double from = 0.0);
/// By name: "constant", "inverse-sqrt", "one-cycle"; an Error lists them.
Schedule parse_schedule(const std::string& name, double peak, int64_t warmup, int64_t total,
                        double from = 0.0);

}  // namespace macgrad::nn
