// preSBN and postSBN (paper, Algorithm 1; settled in nn/README.md) as fused ops.

#include <limits>
#include <memory>

#include "macgrad/autograd/attention.h"
#include "macgrad/autograd/fused.h"
#include "macgrad/autograd/op_support.h"
#include "macgrad/core/kernels/sbn.h"

namespace macgrad {
namespace {

// Rows of a norm up to this become 0, with zero gradient.
constexpr double kSmallestNorm = 1e-12;

struct PreSbnSettings {
  SbnStatistics statistics;
  double eps;
  Tensor valid;    // (B, T) or undefined
  Tensor invalid;  // (B, 1, T, 1), for the composite
};

// x less its mean over valid positions, for each head and channel; 0 where x is invalid. Without
// any valid position the mean is 0.
Variable centred_by_channel(const Variable& x, const PreSbnSettings& p, double count) {
  if (!p.valid.defined()) return centred(x, {0, 2});
  if (count == 0) return x;
  const double lowest = -std::numeric_limits<double>::infinity();
  const Variable visible = x.detach();
  const Variable largest =
      max(max(masked_fill(visible, p.invalid, lowest), 2, true).first, 0, true).first;
  const auto mean_of = [&](const Variable& v) {
    return sum(masked_fill(v, p.invalid, 0.0), {0, 2}, true) * (1.0 / count);
  };
  const Variable deviation = x - (largest + mean_of(visible - largest));
  return masked_fill(deviation - mean_of(deviation), p.invalid, 0.0);
}

// Memory for a result of t's shape; of four dimensions as (B, T, H, d), as the layers have it.
Tensor like(const Tensor& t) {
  return t.rank() == 4 ? empty_heads(t.size(0), t.size(1), t.size(2), t.size(3), t)
                       : Tensor::empty(t.shape(), t.dtype(), t.device());
}

Variable pre_sbn_composite(const Variable& given, const PreSbnSettings& p,
                           const SbnMoments& fixed) {
  const Variable x = p.valid.defined() ? masked_fill(given, p.invalid, 0.0) : given;
  Variable normal;
  // Rows whose squared norm is at most this become 0.
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

class PreSbn : public FusedOp {
 public:
  PreSbn(const PreSbnSettings& settings, const SbnMoments& used, const SbnRunning& running)
      : p_(settings), used_(used), running_(running) {}

  const char* name() const override { return "pre_sbn"; }
  Attributes attributes() const override {
    return {{"statistics", p_.statistics == SbnStatistics::batch   ? "batch"
                           : p_.statistics == SbnStatistics::fixed ? "fixed"
                                                                   : "row"},
            {"eps", p_.eps}};
  }
  std::vector<SavedTensor> constants() const override { return {{p_.valid, "pre_sbn's mask"}}; }
  Result forward(const Tensors& x) override {
    const Tensor y = like(x[0]);
    kernels::pre_sbn_forward({.x = unit_stride(x[0]),
                              .valid = p_.valid,
                              .statistics = p_.statistics,
                              .eps = p_.eps,
                              .mean = used_.mean,
                              .var = used_.var,
                              .running_mean = running_.mean,
                              .running_var = running_.var,
                              .momentum = running_.momentum,
                              .y = y});
    measured = true;
    return {{y}, {}};
  }
  Tensors backward(const Tensors& x, const Result&, const Tensors& g,
                   const std::vector<bool>&) const override {
    const Tensor dx = like(x[0]);
    kernels::pre_sbn_backward({.x = unit_stride(x[0]),
                               .valid = p_.valid,
                               .mean = used_.mean,
                               .var = used_.var,
                               .grad = unit_stride(g[0]),
                               .statistics = p_.statistics,
                               .eps = p_.eps,
                               .dx = dx});
    return {dx};
  }
  Variables composite(const Variables& in) const override {
    PreSbnSettings masked = p_;
    if (p_.valid.defined()) masked.invalid = not_(p_.valid).unsqueeze(1).unsqueeze(3);
    return {pre_sbn_composite(in[0], masked, used_)};
  }

  bool measured = false;  // whether the kernel wrote the moments

 private:
  PreSbnSettings p_;
  SbnMoments used_;
  SbnRunning running_;
};

class PostSbn : public FusedOp {
 public:
  explicit PostSbn(double eps) : eps_(eps) {}

  const char* name() const override { return "post_sbn"; }
  Result forward(const Tensors& x) override {
    const Tensor y = like(x[0]);
    kernels::post_sbn_forward(unit_stride(x[0]), x[1].contiguous(), x[2].contiguous(), eps_, y);
    return {{y}, {}};
  }
  Tensors backward(const Tensors& x, const Result&, const Tensors& g,
                   const std::vector<bool>&) const override {
    Tensors d{like(x[0]), like(x[1]), like(x[2])};
    kernels::post_sbn_backward({.x = unit_stride(x[0]),
                                .gamma = x[1].contiguous(),
                                .beta = x[2].contiguous(),
                                .grad = unit_stride(g[0]),
                                .eps = eps_,
                                .dx = d[0],
                                .dgamma = d[1],
                                .dbeta = d[2]});
    return d;
  }
  Variables composite(const Variables& in) const override {
    const Variable s = in[1] * in[0];
    return {s * pow(s * s + eps_ * eps_, (in[2] - 1.0) * 0.5)};
  }

 private:
  double eps_;
};

}  // namespace

Variable pre_sbn(const Variable& x, const Tensor& valid, SbnStatistics statistics, double eps,
                 SbnMoments* moments, const SbnRunning& running) {
  check_defined("pre_sbn", x);
  check(x.rank() == 4, "[pre_sbn] needs (B,H,T,d), got {}", x.shape());
  check(!valid.defined() ||
            (valid.dtype() == DType::boolean && valid.shape() == Shape{x.size(0), x.size(2)}),
        "[pre_sbn] valid must be bool ({}, {}), is {}", x.size(0), x.size(2), valid.shape());
  check(eps >= 0.0, "[pre_sbn] eps = {} must not be negative", eps);
  check(running.mean.defined() == running.var.defined(),
        "[pre_sbn] needs a running mean and a running variance, or neither");
  for (const Tensor* t : {&running.mean, &running.var})
    check(
        !t->defined() || (t->shape() == Shape{x.size(1), x.size(3)} && t->device() == x.device() &&
                          is_floating(t->dtype()) && t->is_contiguous()),
        "[pre_sbn] running statistics must be contiguous floating tensors of shape ({}, {}) on {}, "
        "got {} of shape {}",
        x.size(1), x.size(3), text(x.device()), name(t->dtype()), t->shape());
  const PreSbnSettings p{statistics, eps, valid.defined() ? valid.contiguous() : valid, {}};
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
  const auto op = std::make_shared<PreSbn>(p, used, running);
  const Variable y = apply_fused(op, {x})[0];
  if (statistics == SbnStatistics::batch) {
    // Moments and running statistics are wanted whichever way the op ran.
    if (!op->measured && (moments || running.mean.defined())) op->forward({x.value()});
    if (moments) *moments = used;
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
  return apply_fused(std::make_shared<PostSbn>(eps), {x, gamma, beta})[0];
}

}  // namespace macgrad
