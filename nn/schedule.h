// Schedules of learning rate and momentum: plain functions of the step, counted from 1.
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

struct OneCycleSettings {
  double warmup = 0.3;  // of all updates
  double start_divisor = 25.0;
  double end_divisor = 1e4;
  double momentum = 0.95;  // at both ends
  double momentum_at_peak = 0.85;
};
/// Learning rate, and β₁ of Adam or momentum of SGD.
struct OneCycle {
  Schedule lr, momentum;
};
/// torch.optim.lr_scheduler.OneCycleLR with anneal_strategy "linear" (Smith & Topin 2018): the rate
/// rises from peak/start_divisor at step 1 to `peak` at step warmup·total, and falls to
/// peak/start_divisor/end_divisor at step `total`; the momentum moves the other way. Constant from
/// then on.
OneCycle one_cycle(double peak, int64_t total, const OneCycleSettings& settings = {});

/// By name: "constant", "inverse-sqrt", "one-cycle"; an Error lists them.
Schedule parse_schedule(const std::string& name, double peak, int64_t warmup, int64_t total,
                        double from = 0.0);

}  // namespace macgrad::nn
