// Linear attention on functions of projections: the fused op and its composite, linear_attention()
// on features in primitive ops.
#include "macgrad/autograd/projected_attention.h"

#include <cmath>
#include <limits>
#include <memory>

#include "macgrad/autograd/fused.h"
#include "macgrad/autograd/linear_attention_support.h"
#include "macgrad/autograd/ops.h"

namespace macgrad {
namespace {

void check_omega(const char* op, const Variable& q, const Tensor& omega) {
  check(omega.defined() && (omega.rank() == 2 || omega.rank() == 3),
        "[{}] omega must be (d, m) or (H, d, m)", op);
  check_same_kind(op, q.value(), omega);
  check(omega.size(-2) == q.size(3) && omega.size(-1) > 0 &&
            (omega.rank() == 2 || omega.size(0) == q.size(1)),
        "[{}] omega {} does not fit rows {}: it must be (d, m) or (H, d, m) with m > 0", op,
        omega.shape(), q.shape());
}

// linear_attention() on features. Hidden rows are 0 before they are mapped: their gradients would
// be NaN where they hold NaN.
Variable on_features(const Variable& q, const Variable& k, const Variable& v,
                     const Variable& log_weight, const AttentionMask& mask, const Tensor& omega,
                     const ProjectedAttentionArgs& args, Tensor* statistics = nullptr) {
  const auto features = [&](const Variable& x, const Tensor& valid) {
    return projected_features(without_invalid(x, valid), omega, args);
  };
  Variable keys = k;
  if (log_weight.defined()) {
    const double nothing = -std::numeric_limits<double>::infinity();
    keys = masked_fill(k, equal(log_weight.value(), nothing).unsqueeze(3), 0.0);
  }
  return linear_attention(features(q, mask.query_valid), features(keys, mask.key_valid), v,
                          log_weight, mask, linear_args(args), statistics);
}

class ProjectedAttention : public WeightedAttentionOp {
 public:
  ProjectedAttention(const AttentionMask& given, const Tensor& omega,
                     const ProjectedAttentionArgs& args, bool keep_state)
      : WeightedAttentionOp(given),
        omega_(omega),
        rows_of_omega_(omega.contiguous()),
        args_(args),
        keep_state_(keep_state) {}

  const char* name() const override { return "projected_attention"; }
  Attributes attributes() const override {
    return {{"features", features()}, {"causal", mask_.causal}};
  }
  std::vector<SavedTensor> constants() const override {
    std::vector<SavedTensor> all = mask_constants();
    all.emplace_back(omega_, "projected_attention's projection matrix");
    return all;
  }
  Support supports(const Tensors& x) const override {
    return kernels::projected_attention_forward.supports(x[0].device(), operands(x));
  }
  Support supports_backward(const Tensors& x) const override {
    return kernels::projected_attention_backward.supports(x[0].device(), operands(x));
  }
  Result forward(const Tensors& x) override {
    const Device device = x[0].device();
    const Tensors rows = rows_with_weight(x);
    const Tensor out = output_of(x);
    const Tensor sums = Tensor::empty(out.shape().with(3, 3), DType::float64, device);
    statistics = Tensor::empty({4}, DType::float64, device);
    Tensor state, state_sums;
    if (keep_state_) {
      const int64_t B = out.size(0), H = out.size(1), M = features();
      state = Tensor::empty({B, H, M, out.size(3)}, out.dtype(), device);
      state_sums = Tensor::empty({B, H, 2, M + 1}, DType::float64, device);
    }
    kernels::projected_attention_forward({.in = operands(rows),
                                          .out = out,
                                          .sums = sums,
                                          .stats = statistics,
                                          .state = state,
                                          .state_sums = state_sums});
    return {{out}, {sums, state, state_sums}};
  }
  Tensors backward(const Tensors& x, const Result& result, const Tensors& g,
                   const std::vector<bool>&) const override {
    const Tensors rows = rows_with_weight(x);
    Tensors d = gradients_with_weight(x);
    kernels::projected_attention_backward({.in = operands(rows),
                                           .out = result.outputs[0],
                                           .sums = result.saved[0],
                                           .state = result.saved[1],
                                           .state_sums = result.saved[2],
                                           .grad = unit_stride(g[0]),
                                           .dq = d[0],
                                           .dk = d[1],
                                           .dv = d[2],
                                           .dlog_weight = weight_of(d)});
    return d;
  }
  Variables composite(const Variables& x) const override {
    return {on_features(x[0], x[1], x[2], x.size() > 3 ? x[3] : Variable(), mask_, omega_, args_)};
  }

 private:
  int64_t features() const {
    return omega_.size(-1) * (args_.function == ProjectionFunction::exponential ? 1 : 2);
  }
  ProjectedAttentionOperands operands(const Tensors& x) const {
    return {.q = x[0],
            .k = x[1],
            .v = x[2],
            .log_weight = weight_of(x),
            .key_valid = key_valid_,
            .query_valid = query_valid_,
            .omega = rows_of_omega_,
            .args = args_,
            .causal = mask_.causal};
  }

  Tensor omega_, rows_of_omega_;
  ProjectedAttentionArgs args_;
  bool keep_state_;  // for the backward pass
};

}  // namespace

Variable projected_features(const Variable& x, const Tensor& omega,
                            const ProjectedAttentionArgs& args) {
  check_defined("projected_features", x, "x");
  check(x.rank() == 4, "[projected_features] needs x (B,H,N,d), got {}", x.shape());
  check_omega("projected_features", x, omega);
  const auto m = static_cast<double>(omega.size(-1));
  const Variable rows = args.scale == 1.0 ? x : mul(x, args.scale);
  const Variable u = matmul(rows, Variable(omega)).named("projections");
  if (args.function == ProjectionFunction::exponential) return add(u, -0.5 * std::log(m));
  return mul(concat({cos(u), sin(u)}, 3), 1.0 / std::sqrt(m));
}

Variable projected_attention(const Variable& q, const Variable& k, const Variable& v,
                             const Variable& log_weight, const AttentionMask& mask,
                             const Tensor& omega, const ProjectedAttentionArgs& args,
                             Tensor* statistics) {
  const char* op = "projected_attention";
  check_qkv(op, q, k, v, mask);
  check_omega(op, q, omega);
  check_floor(op, linear_args(args));
  if (q.dtype() == DType::bfloat16) {
    const auto wide = [](const Variable& x) { return cast(x, DType::float32); };
    return cast(projected_attention(wide(q), wide(k), wide(v), log_weight, mask,
                                    omega.to(DType::float32), args, statistics),
                DType::bfloat16);
  }
  const Variable weight = log_weight.defined() ? wide_log_weight(op, log_weight, k) : Variable();
  if (!kernels::projected_attention_forward.has(q.device().type))
    return on_features(q, k, v, weight, mask, omega, args, statistics);
  Variables in{q, k, v};
  if (weight.defined()) in.push_back(weight);
  // With fewer keys than dv, summing the state again costs less than keeping it.
  const bool keep_state = !mask.causal && k.size(2) >= v.size(3) && wants_recording(in);
  const auto fused = std::make_shared<ProjectedAttention>(mask, omega, args, keep_state);
  const Variable out = apply_fused(fused, in)[0];
  if (statistics && fused->statistics.defined()) *statistics = fused->statistics;
  return out;
}

}  // namespace macgrad
