// Linear attention on given features and its composite. Factorised, (Σ_j φ_k v̄ᵀ) and φ_q times it,
// where every query sees the same keys; through the T×S matrix of weights where it is causal, since
// the maximum that keeps a row in range is over the keys of that row alone.

#include "macgrad/autograd/linear_attention.h"

#include <cmath>
#include <limits>
#include <memory>

#include "macgrad/autograd/fused.h"
#include "macgrad/autograd/linear_attention_support.h"
#include "macgrad/autograd/ops.h"

namespace macgrad {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// exp(x - shift) where `hidden` is false, else 0. The shift is a constant; where it is -inf
// everything that it is the maximum of is 0.
Variable shifted_exp(const Variable& x, const Variable& shift, const Tensor& hidden) {
  const Variable finite = masked_fill(shift, equal(shift.value(), -kInfinity), 0.0);
  return hide(exp(hide(x - finite, hidden, 0.0)), hidden, 0.0);
}

// The largest of x over `dim` where `hidden` is false, as a constant; -inf where there is nothing.
Variable largest(const Variable& x, const Tensor& hidden, int dim) {
  return max(hide(x.detach(), hidden, -kInfinity), dim, true).first;
}

// The operands in the dtype of the sums, with zeros at hidden positions.
struct Operands {
  Variable q, k, v;     // (B,H,T,M), (B,H,S,M), (B,H,S,dv)
  Variable log_weight;  // (B,H,1,S)
  Tensor hidden_key;    // (B,1|H,1,S) bool or undefined
  Tensor hidden_query;  // (B,1,T,1) bool or undefined
};

Operands operands(const Variables& in, const AttentionMask& mask, const LinearAttentionArgs& args) {
  Operands x;
  if (mask.key_valid.defined()) x.hidden_key = not_(mask.key_valid).unsqueeze(1).unsqueeze(1);
  if (mask.query_valid.defined()) x.hidden_query = not_(mask.query_valid).unsqueeze(1).unsqueeze(3);
  const bool wide = args.log_features || in.size() > 3;
  const DType dtype = wide ? DType::float64 : compute_dtype(in[0].dtype());
  if (in.size() > 3) {
    x.log_weight = unsqueeze(in[3], 2);
    x.hidden_key = or_(x.hidden_key, equal(x.log_weight.value(), -kInfinity));
    x.log_weight = hide(x.log_weight, x.hidden_key, 0.0);
  }
  const Tensor hidden_row = x.hidden_key.defined() ? x.hidden_key.transpose(2, 3) : Tensor();
  x.q = hide(cast(in[0], dtype), x.hidden_query, 0.0);
  x.k = hide(cast(in[1], dtype), hidden_row, 0.0);
  x.v = hide(cast(in[2], dtype), hidden_row, 0.0);
  if (args.log_features && args.constant > 0) {
    // κ is one more feature: log κ of the query, 0 of the key.
    const auto append = [&](Variable& phi, double value) {
      Shape shape = phi.shape();
      shape[3] = 1;
      phi = concat({phi, Variable(Tensor::full(shape, value, dtype, phi.device()))}, 3);
    };
    append(x.q, std::log(args.constant));
    append(x.k, 0.0);
  }
  return x;
}

// 1 where `hidden` is false, else 0.
Variable visible_ones(const Shape& shape, const Variable& like, const Tensor& hidden) {
  return hide(Variable(Tensor::full(shape, 1.0, like.dtype(), like.device())), hidden, 0.0);
}

struct Sums {
  Variable num;    // (B,H,T,dv), times exp(-shift)
  Variable den;    // (B,H,T,1), likewise
  Variable total;  // Σ_j w_j, likewise, broadcasts to den; 0 without a visible key
  Variable shift;  // broadcasts to den; undefined: 0
};

// Every query sees the same keys.
Sums full_sums(const Operands& x, const LinearAttentionArgs& args) {
  const Tensor hidden_row = x.hidden_key.defined() ? x.hidden_key.transpose(2, 3) : Tensor();
  Variable w = visible_ones({x.k.size(0), x.k.size(1), x.k.size(2), 1}, x.k, hidden_row);
  Sums s;
  Variable phi_q = x.q, phi_k, values = x.v;
  double constant = args.constant;
  if (args.log_features) {
    // c, one number per feature, and s, one per query; nn/README.md, other maps.
    const Variable a = x.log_weight.defined() ? x.k + transpose(x.log_weight, 2, 3) : x.k;
    const Variable c = largest(a, hidden_row, 2);
    const Variable exponents = x.q + c;
    s.shift = largest(exponents, {}, 3);
    phi_q = shifted_exp(exponents, s.shift, {});
    phi_k = shifted_exp(a, c, hidden_row);
    constant = 0.0;
  } else {
    if (x.log_weight.defined()) {
      const Variable l = transpose(x.log_weight, 2, 3);
      s.shift = largest(l, hidden_row, 2);
      w = shifted_exp(l, s.shift, hidden_row);
    }
    phi_k = x.k * w;
    values = x.v * w;
  }
  s.total = sum(w, {2}, true);
  phi_q.named("phi_q");
  phi_k.named("phi_k");
  const Variable state = matmul(transpose(phi_k, 2, 3), x.v).named("state");
  s.num = matmul(phi_q, state);
  s.den = matmul(phi_q, transpose(sum(phi_k, {2}, true), 2, 3));
  if (constant > 0) {
    s.num = s.num + constant * sum(values, {2}, true);
    s.den = s.den + constant * s.total;
  }
  return s;
}

// Query i sees keys up to i + S - T.
Sums causal_sums(const Operands& x, const LinearAttentionArgs& args) {
  const int64_t T = x.q.size(2), S = x.k.size(2);
  const Tensor hidden = or_(x.hidden_key, not_(not_ahead(T, S, x.q.device())));
  Sums s;
  Variable w = visible_ones({1, 1, T, S}, x.q, hidden);
  Variable weights;  // (B,H,T,S)
  if (args.log_features) {
    // (B,H,T,S,M)
    Variable exponents = unsqueeze(x.q, 3) + unsqueeze(x.k, 2);
    if (x.log_weight.defined()) exponents = exponents + unsqueeze(x.log_weight, 4);
    s.shift = largest(largest(exponents, hidden.unsqueeze(4), 4), {}, 3);
    weights = sum(shifted_exp(exponents, s.shift, hidden.unsqueeze(4)), {4});
    s.shift = squeeze(s.shift, 4);
  } else {
    if (x.log_weight.defined()) {
      const Variable l = expand(x.log_weight, {x.q.size(0), x.q.size(1), T, S});
      s.shift = largest(l, hidden, 3);
      w = shifted_exp(l, s.shift, hidden);
    }
    weights = (matmul(x.q, transpose(x.k, 2, 3)) + args.constant) * w;
  }
  s.total = sum(w, {3}, true);
  weights.named("weights");
  s.num = matmul(weights, x.v);
  s.den = sum(weights, {3}, true);
  return s;
}

Variables linear_attention_composite(const Variables& in, const AttentionMask& mask,
                                     const LinearAttentionArgs& args) {
  const Operands x = operands(in, mask, args);
  const DType dtype = in[0].dtype();
  // Zeros; there is no maximum over nothing.
  if (x.v.numel() == 0 || x.q.size(2) == 0)
    return {cast(matmul(matmul(x.q, transpose(x.k, 2, 3)), x.v), dtype)};
  Sums s = mask.causal ? causal_sums(x, args) : full_sums(x, args);
  const Tensor blind = or_(equal(s.total.value(), 0.0), x.hidden_query);
  Variable out = s.num.named("numerator");
  if (args.normaliser == Normaliser::quotient) {
    Variable safe = s.den.named("denominator");
    if (args.floor > 0) {
      const Variable lowest = s.total * args.floor;
      safe = where(less(safe.value(), lowest.value()), lowest, safe);
    }
    out = out / masked_fill(safe, blind, 1.0);
  } else {
    out = s.shift.defined() ? out * (exp(s.shift) * args.factor) : out * args.factor;
  }
  return {cast(masked_fill(out, blind, 0.0), dtype)};
}

class LinearAttention : public WeightedAttentionOp {
 public:
  LinearAttention(const AttentionMask& given, const LinearAttentionArgs& args, int64_t features)
      : WeightedAttentionOp(given), args_(args), features_(features) {}

