// Random Maclaurin feature attention as a fused op with its composite, and its features in
// primitive ops.

#include <algorithm>
#include <cmath>
#include <memory>

#include "macgrad/autograd/attention.h"
#include "macgrad/autograd/attention_support.h"
#include "macgrad/core/kernels/rmfa.h"
#include "macgrad/core/step_graph.h"

namespace macgrad {

namespace {

// The first n of the last dimension.
Tensor narrowed(const Tensor& t, int64_t n) {
  return t.size(-1) == n ? t : t.slice(t.rank() - 1, 0, n);
}

// The kernels read the layout on the device, the composites read the levels of the host.
void check_not_captured(const char* op, const RmfaArgs& args) {
  check(!args.layout.defined() || !StepGraph::recording(),
        "[{}] the composite depends on the levels of this draw, so a captured step would keep them "
        "when the next draw comes; run it with --graph off, or with operands that the kernel takes",
        op);
}

}  // namespace

Variable maclaurin_features(const Variable& x, const Tensor& omega, const Tensor& weight,
                            const RmfaArgs& args) {
  check_not_captured("maclaurin_features", args);
  Variables parts;
  if (args.linear > 0) parts.push_back(x * std::sqrt(args.linear));
  if (!args.levels.empty() && args.levels[0] > 0) {
    const int columns = x.rank() - 1;
    int64_t projections = 0;
    for (int64_t m : args.levels) projections += m;
    const Variable projected =
        matmul(x, Variable(narrowed(omega, projections))).named("projections");
    Variable phi;
    int64_t at = 0;
    for (int64_t m : args.levels) {
      const Variable p = slice(projected, columns, at, at + m);
      at += m;
      // Features of lower degree are done: only the first m take another factor.
      if (!phi.defined()) {
        phi = p;
      } else if (m == phi.size(columns)) {
        phi = phi * p;
      } else {
        phi = concat({slice(phi, columns, 0, m) * p, slice(phi, columns, m, phi.size(columns))},
                     columns);
      }
    }
    parts.push_back(phi * Variable(narrowed(weight, args.levels[0])));
  }
  check(!parts.empty(), "[maclaurin_features] the draw has no feature but the constant");
  return parts.size() == 1 ? parts[0] : concat(parts, x.rank() - 1);
}

namespace {

// Numerator and denominator through phi; causal goes through the masked T×S product.
Variables rmfa_composite(const Variables& in, const AttentionMask& mask, const Tensor& omega,
                         const Tensor& weight, const RmfaArgs& args) {
  check_not_captured("rmfa", args);
  const Variable q = without_invalid(in[0], mask.query_valid);
  const Variable k = without_invalid(in[1], mask.key_valid);
  const Variable v = without_invalid(in[2], mask.key_valid);
  const Visibility seen = visibility(mask, q, k);
  const bool features = args.linear > 0 || (!args.levels.empty() && args.levels[0] > 0);
  Variable num, den;
  if (mask.causal) {
    Variable kernel(Tensor::full({q.size(0), q.size(1), q.size(2), k.size(2)}, args.constant,
                                 q.dtype(), q.device()));
    if (features) {
      const Variable phi_q = maclaurin_features(q, omega, weight, args).named("phi_q");
      const Variable phi_k = maclaurin_features(k, omega, weight, args).named("phi_k");
      kernel = matmul(phi_q, transpose(phi_k, -2, -1)) + args.constant;
    }
    kernel = hide(kernel, seen.hidden, 0.0).named("kernel");
    num = matmul(kernel, v);
    den = sum(kernel, {3}, true);
  } else {
    num = args.constant * sum(v, {2}, true);
    den = Variable(seen.count) * args.constant;
    if (features) {
      const Variable phi_q = maclaurin_features(q, omega, weight, args).named("phi_q");
      // Padding zeroes the features themselves: phi(0) is not 0.
      const Variable phi_k =
          without_invalid(maclaurin_features(k, omega, weight, args), mask.key_valid)
              .named("phi_k");
      const Variable state = matmul(transpose(phi_k, -2, -1), v).named("state");
      num = num + matmul(phi_q, state);
      den = den + matmul(phi_q, transpose(sum(phi_k, {2}, true), -2, -1));
    }
  }
  num.named("numerator");
  Variable safe = den.named("denominator");
  if (args.floor > 0) {
    const Tensor lowest = mul(Variable(seen.count), args.floor).value();
    safe = where(less(den.value(), lowest), Variable(lowest), den);
  }
  const Tensor blind = equal(seen.count, 0.0);
  const Variable out = num / masked_fill(safe, blind, 1.0);
  return {masked_fill(out, blind, 0.0)};
}

class Rmfa : public AttentionOp {
 public:
  Rmfa(const AttentionMask& given, const Tensor& omega, const Tensor& weight, RmfaArgs args)
      : AttentionOp(given), omega_(omega), weight_(weight), args_(std::move(args)) {}

