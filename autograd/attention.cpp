// Softmax attention as a fused op with its composite, and the visibility that masks define.

#include "macgrad/autograd/attention.h"

#include <limits>
#include <memory>

#include "macgrad/autograd/attention_support.h"
#include "macgrad/core/kernels/attention.h"
#include "macgrad/core/kernels/elementwise.h"

namespace macgrad {

namespace {

// condition ? a : b of bool tensors whose shapes broadcast.
Tensor select_mask(const Tensor& condition, const Tensor& a, const Tensor& b) {
  const Shape shape =
      broadcast_shapes(broadcast_shapes(condition.shape(), a.shape(), "mask"), b.shape(), "mask");
  Tensor y = Tensor::empty(shape, DType::boolean, condition.device());
  kernels::where(condition.expand(shape), a.expand(shape), b.expand(shape), y);
  return y;
}

}  // namespace

Tensor and_(const Tensor& a, const Tensor& b) {
  return select_mask(a, b, Tensor::zeros({}, DType::boolean, a.device()));
}
Tensor or_(const Tensor& a, const Tensor& b) {
  if (!a.defined() || !b.defined()) return a.defined() ? a : b;
  return select_mask(a, a, b);
}

Visibility visibility(const AttentionMask& mask, const Variable& q, const Variable& k) {
  Visibility v;
  v.shown = visible(mask, q.size(2), k.size(2), q.device());
  if (v.shown.defined()) {
    v.hidden = not_(v.shown);
    v.count = sum(Variable(v.shown.to(q.dtype())), {3}, true).value();
  } else {
    v.count =
        Tensor::full({1, 1, q.size(2), 1}, static_cast<double>(k.size(2)), q.dtype(), q.device());
  }
  return v;
}

Tensor not_ahead(int64_t T, int64_t S, Device device) {
  const auto counted = [&](int64_t n) {
    return cumsum(Variable(Tensor::full({n}, 1.0, DType::float32, device)), 0);
  };
  const Variable last = counted(T) + static_cast<double>(S - T);
  return less_equal(counted(S).value().view({1, 1, 1, S}), last.value().view({1, 1, T, 1}));
}

Variable without_invalid(const Variable& x, const Tensor& valid) {
  return valid.defined() ? where(valid.unsqueeze(1).unsqueeze(3), x, 0.0) : x;
}

Tensor visible(const AttentionMask& mask, int64_t T, int64_t S, Device device) {
  Tensor shown;
  const auto restrict_to = [&](const Tensor& m) { shown = shown.defined() ? and_(shown, m) : m; };
  if (mask.causal) restrict_to(not_ahead(T, S, device));
  if (mask.key_valid.defined())
    restrict_to(mask.key_valid.unsqueeze(1).unsqueeze(1).expand({mask.key_valid.size(0), 1, T, S}));
  if (mask.query_valid.defined())
    restrict_to(
        mask.query_valid.unsqueeze(1).unsqueeze(3).expand({mask.query_valid.size(0), 1, T, S}));
  return shown;
}

namespace {

class SoftmaxAttention : public AttentionOp {
 public:
  SoftmaxAttention(const AttentionMask& given, double scale, double dropout_p, const DrawKey& key)
      : AttentionOp(given), args_{scale, given.causal, dropout_p, key} {}

  const char* name() const override { return "softmax_attention"; }
  Attributes attributes() const override {
    return {{"scale", args_.scale}, {"causal", args_.causal}, {"dropout", args_.dropout}};
  }
  std::vector<SavedTensor> constants() const override { return mask_constants(); }
  Support supports(const Tensors& x) const override {
    return kernels::softmax_attention_forward.supports(x[0].device(), operands(x));
  }
  Support supports_backward(const Tensors& x) const override {
    return kernels::softmax_attention_backward.supports(x[0].device(), operands(x));
  }
  Result forward(const Tensors& x) override {
    const Tensors rows = rows_of(x);
    const Tensor out = output_of(x);
    const Tensor statistics =
        Tensor::empty(out.shape().with(3, 2), compute_dtype(out.dtype()), out.device());
    kernels::softmax_attention_forward(
        {.in = operands(rows), .out = out, .statistics = statistics});
    return {{out}, {statistics}};
  }
  Tensors backward(const Tensors& x, const Result& result, const Tensors& g,
                   const std::vector<bool>&) const override {
    const Tensors rows = rows_of(x);
    Tensors d = gradients_of(x);
    kernels::softmax_attention_backward({.in = operands(rows),
                                         .out = result.outputs[0],
                                         .statistics = result.saved[0],
                                         .grad = unit_stride(g[0]),
                                         .dq = d[0],
                                         .dk = d[1],
                                         .dv = d[2]});
    return d;
  }
  Variables composite(const Variables& in) const override {
    const Variable qc = without_invalid(in[0], mask_.query_valid);
    const Variable kc = without_invalid(in[1], mask_.key_valid);
    const Variable vc = without_invalid(in[2], mask_.key_valid);
    const Visibility seen = visibility(mask_, qc, kc);
    const Variable scores = (matmul(qc, transpose(kc, -2, -1)) * args_.scale).named("scores");
    const double lowest = std::numeric_limits<float>::lowest();
    const Variable shift = max(hide(scores.detach(), seen.hidden, lowest), 3, true).first;
    // Rows that see nothing: weights 0/1 instead of 0/0.
    const Variable e = hide(exp(hide(scores - shift, seen.hidden, 0.0)), seen.hidden, 0.0);
    const Variable total = masked_fill(sum(e, {3}, true), equal(seen.count, 0.0), 1.0);
    const Variable weights = (e / total).named("weights");
    return {matmul(dropout(contiguous(weights), args_.dropout, args_.key), vc)};
  }

 private:
  SoftmaxAttentionOperands operands(const Tensors& x) const {
    return {.q = x[0],
            .k = x[1],
            .v = x[2],
            .key_valid = key_valid_,
            .query_valid = query_valid_,
            .args = args_};
  }

  SoftmaxAttentionArgs args_;
};

}  // namespace

Variable softmax_attention(const Variable& q, const Variable& k, const Variable& v,
                           const AttentionMask& mask, double scale, double dropout_p,
                           const DrawKey& key) {
  check_qkv("softmax_attention", q, k, v, mask);
  check(dropout_p >= 0.0 && dropout_p < 1.0, "[softmax_attention] dropout {} must be in [0, 1)",
        dropout_p);
  return apply_fused(std::make_shared<SoftmaxAttention>(mask, scale, dropout_p, key), {q, k, v})[0];
}

}  // namespace macgrad
