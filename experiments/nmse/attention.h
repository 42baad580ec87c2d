// The attentions that the experiment compares, on given rows q, k (unit norm after preSBN) and v.
// Shape letters: B batch, H heads, n length, d head dimension; all tensors are (B, H, n, d).
#pragma once

#include <functional>
#include <vector>

#include "macgrad/autograd/attention.h"
#include "macgrad/nn/maclaurin_draw.h"

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

/// Σ_j f(t_ij) v_j / Σ_j f(t_ij), t = scale·q·k, by blocks of queries so that no n×n matrix is
/// held. exp goes to the softmax kernel.
AttentionResult run_exact(const nn::DotProductKernel& kernel, double scale, const Inputs& inputs,
                          const Variable& cotangent);

/// softmax(scale·q·kᵀ)·v with the n×n matrix in memory.
Variable plain_softmax_attention(const Variable& q, const Variable& k, const Variable& v,
                                 double scale);
/// Bytes that the plain form holds beside inputs and outputs.
double plain_bytes(const Inputs& inputs);

/// RMFA of one draw; denominators are not floored (policy `none`), but counted when <= 0
/// (read_statistics).
Variable rmfa_of(const nn::FeatureDraw& draw, const Variable& q, const Variable& k,
                 const Variable& v, Tensor* statistics);
/// Predicts the mean of v, ignoring q and k.
Variable mean_of_values(const Variable& q, const Variable& k, const Variable& v);
/// Constant and linear term of the kernel, exact: (Σ a_0 + a_1 t) without random features.
Variable linear_attention(const nn::DotProductKernel& kernel, double scale, const Variable& q,
                          const Variable& k, const Variable& v);

/// Σ|a - b|² / Σ|b|².
double normalized_error(const Tensor& a, const Tensor& b);

}  // namespace macgrad::experiments
