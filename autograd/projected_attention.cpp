// Linear attention on functions of projections: the fused op and its composite, linear_attention()
// on features in primitive ops.
#include "macgrad/autograd/projected_attention.h"

#include <cmath>
#include <memory>

#include "macgrad/autograd/attention_support.h"
#include "macgrad/autograd/fused.h"
#include "macgrad/autograd/ops.h"

namespace macgrad {
namespace {

LinearAttentionArgs linear_args(const ProjectedAttentionArgs& args) {
  LinearAttentionArgs linear;
  linear.log_features = args.function == ProjectionFunction::exponential;
  linear.floor = args.floor;
  return linear;
}

void check_omega(const char* op, const Variable& q, const Tensor& omega) {
  check(omega.defined() && (omega.rank() == 2 || omega.rank() == 3),
        "[{}] omega must be (d, m) or (H, d, m)", op);
  check_same_kind(op, q.value(), omega);
  check(omega.size(-2) == q.size(3) && omega.size(-1) > 0 &&
            (omega.rank() == 2 || omega.size(0) == q.size(1)),
        "[{}] omega {} does not fit rows {}: it must be (d, m) or (H, d, m) with m > 0", op,
        omega.shape(), q.shape());
}

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
  Variables in{q, k, v};
  if (log_weight.defined()) in.push_back(wide_log_weight(op, log_weight, k));
  const Tensor key_valid = packed(mask.key_valid);
  const Tensor query_valid = packed(mask.query_valid);
  const Tensor rows = omega.contiguous();
  const bool causal = mask.causal;
  const int64_t B = v.size(0), H = v.size(1), T = q.size(2), S = k.size(2), dv = v.size(3);
  const int64_t m = omega.size(-1);
  const int64_t M = args.function == ProjectionFunction::exponential ? m : 2 * m;
  // A state of fewer rows than dv costs less to sum than to keep.
  const bool kept = !causal && S >= dv && wants_recording(in);
  FusedOp fused;
  fused.name = op;
  fused.attributes = {{"features", fmt::format("{}", M)}, {"causal", causal ? "true" : "false"}};
  fused.constants = {{key_valid, "projected_attention's key mask"},
                     {query_valid, "projected_attention's query mask"},
                     {omega, "projected_attention's projection matrix"}};
  const auto measured = std::make_shared<Tensor>();
  fused.supports = [=](const Tensors& x) {
    const Tensor none;
    return kernels::projected_attention_forward.supports(
        x[0].device(), x[0], x[1], x[2], weight_of(x), key_valid, query_valid, rows, args, causal,
        none, none, none, none, none, Scratch{});
  };
  fused.forward = [=](const Tensors& x) {
    const Device device = x[0].device();
    Tensor out = empty_heads(B, H, T, dv, x[0]);
    Tensor sums = Tensor::empty({B, H, T, 3}, DType::float64, device);
    Tensor stats = Tensor::empty({4}, DType::float64, device);
    Tensor state, state_sums;
    if (kept) {
      state = Tensor::empty({B, H, M, dv}, x[0].dtype(), device);
      state_sums = Tensor::empty({B, H, 2, M + 1}, DType::float64, device);
    }
    kernels::projected_attention_forward(unit_stride(x[0]), unit_stride(x[1]), unit_stride(x[2]),
                                         weight_of(x), key_valid, query_valid, rows, args, causal,
                                         out, sums, stats, state, state_sums, Scratch{});
    *measured = stats;
    return FusedOp::Forward{{out}, {sums, state, state_sums}};
  };
  fused.backward = [=](const Tensors& x, const FusedOp::Forward& result, const Tensors& g,
                       const std::vector<bool>&) {
    Tensors d = empty_gradients(x);
    kernels::projected_attention_backward(
        unit_stride(x[0]), unit_stride(x[1]), unit_stride(x[2]), weight_of(x), key_valid,
        query_valid, rows, result.outputs[0], result.saved[0], result.saved[1], result.saved[2],
        unit_stride(g[0]), args, causal, d[0], d[1], d[2], d[3], Scratch{});
    d.resize(x.size());
    return d;
  };
  fused.composite = [=](const Variables& x) {
    return Variables{linear_attention(projected_features(x[0], omega, args),
                                      projected_features(x[1], omega, args), x[2],
                                      x.size() > 3 ? x[3] : Variable(), mask, linear_args(args))};
  };
  const Variable out = apply_fused(fused, in)[0];
  if (statistics && measured->defined()) *statistics = *measured;
  return out;
}

}  // namespace macgrad
