// Softmax attention and RMFA as fused ops, with their composites.

#include "macgrad/autograd/attention.h"

#include <cmath>
#include <limits>
#include <memory>

#include "macgrad/autograd/attention_support.h"
#include "macgrad/autograd/fused.h"
#include "macgrad/core/step_graph.h"

namespace macgrad {
namespace {

struct Visibility {
  Tensor shown;   // (B|1, 1, T, S) bool, undefined: everything
  Tensor hidden;  // its complement
  Tensor count;   // (B|1, 1, T, 1) floating: visible keys of each query
};

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

}  // namespace

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

Variable softmax_attention(const Variable& q, const Variable& k, const Variable& v,
                           const AttentionMask& mask, double scale, double dropout_p,
                           const DrawKey& key) {
  check_qkv("softmax_attention", q, k, v, mask);
  check(dropout_p >= 0.0 && dropout_p < 1.0, "[softmax_attention] dropout {} must be in [0, 1)",
        dropout_p);
  const SoftmaxAttentionArgs args{scale, mask.causal, dropout_p, key};
  const Tensor key_valid = packed(mask.key_valid);
  const Tensor query_valid = packed(mask.query_valid);
  const int64_t B = q.size(0), H = q.size(1), T = q.size(2), dv = v.size(3);
  FusedOp op;
  op.name = "softmax_attention";
  op.attributes = {{"scale", fmt::format("{}", scale)},
                   {"causal", mask.causal ? "true" : "false"},
                   {"dropout", fmt::format("{}", dropout_p)}};
  op.constants = {{key_valid, "softmax_attention's key mask"},
                  {query_valid, "softmax_attention's query mask"}};
  op.supports = [=](const Tensors& in) {
    const Tensor none;
    return kernels::softmax_attention_forward.supports(
        in[0].device(), in[0], in[1], in[2], key_valid, query_valid, args, none, none, Scratch{});
  };
  op.supports_backward = [=](const Tensors& in) {
    const Tensor none;
    return kernels::softmax_attention_backward.supports(in[0].device(), in[0], in[1], in[2],
                                                        key_valid, query_valid, none, none, none,
                                                        args, none, none, none, Scratch{});
  };
  op.forward = [=](const Tensors& in) {
    Tensor out = empty_heads(B, H, T, dv, in[0]);
    Tensor statistics = Tensor::empty({B, H, T, 2}, compute_dtype(in[0].dtype()), in[0].device());
    kernels::softmax_attention_forward(unit_stride(in[0]), unit_stride(in[1]), unit_stride(in[2]),
                                       key_valid, query_valid, args, out, statistics, Scratch{});
    return FusedOp::Forward{{out}, {statistics}};
  };
  op.backward = [=](const Tensors& in, const FusedOp::Forward& result, const Tensors& g,
                    const std::vector<bool>&) {
    Tensors d;
    for (const Tensor& t : in) d.push_back(empty_heads(B, H, t.size(2), t.size(3), t));
    kernels::softmax_attention_backward(unit_stride(in[0]), unit_stride(in[1]), unit_stride(in[2]),
                                        key_valid, query_valid, result.outputs[0], result.saved[0],
                                        unit_stride(g[0]), args, d[0], d[1], d[2], Scratch{});
    return d;
  };
  op.composite = [=](const Variables& in) {
    const Variable qc = without_invalid(in[0], mask.query_valid);
    const Variable kc = without_invalid(in[1], mask.key_valid);
    const Variable vc = without_invalid(in[2], mask.key_valid);
    const Visibility seen = visibility(mask, qc, kc);
    const Variable scores = (matmul(qc, transpose(kc, -2, -1)) * scale).named("scores");
    const double lowest = std::numeric_limits<float>::lowest();
    const Variable shift = max(hide(scores.detach(), seen.hidden, lowest), 3, true).first;
    // Rows that see nothing: weights 0/1 instead of 0/0.
    const Variable e = hide(exp(hide(scores - shift, seen.hidden, 0.0)), seen.hidden, 0.0);
    const Variable total = masked_fill(sum(e, {3}, true), equal(seen.count, 0.0), 1.0);
    const Variable weights = (e / total).named("weights");
    return Variables{matmul(dropout(contiguous(weights), dropout_p, key), vc)};
  };
  return apply_fused(op, {q, k, v})[0];
}

namespace {

// The first n of the last dimension.
Tensor narrowed(const Tensor& t, int64_t n) {
  return t.size(-1) == n ? t : t.slice(t.rank() - 1, 0, n);
}

// The kernels read the layout on the device, the composites the levels beside it.
void check_not_recorded(const char* op, const RmfaArgs& args) {
  check(!args.layout.defined() || !StepGraph::recording(),
        "[{}] the composite is cut by the levels of this draw, so a recorded step would stay with "
        "them when the next draw comes; run it with --graph off, or with operands that the kernel "
        "takes",
        op);
}

}  // namespace

Variable maclaurin_features(const Variable& x, const Tensor& omega, const Tensor& weight,
                            const RmfaArgs& args) {
  check_not_recorded("maclaurin_features", args);
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
  check_not_recorded("rmfa", args);
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
        "[rmfa] weight {} must have one entry a feature ({})", weight.shape(), features);
  check_same_kind("rmfa", q.value(), omega);
  check_same_kind("rmfa", q.value(), weight);
  if (const Tensor& layout = args.layout; layout.defined())
    check(layout.shape() == Shape{kRmfaLayout} && layout.dtype() == DType::float64 &&
              layout.is_contiguous() && layout.device() == q.device() &&
              std::ssize(args.levels) <= kRmfaLayoutLevels,
          "[rmfa] layout must be {} float64 on {} for at most {} levels, is {} {} on {} for {}",
          kRmfaLayout, text(q.device()), kRmfaLayoutLevels, name(layout.dtype()), layout.shape(),
          text(layout.device()), args.levels.size());
  const Tensor key_valid = packed(mask.key_valid);
  const Tensor query_valid = packed(mask.query_valid);
  const int64_t B = q.size(0), H = q.size(1), T = q.size(2), dv = v.size(3);
  FusedOp op;
  op.name = "rmfa";
  op.attributes = {{"features", fmt::format("{}", features)},
                   {"causal", mask.causal ? "true" : "false"},
                   {"floor", fmt::format("{}", args.floor)}};
  op.constants = {{key_valid, "rmfa's key mask"},
                  {query_valid, "rmfa's query mask"},
                  {omega, "the feature draw's omega"},
                  {weight, "the feature draw's weights"},
                  {args.layout, "the feature draw's layout"}};
  const auto measured = std::make_shared<Tensor>();
  op.supports = [=](const Tensors& in) {
    const Tensor none;
    return kernels::rmfa_forward.supports(in[0].device(), in[0], in[1], in[2], key_valid,
                                          query_valid, omega, weight, args, none, none, none,
                                          Scratch{});
  };
  op.supports_backward = [=](const Tensors& in) {
    const Tensor none;
    return kernels::rmfa_backward.supports(in[0].device(), in[0], in[1], in[2], key_valid,
                                           query_valid, omega, weight, none, none, none, args, none,
                                           none, none, Scratch{});
  };
  op.forward = [=](const Tensors& in) {
    Tensor out = empty_heads(B, H, T, dv, in[0]);
    Tensor den = Tensor::empty({B, H, T}, compute_dtype(in[0].dtype()), in[0].device());
    Tensor stats = Tensor::empty({4}, DType::float64, in[0].device());
    kernels::rmfa_forward(unit_stride(in[0]), unit_stride(in[1]), unit_stride(in[2]), key_valid,
                          query_valid, omega, weight, args, out, den, stats, Scratch{});
    *measured = stats;
    return FusedOp::Forward{{out}, {den}};
  };
  op.backward = [=](const Tensors& in, const FusedOp::Forward& result, const Tensors& g,
                    const std::vector<bool>&) {
    Tensors d;
    for (const Tensor& t : in) d.push_back(empty_heads(B, H, t.size(2), t.size(3), t));
    kernels::rmfa_backward(unit_stride(in[0]), unit_stride(in[1]), unit_stride(in[2]), key_valid,
                           query_valid, omega, weight, result.outputs[0], result.saved[0],
                           unit_stride(g[0]), args, d[0], d[1], d[2], Scratch{});
    return d;
  };
  op.composite = [=](const Variables& in) { return rmfa_composite(in, mask, omega, weight, args); };
  const Variable out = apply_fused(op, {q, k, v})[0];
  if (statistics && measured->defined()) *statistics = *measured;
  return out;
}

}  // namespace macgrad
