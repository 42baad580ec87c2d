// Softmax, log-softmax, layer norm and cross entropy: fused ops over rows, each with its composite.

#include <cmath>
#include <memory>

#include "macgrad/autograd/fused.h"
#include "macgrad/autograd/op_support.h"
#include "macgrad/core/kernels/elementwise.h"
#include "macgrad/core/kernels/rows.h"

namespace macgrad {
namespace {

// Moves `dim` to the end, applies the op to the (R, N) rows, and moves it back.
template <class Op>
Variable over_rows(const Variable& x, int dim) {
  static const auto op = std::make_shared<Op>();  // without state
  check_defined(op->name(), x);
  dim = checked_dim(op->name(), dim, x.shape());
  const int last = x.rank() - 1;
  const Variable moved = dim == last ? x : transpose(x, dim, last);
  const Variable rows = reshape(moved, as_rows(moved.shape()));
  const Variable y = reshape(rows.numel() == 0 ? rows : apply_fused(op, {rows})[0], moved.shape());
  return dim == last ? y : transpose(y, dim, last);
}

Variable row_max(const Variable& x) {
  return max(x.detach(), 1, true).first;
}

// y = f(x) of rows, whose backward kernel needs y only.
class RowOp : public FusedOp {
 public:
  RowOp(const Kernel<void(In, Out)>& run, const Kernel<void(In, In, Out)>& run_backward)
      : run_(run), run_backward_(run_backward) {}

  Result forward(const Tensors& x) override {
    const Tensor y = Tensor::empty(x[0].shape(), x[0].dtype(), x[0].device());
    run_(x[0].contiguous(), y);
    return {{y}, {}};
  }
  Tensors backward(const Tensors& x, const Result& result, const Tensors& g,
                   const std::vector<bool>&) const override {
    const Tensor dx = Tensor::empty(x[0].shape(), x[0].dtype(), x[0].device());
    run_backward_(result.outputs[0], g[0].contiguous(), dx);
    return {dx};
  }

 private:
  const Kernel<void(In, Out)>& run_;
  const Kernel<void(In, In, Out)>& run_backward_;
};

class Softmax : public RowOp {
 public:
  Softmax() : RowOp(kernels::softmax_forward, kernels::softmax_backward) {}
  const char* name() const override { return "softmax"; }
  Variables composite(const Variables& in) const override {
    const Variable e = exp(in[0] - row_max(in[0]));
    return {e / sum(e, {1}, true)};
  }
};

class LogSoftmax : public RowOp {
 public:
  LogSoftmax() : RowOp(kernels::log_softmax_forward, kernels::log_softmax_backward) {}
  const char* name() const override { return "log_softmax"; }
  Variables composite(const Variables& in) const override {
    const Variable shifted = in[0] - row_max(in[0]);
    return {shifted - log(sum(exp(shifted), {1}, true))};
  }
};

class LayerNorm : public FusedOp {
 public:
  explicit LayerNorm(double eps) : eps_(eps) {}

  const char* name() const override { return "layer_norm"; }
  Attributes attributes() const override { return {{"eps", eps_}}; }
  Result forward(const Tensors& x) override {
    const Tensor rows = x[0].contiguous();
    const DType dtype = compute_dtype(rows.dtype());
    const Tensor y = Tensor::empty(rows.shape(), rows.dtype(), rows.device());
    const Tensor mean = Tensor::empty({rows.size(0), 2}, dtype, rows.device());
    const Tensor rstd = Tensor::empty({rows.size(0)}, dtype, rows.device());
    kernels::layer_norm_forward({.x = rows,
                                 .weight = x[1].contiguous(),
                                 .bias = x[2].contiguous(),
                                 .eps = eps_,
                                 .y = y,
                                 .mean = mean,
                                 .rstd = rstd});
    return {{y}, {mean, rstd}};
  }
  Tensors backward(const Tensors& x, const Result& result, const Tensors& g,
                   const std::vector<bool>&) const override {
    const auto like = [](const Tensor& t) {
      return Tensor::empty(t.shape(), t.dtype(), t.device());
    };
    Tensors d{like(x[0]), like(x[1]), like(x[2])};
    kernels::layer_norm_backward({.x = x[0].contiguous(),
                                  .weight = x[1].contiguous(),
                                  .mean = result.saved[0],
                                  .rstd = result.saved[1],
                                  .grad = g[0].contiguous(),
                                  .dx = d[0],
                                  .dweight = d[1],
                                  .dbias = d[2]});
    return d;
  }
  Variables composite(const Variables& in) const override {
    const Variable deviation = centred(in[0], {1});
    const Variable variance = mean(deviation * deviation, {1}, true);
    return {deviation * inverse_root(variance + eps_) * in[1] + in[2]};
  }

 private:
  double eps_;
};

// Losses (R) of rows of logits (R, V).
class CrossEntropy : public FusedOp {
 public:
  CrossEntropy(const Tensor& target, double smoothing, int64_t ignore)
      : target_(target), smoothing_(smoothing), ignore_(ignore) {}

