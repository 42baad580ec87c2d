// Losses: mean squared error, and cross entropy of token sequences.
#pragma once

#include "macgrad/autograd/variable.h"

namespace macgrad::nn {

/// Mean of (prediction - target)² over all elements, 0-dimensional; float32 for bfloat16. The two
/// must have the same shape and dtype: an Error otherwise, because a broadcast (N, 1) against (N)
/// would compare every prediction with every target.
Variable mse_loss(const Variable& prediction, const Variable& target);

/// The summed loss of a batch (float32 for bfloat16 logits) and the number of tokens in it;
/// sum/tokens is the loss a token.
struct TokenLoss {
  Variable sum;  // 0-dimensional
  int64_t tokens = 0;
  Variable mean() const;
};

/// Cross entropy with label smoothing (Szegedy et al. 2016): logits (B, T, V) and targets (B, T)
/// int64, or (P, V) and (P). Places whose target is `pad` count nothing. `tokens`: how many targets
/// are not `pad`, for callers that know; -1 counts them, which waits for the device.
TokenLoss token_loss(const Variable& logits, const Tensor& targets, int64_t pad,
                     double smoothing = 0.0, int64_t tokens = -1);

}  // namespace macgrad::nn