  const char* name() const override { return "linear_attention"; }
  Attributes attributes() const override {
    return {
        {"features", features_}, {"log_features", args_.log_features}, {"causal", mask_.causal}};
  }
  std::vector<SavedTensor> constants() const override { return mask_constants(); }
  Support supports(const Tensors& x) const override {
    return kernels::linear_attention_forward.supports(x[0].device(), operands(x));
  }
  Support supports_backward(const Tensors& x) const override {
    return kernels::linear_attention_backward.supports(x[0].device(), operands(x));
  }
  Result forward(const Tensors& x) override {
    const Tensors rows = rows_with_weight(x);
    const Tensor out = output_of(x);
    const Tensor sums = Tensor::empty(out.shape().with(3, 3), DType::float64, out.device());
    statistics = Tensor::empty({4}, DType::float64, out.device());
    kernels::linear_attention_forward(
        {.in = operands(rows), .out = out, .sums = sums, .stats = statistics});
    return {{out}, {sums}};
  }
  Tensors backward(const Tensors& x, const Result& result, const Tensors& g,
                   const std::vector<bool>&) const override {
    const Tensors rows = rows_with_weight(x);
    Tensors d = gradients_with_weight(x);
    kernels::linear_attention_backward({.in = operands(rows),
                                        .out = result.outputs[0],
                                        .sums = result.saved[0],
                                        .grad = unit_stride(g[0]),
                                        .dphi_q = d[0],
                                        .dphi_k = d[1],
                                        .dv = d[2],
                                        .dlog_weight = weight_of(d)});
    return d;
  }
  Variables composite(const Variables& in) const override {
    return linear_attention_composite(in, mask_, args_);
  }

