// The attentions that the experiment compares, on given rows q, k (unit norm after preSBN) and v.
// Shape letters: B batch, H heads, n length, d head dimension; all tensors are (B, H, n, d).
#pragma once

#include <functional>
#include <vector>

#include "macgrad/nn/pair_kernel.h"

namespace macgrad::experiments {

struct Inputs {
  Variable q, k, v;
};

/// An attention output and, with a cotangent, its gradients with respect to q, k, v.
struct AttentionResult {
  Tensor out;
  Tensors gradients;  // dq, dk, dv; empty without a cotangent
};

/// Any attention as a function of q, k, v.
using Attention = std::function<Variable(const Variable&, const Variable&, const Variable&)>;

/// Runs `attention`, and its backward pass when `cotangent` is defined.
AttentionResult run(const Attention& attention, const Inputs& inputs, const Variable& cotangent);

/// Exact attention with a pair kernel and logits logit_scale·q·k/√d, by blocks of queries so that
/// no n×n matrix is held. Kernels exp(x·y), with or without a factor of the rows, run as softmax
/// attention. Rows must have unit norm when the kernel has a finite radius.
AttentionResult run_exact(const nn::PairKernel& kernel, double logit_scale, const Inputs& inputs,
                          const Variable& cotangent);

/// softmax(scale·q·kᵀ)·v with the n×n matrix in memory.
Variable plain_softmax_attention(const Variable& q, const Variable& k, const Variable& v,
                                 double scale);
/// Bytes that the plain form holds beside inputs and outputs.
double plain_bytes(const Inputs& inputs);

/// Predicts the mean of v, ignoring q and k.
Variable mean_of_values(const Variable& q, const Variable& k, const Variable& v);
/// Constant and linear term of the kernel's f, exact: a_0 + a_1·scale·q·k.
Variable taylor1(const nn::DotProductKernel& f, double scale, const Variable& q, const Variable& k,
                 const Variable& v);

/// Σ|a - b|² / Σ|b|².
double normalized_error(const Tensor& a, const Tensor& b);

}  // namespace macgrad::experiments
