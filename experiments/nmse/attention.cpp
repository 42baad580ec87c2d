// Exact attention is computed by blocks of queries, so that long sequences need no n×n matrix; the
// baselines (the mean of v, and the first two terms of the series) are RMFA without random
// features.
#include "macgrad/experiments/nmse/attention.h"

#include <algorithm>
#include <cmath>

#include "macgrad/autograd/engine.h"
#include "macgrad/autograd/ops.h"
#include "macgrad/nn/attention_core.h"

namespace macgrad::experiments {
namespace {

// Queries of a block of exact attention: the block's kernel values stay below this many elements.
constexpr int64_t kBlockElements = int64_t{1} << 24;

RmfaArgs two_terms(double constant, double linear) {
  RmfaArgs args;
  args.constant = constant;
  args.linear = linear;
  return args;
}

// RMFA without random features.
Variable featureless(const RmfaArgs& args, const Variable& q, const Variable& k,
                     const Variable& v) {
  const Tensor omega = Tensor::empty({q.size(3), 0}, q.dtype(), q.device());
  const Tensor weight = Tensor::empty({0}, q.dtype(), q.device());
  return rmfa(q, k, v, AttentionMask{}, omega, weight, args);
}

}  // namespace

AttentionResult run(const Attention& attention, const Inputs& inputs, const Variable& cotangent) {
  if (!cotangent.defined()) {
    const NoGrad off;
    return {attention(inputs.q, inputs.k, inputs.v).value(), {}};
  }
  const Variable q(inputs.q.value(), true), k(inputs.k.value(), true), v(inputs.v.value(), true);
  const Variable out = attention(q, k, v);
  AttentionResult result{out.value(), {}};
  // The mean of v does not depend on q and k: their gradients are zero.
  const Variables g = grad({out}, {q, k, v}, {cotangent}, {.allow_unused = true});
  const Variable* given[] = {&q, &k, &v};
  for (size_t i = 0; i < 3; ++i)
    result.gradients.push_back(
        g[i].defined() ? g[i].value() : Tensor::zeros(given[i]->shape(), q.dtype(), q.device()));
  return result;
}

AttentionResult run_exact(const nn::PairKernel& kernel, double logit_scale, const Inputs& inputs,
                          const Variable& cotangent) {
  const bool exponential = nn::is_exponential(kernel);
  nn::AttentionSettings settings;
  settings.kind = nn::attention_kind(exponential && !kernel.has_factor() ? "softmax" : "exact");
  settings.kernel = kernel;
  settings.logit_scale = logit_scale;
  settings.unit_rows_given = true;
  nn::ModelRandom none;
  const auto core = nn::make_attention_core(
      nullptr, "exact", settings,
      {nn::AttentionRole::cross, inputs.q.size(1), inputs.q.size(3), &none});
  const Attention attention = [&](const Variable& q, const Variable& k, const Variable& v) {
    return core->forward({q, k, v, {}, {}});
  };
  if (exponential) return run(attention, inputs, cotangent);
  const int64_t n = inputs.q.size(2);
  const int64_t row = inputs.q.size(0) * inputs.q.size(1) * inputs.k.size(2);
  const int64_t block = std::clamp<int64_t>(kBlockElements / std::max<int64_t>(1, row), 1, n);
  Variables outs, dq;
  Variable dk, dv;
  for (int64_t begin = 0; begin < n; begin += block) {
    const int64_t end = std::min(n, begin + block);
    const Inputs part{slice(inputs.q, 2, begin, end), inputs.k, inputs.v};
    const Variable c = cotangent.defined() ? slice(cotangent, 2, begin, end) : Variable();
    const AttentionResult r = run(attention, part, c);
    outs.emplace_back(r.out);
    if (!c.defined()) continue;
    dq.emplace_back(r.gradients[0]);
    dk = dk.defined() ? dk + Variable(r.gradients[1]) : Variable(r.gradients[1]);
    dv = dv.defined() ? dv + Variable(r.gradients[2]) : Variable(r.gradients[2]);
  }
  AttentionResult result{concat(outs, 2).value(), {}};
  if (cotangent.defined()) result.gradients = {concat(dq, 2).value(), dk.value(), dv.value()};
  return result;
}

Variable plain_softmax_attention(const Variable& q, const Variable& k, const Variable& v,
                                 double scale) {
  return matmul(softmax(matmul(q * scale, transpose(k, 2, 3)), 3), v);
}

double plain_bytes(const Inputs& inputs) {
  // The scores and their softmax.
  return 2.0 * static_cast<double>(inputs.q.size(0) * inputs.q.size(1)) *
         static_cast<double>(inputs.q.size(2)) * static_cast<double>(inputs.k.size(2)) *
         static_cast<double>(item_size(inputs.q.dtype()));
}

Variable mean_of_values(const Variable& q, const Variable& k, const Variable& v) {
  return featureless(two_terms(1.0, 0.0), q, k, v);
}

Variable taylor1(const nn::DotProductKernel& f, double scale, const Variable& q, const Variable& k,
                 const Variable& v) {
  return featureless(two_terms(f.coefficient(0), f.coefficient(1) * scale), q, k, v);
}

double normalized_error(const Tensor& a, const Tensor& b) {
  const NoGrad off;
  const Variable x(a), y(b);
  const Variable e = x - y;
  return sum(e * e).item() / sum(y * y).item();
}

}  // namespace macgrad::experiments