 private:
  LinearAttentionOperands operands(const Tensors& x) const {
    return {.phi_q = x[0],
            .phi_k = x[1],
            .v = x[2],
            .log_weight = weight_of(x),
            .key_valid = key_valid_,
            .query_valid = query_valid_,
            .args = args_,
            .causal = mask_.causal};
  }

  LinearAttentionArgs args_;
  int64_t features_;
};

}  // namespace

Variable linear_attention(const Variable& phi_q, const Variable& phi_k, const Variable& v,
                          const Variable& log_weight, const AttentionMask& mask,
                          const LinearAttentionArgs& args, Tensor* statistics) {
  const char* op = "linear_attention";
  check_qkv(op, phi_q, phi_k, v, mask);
  check(args.constant >= 0.0 && std::isfinite(args.constant),
        "[{}] the constant {} must be a finite number >= 0", op, args.constant);
  check_floor(op, args);
  check(args.factor == 1.0 || args.normaliser == Normaliser::none,
        "[{}] factor {} cancels in the quotient; use it with Normaliser::none", op, args.factor);
  check(phi_q.size(3) > 0 || args.constant > 0.0,
        "[{}] the kernel is 0: phi_q {} has no feature and the constant is 0", op, phi_q.shape());
  if (phi_q.dtype() == DType::bfloat16) {
    const auto wide = [](const Variable& x) { return cast(x, DType::float32); };
    return cast(
        linear_attention(wide(phi_q), wide(phi_k), wide(v), log_weight, mask, args, statistics),
        DType::bfloat16);
  }
  Variables in{phi_q, phi_k, v};
  if (log_weight.defined()) in.push_back(wide_log_weight(op, log_weight, phi_k));
  const auto fused = std::make_shared<LinearAttention>(mask, args, phi_q.size(3));
  const Variable out = apply_fused(fused, in)[0];
  if (statistics && fused->statistics.defined()) *statistics = fused->statistics;
  return out;
}

}  // namespace macgrad
