// Schedules of learning rate and momentum.
#include "macgrad/nn/schedule.h"

#include <algorithm>
#include <cmath>

#include "macgrad/core/error.h"

namespace macgrad::nn {

namespace {

double ratio(int64_t a, int64_t b) {
  return static_cast<double>(a) / static_cast<double>(b);
}

double rising(double from, double peak, int64_t step, int64_t warmup) {
  return from + (peak - from) * ratio(step, warmup);
}

}  // namespace

Schedule constant_schedule(double peak, int64_t warmup, double from) {
  return [=](int64_t step) { return step < warmup ? rising(from, peak, step, warmup) : peak; };
}

Schedule inverse_sqrt_schedule(double peak, int64_t warmup, double from) {
  const int64_t w = std::max<int64_t>(warmup, 1);
  return [=](int64_t step) {
    return step < w ? rising(from, peak, step, w) : peak * std::sqrt(ratio(w, step));
  };
}

Schedule one_cycle_schedule(double peak, int64_t warmup, int64_t total, double from) {
  require(warmup >= 0 && warmup < total,
          "[one_cycle_schedule] warm-up of {} steps in {} steps; it must be shorter", warmup,
          total);
  return [=](int64_t step) {
    if (step < warmup) return rising(from, peak, step, warmup);
    return peak * std::max(0.0, ratio(total - step, total - warmup));
  };
}

OneCycle one_cycle(double peak, int64_t total, const OneCycleSettings& s) {
  const auto last = static_cast<double>(total - 1);
  const double turn = s.warmup * static_cast<double>(total) - 1.0;
  require(
      turn > 0.0 && turn < last,
      "[one_cycle] a warm-up of {} of {} updates; it must be longer than one update and shorter "
      "than the run",
      s.warmup, total);
  const auto curve = [=](double start, double top, double end) -> Schedule {
    return [=](int64_t step) {
      const double at = std::min(static_cast<double>(step - 1), last);
      if (at <= turn) return start + (top - start) * (at / turn);
      return top + (end - top) * ((at - turn) / (last - turn));
    };
  };
  const double start = peak / s.start_divisor;
  return {curve(start, peak, start / s.end_divisor),
          curve(s.momentum, s.momentum_at_peak, s.momentum)};
}

Schedule parse_schedule(const std::string& name, double peak, int64_t warmup, int64_t total,
                        double from) {
  if (name == "constant") return constant_schedule(peak, warmup, from);
  if (name == "inverse-sqrt") return inverse_sqrt_schedule(peak, warmup, from);
  if (name == "one-cycle") return one_cycle_schedule(peak, warmup, total, from);
  throw Error("schedule '{}' is unknown; use constant, inverse-sqrt or one-cycle", name);
}

}  // namespace macgrad::nn
