// Mean squared error and token losses.
#include "macgrad/nn/loss.h"

#include <algorithm>

#include "macgrad/autograd/ops.h"
#include "macgrad/autograd/scope.h"

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

}  // namespace macgrad::nn