  const char* name() const override { return "cross_entropy"; }
  Attributes attributes() const override { return {{"smoothing", smoothing_}}; }
  std::vector<SavedTensor> constants() const override {
    return {{target_, "cross_entropy's target"}};
  }
  Result forward(const Tensors& in) override {
    const Tensor x = in[0].contiguous();
    const DType dtype = compute_dtype(x.dtype());
    const Tensor loss = Tensor::empty({x.size(0)}, dtype, x.device());
    const Tensor statistics = Tensor::empty({x.size(0), 2}, dtype, x.device());
    kernels::cross_entropy_forward(x, target_, smoothing_, ignore_, loss, statistics);
    return {{loss}, {statistics}};
  }
  Tensors backward(const Tensors& in, const Result& result, const Tensors& g,
                   const std::vector<bool>&) const override {
    const Tensor dx = Tensor::empty(in[0].shape(), in[0].dtype(), in[0].device());
    kernels::cross_entropy_backward({.logits = in[0].contiguous(),
                                     .target = target_,
                                     .statistics = result.saved[0],
                                     .grad = g[0].contiguous(),
                                     .smoothing = smoothing_,
                                     .ignore = ignore_,
                                     .dlogits = dx});
    return {dx};
  }
  Variables composite(const Variables& in) const override {
    const Tensor ignored = equal(
        target_, Tensor::full({}, static_cast<double>(ignore_), DType::int64, target_.device()));
    // Ignored rows may name no class: look one up that exists, and drop it.
    Tensor places = Tensor::empty(target_.shape(), DType::int64, target_.device());
    kernels::where(ignored,
                   Tensor::zeros({}, DType::int64, target_.device()).expand(target_.shape()),
                   target_, places);
    const Variable counted = masked_fill(in[0], ignored.unsqueeze(1), 0.0);
    const Variable logp = log_softmax(cast(counted, compute_dtype(in[0].dtype())), 1);
    // A term whose factor is 0 is left out, since its other factor may be infinite.
    Variable loss;
    if (smoothing_ < 1) {
      const Variable picked = squeeze(gather(logp, 1, places.unsqueeze(1)), 1);
      loss = -(1.0 - smoothing_) * picked;
    }
    if (smoothing_ > 0) {
      const Variable everywhere = -smoothing_ * mean(logp, {1});
      loss = loss.defined() ? loss + everywhere : everywhere;
    }
    return {masked_fill(loss, ignored, 0.0)};
  }

 private:
  Tensor target_;
  double smoothing_;
  int64_t ignore_;
};

}  // namespace

Variable softmax(const Variable& x, int dim) {
  return over_rows<Softmax>(x, dim);
}

Variable log_softmax(const Variable& x, int dim) {
  return over_rows<LogSoftmax>(x, dim);
}

Variable layer_norm(const Variable& x, const Variable& weight, const Variable& bias, double eps) {
  check_defined("layer_norm", x);
  check_defined("layer_norm", weight, "weight");
  check_defined("layer_norm", bias, "bias");
  check(x.rank() >= 1 && weight.shape() == Shape{x.size(-1)} && bias.shape() == weight.shape(),
        "[layer_norm] weight {} and bias {} do not fit input {}", weight.shape(), bias.shape(),
        x.shape());
  check_same_kind("layer_norm", x.value(), weight.value());
  check_same_kind("layer_norm", x.value(), bias.value());
  check(eps >= 0.0, "[layer_norm] eps = {} must not be negative", eps);
  if (x.numel() == 0) return x;
  const Variable rows = reshape(x, as_rows(x.shape()));
  return reshape(apply_fused(std::make_shared<LayerNorm>(eps), {rows, weight, bias})[0], x.shape());
}

Variable cross_entropy(const Variable& logits, const Tensor& target, double smoothing,
                       int64_t ignore_index, Reduction reduction) {
  check_defined("cross_entropy", logits, "logits");
  check(logits.rank() == 2, "[cross_entropy] logits must be (R, V), are {}", logits.shape());
  check(
      target.defined() && target.dtype() == DType::int64 && target.shape() == Shape{logits.size(0)},
      "[cross_entropy] target must be int64 ({}), is {} {}", logits.size(0),
      target.defined() ? name(target.dtype()) : "undefined", target.shape());
  check(smoothing >= 0.0 && smoothing <= 1.0, "[cross_entropy] smoothing {} must be in [0, 1]",
        smoothing);
  const Tensor places = target.contiguous();
  const Variable losses =
      apply_fused(std::make_shared<CrossEntropy>(places, smoothing, ignore_index), {logits})[0];
  if (reduction == Reduction::none) return losses;
  const Variable total = sum(losses);
  if (reduction == Reduction::sum) return total;
  int64_t counted = places.numel();
  if (ignore_index != kNoIgnore)
    for (int64_t t : places.to_vector<int64_t>()) counted -= t == ignore_index;
  check(counted > 0, "[cross_entropy] every one of the {} targets is the ignored index {}",
        places.numel(), ignore_index);
  return total * (1.0 / static_cast<double>(counted));
}

}  // namespace macgrad
