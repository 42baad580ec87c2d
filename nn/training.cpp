// Losses, accumulation and schedules.
#include <algorithm>
#include <cmath>

#include "macgrad/autograd/engine.h"
#include "macgrad/autograd/ops.h"
#include "macgrad/autograd/scope.h"
#include "macgrad/nn/accumulation.h"
#include "macgrad/nn/loss.h"
#include "macgrad/nn/schedule.h"

namespace macgrad::nn {

Variable mse_loss(const Variable& prediction, const Variable& target) {
  check(prediction.shape() == target.shape() && prediction.dtype() == target.dtype(),
        "[mse_loss] needs a prediction and a target of one shape and dtype, got {} {} and {} {}; "
        "reshape or cast one of them",
        name(prediction.dtype()), prediction.shape(), name(target.dtype()), target.shape());
  const Variable error = cast(prediction - target, compute_dtype(prediction.dtype()));
  return mean(error * error);
}

Variable TokenLoss::mean() const {
  return mul(sum, 1.0 / static_cast<double>(std::max<int64_t>(tokens, 1)));
}

TokenLoss token_loss(const Variable& logits, const Tensor& targets, int64_t pad, double smoothing,
                     int64_t tokens) {
  const bool flat = logits.rank() == 2 && targets.rank() == 1;
  check(
      (flat || (logits.rank() == 3 && targets.rank() == 2 && logits.size(1) == targets.size(1))) &&
          logits.size(0) == targets.size(0),
      "[token_loss] needs logits (B, T, V) and targets (B, T), or (P, V) and (P), got {} and {}",
      logits.shape(), targets.shape());
  TokenLoss loss;
  loss.tokens = tokens;
  if (tokens < 0) {
    loss.tokens = 0;
    for (const int64_t t : targets.to_vector<int64_t>()) loss.tokens += t != pad;
  }
  const int64_t rows = targets.numel();
  loss.sum = cross_entropy(reshape(logits, Shape{rows, logits.size(-1)}),
                           targets.reshape(Shape{rows}), smoothing, pad, Reduction::sum);
  return loss;
}

void Accumulation::add(const TokenLoss& loss) {
  backward(loss.sum);
  sums_.push_back(loss.sum.value());
  tokens_ += loss.tokens;
}

double Accumulation::loss() const {
  double sum = 0;
  for (const Tensor& s : sums_) sum += s.item();
  return sum / static_cast<double>(std::max<int64_t>(tokens_, 1));
}

double Accumulation::grad_scale() const {
  return 1.0 / static_cast<double>(std::max<int64_t>(tokens_, 1));
}

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

Schedule parse_schedule(const std::string& name, double peak, int64_t warmup, int64_t total,
                        double from) {
  if (name == "constant") return constant_schedule(peak, warmup, from);
  if (name == "inverse-sqrt") return inverse_sqrt_schedule(peak, warmup, from);
  if (name == "one-cycle") return one_cycle_schedule(peak, warmup, total, from);
  throw Error("schedule '{}' is unknown; use constant, inverse-sqrt or one-cycle", name);
}

}  // namespace macgrad::nn
