// Softmax, log-softmax, layer norm and cross entropy: fused ops over rows, each with its composite.

#include <cmath>

#include "macgrad/autograd/fused.h"
#include "macgrad/autograd/op_support.h"

namespace macgrad {
namespace {

// Moves `dim` to the end, applies f to the (R, N) rows, and moves it back.
Variable over_rows(const char* op, const Variable& x, int dim,
                   const std::function<Variable(const Variable&)>& f) {
  check_defined(op, x);
  dim = checked_dim(op, dim, x.shape());
  const int last = x.rank() - 1;
  const Variable moved = dim == last ? x : transpose(x, dim, last);
  const Variable rows = reshape(moved, as_rows(moved.shape()));
  const Variable y = reshape(f(rows), moved.shape());
  return dim == last ? y : transpose(y, dim, last);
}

Variable row_max(const Variable& x) {
  return max(x.detach(), 1, true).first;
}

using Forward = Kernel<void(In, Out)>;
using Backward = Kernel<void(In, In, Out)>;

// An op y = f(x) of rows whose backward kernel needs y only.
FusedOp row_op(const char* name, const Forward& forward, const Backward& backward,
               std::function<Variable(const Variable&)> composite) {
  FusedOp op;
  op.name = name;
  op.forward = [&forward](const Tensors& in) {
    Tensor y = Tensor::empty(in[0].shape(), in[0].dtype(), in[0].device());
    forward(in[0].contiguous(), y);
    return FusedOp::Forward{{y}, {}};
  };
  op.backward = [&backward](const Tensors& in, const FusedOp::Forward& result, const Tensors& g,
                            const std::vector<bool>&) {
    Tensor dx = Tensor::empty(in[0].shape(), in[0].dtype(), in[0].device());
    backward(result.outputs[0], g[0].contiguous(), dx);
    return Tensors{dx};
  };
  op.composite = [composite = std::move(composite)](const Variables& in) {
    return Variables{composite(in[0])};
  };
  return op;
}

}  // namespace

Variable softmax(const Variable& x, int dim) {
  return over_rows("softmax", x, dim, [](const Variable& rows) {
    if (rows.numel() == 0) return rows;
    static const FusedOp op = row_op("softmax", kernels::softmax_forward, kernels::softmax_backward,
                                     [](const Variable& v) {
                                       const Variable e = exp(v - row_max(v));
                                       return e / sum(e, {1}, true);
                                     });
    return apply_fused(op, {rows})[0];
  });
}

Variable log_softmax(const Variable& x, int dim) {
  return over_rows("log_softmax", x, dim, [](const Variable& rows) {
    if (rows.numel() == 0) return rows;
    static const FusedOp op = row_op("log_softmax", kernels::log_softmax_forward,
                                     kernels::log_softmax_backward, [](const Variable& v) {
                                       const Variable shifted = v - row_max(v);
                                       return shifted - log(sum(exp(shifted), {1}, true));
                                     });
    return apply_fused(op, {rows})[0];
  });
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
  FusedOp op;
  op.name = "layer_norm";
  op.attributes = {{"eps", fmt::format("{}", eps)}};
  op.forward = [eps](const Tensors& in) {
    const Tensor rows = in[0].contiguous();
    const int64_t count = rows.size(0);
    const DType dtype = compute_dtype(rows.dtype());
    Tensor y = Tensor::empty(rows.shape(), rows.dtype(), rows.device());
    Tensor mean = Tensor::empty({count, 2}, dtype, rows.device());
    Tensor rstd = Tensor::empty({count}, dtype, rows.device());
    kernels::layer_norm_forward(rows, in[1].contiguous(), in[2].contiguous(), eps, y, mean, rstd);
    return FusedOp::Forward{{y}, {mean, rstd}};
  };
  op.backward = [](const Tensors& in, const FusedOp::Forward& result, const Tensors& g,
                   const std::vector<bool>&) {
    const auto like = [](const Tensor& t) {
      return Tensor::empty(t.shape(), t.dtype(), t.device());
    };
    Tensors d{like(in[0]), like(in[1]), like(in[2])};
    kernels::layer_norm_backward(in[0].contiguous(), in[1].contiguous(), result.saved[0],
                                 result.saved[1], g[0].contiguous(), d[0], d[1], d[2]);
    return d;
  };
  op.composite = [eps](const Variables& in) {
    const Variable deviation = centred(in[0], {1});
    const Variable variance = mean(deviation * deviation, {1}, true);
    return Variables{deviation * inverse_root(variance + eps) * in[1] + in[2]};
  };
  return reshape(apply_fused(op, {reshape(x, as_rows(x.shape())), weight, bias})[0], x.shape());
}

namespace {

// Per-row losses (R).
Variable row_losses(const Variable& logits, const Tensor& target, double smoothing,
                    int64_t ignore) {
  FusedOp op;
  op.name = "cross_entropy";
  op.attributes = {{"smoothing", fmt::format("{}", smoothing)}};
  op.constants = {{target, "cross_entropy's target"}};
  op.forward = [=](const Tensors& in) {
    const Tensor x = in[0].contiguous();
    const DType dtype = compute_dtype(x.dtype());
    Tensor loss = Tensor::empty({x.size(0)}, dtype, x.device());
    Tensor statistics = Tensor::empty({x.size(0), 2}, dtype, x.device());
    kernels::cross_entropy_forward(x, target, smoothing, ignore, loss, statistics);
    return FusedOp::Forward{{loss}, {statistics}};
  };
  op.backward = [=](const Tensors& in, const FusedOp::Forward& result, const Tensors& g,
                    const std::vector<bool>&) {
    Tensor dx = Tensor::empty(in[0].shape(), in[0].dtype(), in[0].device());
    kernels::cross_entropy_backward(in[0].contiguous(), target, result.saved[0], g[0].contiguous(),
                                    smoothing, ignore, dx);
    return Tensors{dx};
  };
  op.composite = [=](const Variables& in) {
    const Tensor ignored =
        equal(target, Tensor::full({}, static_cast<double>(ignore), DType::int64, target.device()));
    // Ignored rows may name no class: look one up that exists, and drop it.
    Tensor places = Tensor::empty(target.shape(), DType::int64, target.device());
    kernels::where(ignored, Tensor::zeros({}, DType::int64, target.device()).expand(target.shape()),
                   target, places);
    const Variable counted = masked_fill(in[0], ignored.unsqueeze(1), 0.0);
    const Variable logp = log_softmax(cast(counted, compute_dtype(in[0].dtype())), 1);
    // A term whose factor is 0 is left out, since its other factor may be infinite.
    Variable loss;
    if (smoothing < 1) {
      const Variable picked = squeeze(gather(logp, 1, places.unsqueeze(1)), 1);
      loss = -(1.0 - smoothing) * picked;
    }
    if (smoothing > 0) {
      const Variable everywhere = -smoothing * mean(logp, {1});
      loss = loss.defined() ? loss + everywhere : everywhere;
    }
    return Variables{masked_fill(loss, ignored, 0.0)};
  };
  return apply_fused(op, {logits})[0];
}

}  // namespace

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
  const Variable losses = row_losses(logits, places, smoothing, ignore_index);
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
