// Accumulation of micro-batches: summed losses are run backward one after the other, and the
// update divides by all their tokens, which makes it the update of the large batch.
//
//   model.begin_step(step, epoch);
//   Accumulation sum;
//   for (...) sum.add(token_loss(model.forward(...), targets, pad));
//   optimizer.step(lr, {.grad_scale = sum.grad_scale(), .clip_norm = 1.0});
#pragma once

#include "macgrad/nn/loss.h"

namespace macgrad::nn {

class Accumulation {
 public:
  /// Runs backward() of the summed loss; gradients add up in grad().
  void add(const TokenLoss& loss);
  /// Mean loss a token of what was added; waits for the device.
  double loss() const;
  int64_t tokens() const { return tokens_; }
  /// 1/tokens, for Adam::step.
  double grad_scale() const;

 private:
  Tensors sums_;  // one a batch, where the model is; read when asked for
  int64_t tokens_ = 0;
};

}  // namespace macgrad::nn