  const char* name() const override { return "rmfa"; }
  Attributes attributes() const override {
    return {{"features", args_.levels.empty() ? 0 : args_.levels[0]},
            {"causal", args_.causal},
            {"floor", args_.floor}};
  }
  std::vector<SavedTensor> constants() const override {
    std::vector<SavedTensor> all = mask_constants();
    all.emplace_back(omega_, "the feature draw's omega");
    all.emplace_back(weight_, "the feature draw's weights");
    all.emplace_back(args_.layout, "the feature draw's layout");
    return all;
  }
  Support supports(const Tensors& x) const override {
    return kernels::rmfa_forward.supports(x[0].device(), operands(x));
  }
  Support supports_backward(const Tensors& x) const override {
    return kernels::rmfa_backward.supports(x[0].device(), operands(x));
  }
  Result forward(const Tensors& x) override {
    const Tensors rows = rows_of(x);
    const Tensor out = output_of(x);
    const Tensor den =
        Tensor::empty(out.shape().erased(3), compute_dtype(out.dtype()), out.device());
    statistics = Tensor::empty({4}, DType::float64, out.device());
    kernels::rmfa_forward({.in = operands(rows), .out = out, .den = den, .stats = statistics});
    return {{out}, {den}};
  }
  Tensors backward(const Tensors& x, const Result& result, const Tensors& g,
                   const std::vector<bool>&) const override {
    const Tensors rows = rows_of(x);
    Tensors d = gradients_of(x);
    kernels::rmfa_backward({.in = operands(rows),
                            .out = result.outputs[0],
                            .den = result.saved[0],
                            .grad = unit_stride(g[0]),
                            .dq = d[0],
                            .dk = d[1],
                            .dv = d[2]});
    return d;
  }
  Variables composite(const Variables& in) const override {
    return rmfa_composite(in, mask_, omega_, weight_, args_);
  }

  Tensor statistics;  // of the forward kernel, once it has run

 private:
  RmfaOperands operands(const Tensors& x) const {
    return {.q = x[0],
            .k = x[1],
            .v = x[2],
            .key_valid = key_valid_,
            .query_valid = query_valid_,
            .omega = omega_,
            .weight = weight_,
            .args = args_};
  }

  Tensor omega_, weight_;
  RmfaArgs args_;
};

}  // namespace

DenominatorStatistics& DenominatorStatistics::operator+=(const DenominatorStatistics& other) {
  rows += other.rows;
  floored += other.floored;
  recomputed += other.recomputed;
  smallest_ratio = std::min(smallest_ratio, other.smallest_ratio);
  return *this;
}

DenominatorStatistics read_statistics(const Tensor& statistics) {
  if (!statistics.defined()) return {};
  const auto s = statistics.to_vector<double>();
  return {static_cast<int64_t>(s[0]), static_cast<int64_t>(s[1]), static_cast<int64_t>(s[2]), s[3]};
}

Variable rmfa(const Variable& q, const Variable& k, const Variable& v, const AttentionMask& mask,
              const Tensor& omega, const Tensor& weight, const RmfaArgs& given,
              Tensor* statistics) {
  check_qkv("rmfa", q, k, v, mask);
  RmfaArgs args = given;
  args.causal = mask.causal;
  int64_t projections = 0;
  for (size_t l = 0; l < args.levels.size(); ++l) {
    check(l == 0 || args.levels[l] <= args.levels[l - 1], "[rmfa] levels must not grow");
    projections += args.levels[l];
  }
  check(omega.defined() && weight.defined() && omega.is_contiguous() && weight.is_contiguous(),
        "[rmfa] omega and weight must be defined and contiguous");
  check((omega.rank() == 2 || (omega.rank() == 3 && omega.size(0) == q.size(1))) &&
            omega.size(-2) == q.size(3) && omega.size(-1) >= projections,
        "[rmfa] omega {} must be (d = {}, P >= {}), or with H = {} in front", omega.shape(),
        q.size(3), projections, q.size(1));
  const int64_t features = args.levels.empty() ? 0 : args.levels[0];
  check(weight.rank() == 1 && weight.size(0) >= features,
        "[rmfa] weight {} must have one entry per feature ({})", weight.shape(), features);
  check_same_kind("rmfa", q.value(), omega);
  check_same_kind("rmfa", q.value(), weight);
  if (const Tensor& layout = args.layout; layout.defined())
    check(layout.shape() == Shape{kRmfaLayout} && layout.dtype() == DType::float64 &&
              layout.is_contiguous() && layout.device() == q.device() &&
              std::ssize(args.levels) <= kRmfaLayoutLevels,
          "[rmfa] layout must be {} float64 on {} for at most {} levels, is {} {} on {} for {}",
          kRmfaLayout, text(q.device()), kRmfaLayoutLevels, name(layout.dtype()), layout.shape(),
          text(layout.device()), args.levels.size());
  const auto op = std::make_shared<Rmfa>(mask, omega, weight, std::move(args));
  const Variable out = apply_fused(op, {q, k, v})[0];
  if (statistics && op->statistics.defined()) *statistics = op->statistics;
  return out;
}

}  // namespace macgrad
