// preSBN and postSBN (paper, Algorithm 1; settled in nn/README.md) as fused ops.

#include <limits>

#include "autograd/attention.h"
#include "autograd/fused.h"
#include "autograd/op_support.h"

namespace macgrad {
namespace {

// Rows of a norm up to this become 0, with zero gradient.
constexpr double kSmallestNorm = 1e-12;

struct PreSbn {
  SbnStatistics statistics;
  double eps;
  Tensor valid;    // (B, T) or undefined
  Tensor invalid;  // (B, 1, T, 1)
};

// x less its mean over valid positions, for each head and channel; 0 where x is invalid. Without
// any valid position the mean is 0.
Variable centred_by_channel(const Variable& x, const PreSbn& p, double count) {
  if (!p.valid.defined()) return centred(x, {0, 2});
  if (count == 0) return x;
  const double lowest = -std::numeric_limits<double>::infinity();
  const Variable seen = masked_fill(x.detach(), p.invalid, lowest);
  const Variable shifted =
      masked_fill(x - max(max(seen, 2, true).first, 0, true).first, p.invalid, 0);
  return masked_fill(shifted - sum(shifted, {0, 2}, true) * (1.0 / count), p.invalid, 0.0);
}

Variable pre_sbn_composite(const Variable& given, const PreSbn& p, const SbnMoments& fixed) {
  const Variable x = p.valid.defined() ? masked_fill(given, p.invalid, 0.0) : given;
  Variable normal;
  // Squared norm of a row up to which it is 0.
  constexpr double kSquared = kSmallestNorm * kSmallestNorm;
  Tensor smallest = Tensor::full({}, kSquared, x.dtype(), x.device());
  if (p.statistics == SbnStatistics::row) {
    // Not divided by the deviation, which the norm would take out again.
    normal = centred(x, {3});
    const Variable variance = mean(normal.detach() * normal.detach(), {3}, true);
    smallest = ((variance + p.eps) * kSquared).value();
  } else if (p.statistics == SbnStatistics::batch) {
    double count = static_cast<double>(x.size(0) * x.size(2));
    if (p.valid.defined()) count = sum(Variable(p.valid.to(DType::float64))).item();
    const Variable deviation = centred_by_channel(x, p, count);
    const Variable squares = sum(deviation * deviation, {0, 2}, true);
    normal =
        deviation * inverse_root((count > 0 ? squares * (1.0 / count) : squares + 1.0) + p.eps);
  } else {
    const Shape shape{1, x.size(1), 1, x.size(3)};
    const Variable mean_(fixed.mean.view(shape).to(x.dtype()));
    const Variable var_(fixed.var.view(shape).to(x.dtype()));
    normal = (x - mean_) * inverse_root(var_ + p.eps);
    if (p.valid.defined()) normal = masked_fill(normal, p.invalid, 0.0);
  }
  const Variable square = sum(normal * normal, {3}, true);
  const Tensor tiny = less_equal(square.value(), smallest);
  return masked_fill(normal * rsqrt(masked_fill(square, tiny, 1.0)), tiny, 0.0);
}

}  // namespace

Variable pre_sbn(const Variable& x, const Tensor& valid, SbnStatistics statistics, double eps,
                 SbnMoments* moments) {
  check_defined("pre_sbn", x);
  check(x.rank() == 4, "[pre_sbn] needs (B,H,T,d), got {}", x.shape());
  check(!valid.defined() ||
            (valid.dtype() == DType::boolean && valid.shape() == Shape{x.size(0), x.size(2)}),
        "[pre_sbn] valid must be bool ({}, {}), is {}", x.size(0), x.size(2), valid.shape());
  check(eps >= 0.0, "[pre_sbn] eps = {} must not be negative", eps);
  PreSbn p{statistics, eps, valid.defined() ? valid.contiguous() : valid, {}};
  if (p.valid.defined()) p.invalid = not_(p.valid).unsqueeze(1).unsqueeze(3);
  const DType dtype = compute_dtype(x.dtype());
  SbnMoments used;
  if (statistics == SbnStatistics::fixed) {
    check(moments && moments->mean.defined() && moments->var.defined() &&
              moments->mean.shape() == Shape{x.size(1), x.size(3)} &&
              moments->var.shape() == moments->mean.shape(),
          "[pre_sbn] fixed statistics need mean and var of shape ({}, {})", x.size(1), x.size(3));
    // Copies: running statistics may move on before this op's gradient is asked for.
    used = {moments->mean.to(dtype).clone(), moments->var.to(dtype).clone()};
  } else if (statistics == SbnStatistics::batch) {
    used = {Tensor::empty({x.size(1), x.size(3)}, dtype, x.device()),
            Tensor::empty({x.size(1), x.size(3)}, dtype, x.device())};
  }
  FusedOp op;
  op.name = "pre_sbn";
  op.attributes = {{"statistics", statistics == SbnStatistics::batch   ? "batch"
                                  : statistics == SbnStatistics::fixed ? "fixed"
                                                                       : "row"},
                   {"eps", fmt::format("{}", eps)}};
  op.constants = {{p.valid, "pre_sbn's mask"}};
  const auto like = [](const Tensor& t) {
    return empty_heads(t.size(0), t.size(1), t.size(2), t.size(3), t);
  };
  const auto measured = std::make_shared<bool>(false);  // whether a kernel filled `used`
  op.forward = [=](const Tensors& in) {
    Tensor y = like(in[0]);
    *measured = true;
    kernels::pre_sbn_forward(unit_stride(in[0]), p.valid, p.statistics, p.eps, used.mean, used.var,
                             y);
    return FusedOp::Forward{{y}, {}};
  };
  op.backward = [=](const Tensors& in, const FusedOp::Forward&, const Tensors& g,
                    const std::vector<bool>&) {
    Tensor dx = like(in[0]);
    kernels::pre_sbn_backward(unit_stride(in[0]), p.valid, used.mean, used.var, unit_stride(g[0]),
                              p.statistics, p.eps, dx);
    return Tensors{dx};
  };
  op.composite = [=](const Variables& in) { return Variables{pre_sbn_composite(in[0], p, used)}; };
  const Variable y = apply_fused(op, {x})[0];
  if (statistics == SbnStatistics::batch && moments) {
    // The moments are wanted whichever way the op ran.
    if (!*measured) op.forward({x.value()});
    *moments = used;
  }
  return y;
}

Variable post_sbn(const Variable& x, const Variable& gamma, const Variable& beta, double eps) {
  check_defined("post_sbn", x);
  check_defined("post_sbn", gamma, "gamma");
  check_defined("post_sbn", beta, "beta");
  for (const Variable* p : {&gamma, &beta}) {
    check(p->shape() == Shape{1} || p->shape() == Shape{x.size(-1)},
          "[post_sbn] gamma {} and beta {} must be (1) or ({})", gamma.shape(), beta.shape(),
          x.size(-1));
    check_same_kind("post_sbn", x.value(), p->value());
  }
  FusedOp op;
  op.name = "post_sbn";
  op.forward = [eps](const Tensors& in) {
    const Tensor a = in[0].contiguous();
    Tensor y = Tensor::empty(a.shape(), a.dtype(), a.device());
    kernels::post_sbn_forward(a, in[1].contiguous(), in[2].contiguous(), eps, y);
    return FusedOp::Forward{{y}, {}};
  };
  op.backward = [eps](const Tensors& in, const FusedOp::Forward&, const Tensors& g,
                      const std::vector<bool>&) {
    Tensors d;
    for (const Tensor& t : in) d.push_back(Tensor::empty(t.shape(), t.dtype(), t.device()));
    kernels::post_sbn_backward(in[0].contiguous(), in[1].contiguous(), in[2].contiguous(),
                               g[0].contiguous(), eps, d[0], d[1], d[2]);
    return d;
  };
  op.composite = [eps](const Variables& in) {
    const Variable s = in[1] * in[0];
    return Variables{s * pow(s * s + eps * eps, (in[2] - 1.0) * 0.5)};
  };
  return apply_fused(op, {x, gamma, beta})[0];
}

}  // namespace macgrad
