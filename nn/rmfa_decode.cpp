// RMFA with a decoding state: new keys join the sums of nn/README.md, equation (16), queries read
// them, so that a step costs O(D·d) a head whatever came before. Several new places at once are
// attended among themselves through the masked product, as inside a chunk of the causal kernel.
#include "macgrad/autograd/ops.h"
#include "macgrad/nn/attention_core.h"

namespace macgrad::nn {

Variable RmfaCore::decode(const Variable& q_in, const Variable& k_in, const Variable& v,
                          const Mask& mask, DecodeState& state, const FeatureDraw& draw,
                          const RmfaArgs& args) {
  const bool has_features = args.linear > 0 || (!args.levels.empty() && args.levels[0] > 0);
  // Features and values of low precision are summed, and the sums divided, in the wider one.
  const DType wide = compute_dtype(q_in.dtype());
  const auto phi = [&](const Variable& x) {
    return has_features ? cast(maclaurin_features(x, draw.omega, draw.weight, args), wide)
                        : Variable();
  };
  const bool brings_keys = k_in.defined();
  check(brings_keys || state.length() > 0, "[rmfa] the state is empty: {}",
        "the first call must bring keys");
  const int64_t T = q_in.size(2), dv = brings_keys ? v.size(3) : state.sums().size(3) - 1;
  check(!mask.causal || (brings_keys && k_in.size(2) == T),
        "[rmfa] causal decoding needs as many new keys as queries ({}), got {}", T,
        brings_keys ? k_in.size(2) : 0);
  // A single new place sees itself and all before it.
  const bool among_new = mask.causal && T > 1;

  Variable phi_k, values;
  Tensor new_valid;  // (B, n) of the keys at hand
  if (brings_keys) {
    const int64_t n = k_in.size(2);
    Variable k = k_in;
    values = concat(
        {cast(v, wide), Variable(Tensor::full(v.shape().with(3, 1), 1.0, wide, v.device()))}, 3);
    if (mask.key_valid.defined()) {
      const int64_t end = mask.key_valid.size(1);
      new_valid = mask.key_valid.slice(1, end - n, end).contiguous();
      k = without_invalid(k, new_valid);
      values = without_invalid(values, new_valid);
    }
    phi_k = phi(k);
    if (!among_new) state.add(phi_k, values);
  }

  const Variable q = without_invalid(q_in, mask.query_valid);
  const Variable phi_q = phi(q);
  // [numerator, denominator] (B,H,T,dv+1) and visible keys (B,H,T|1,1).
  Variable sums, count;
  const auto plus = [](const Variable& a, const Variable& b) {
    return a.defined() ? add(a, b) : b;
  };
  if (state.length() > 0) {
    const Variable total(state.sums());
    sums = mul(total, args.constant);
    if (has_features) sums = add(matmul(phi_q, Variable(state.products())), sums);
    count = slice(total, 3, dv, dv + 1);
  }
  if (among_new) {
    const Tensor shown = visible({new_valid, Tensor(), true}, T, T, q.device());
    Variable kernel(
        Tensor::full(Shape{q.size(0), q.size(1), T, T}, args.constant, wide, q.device()));
    if (has_features) kernel = add(kernel, matmul(phi_q, transpose(phi_k, 2, 3)));
    sums = plus(sums, matmul(where(shown, kernel, 0.0), values));
    count = plus(count, sum(Variable(shown.to(wide)), {3}, true));
    state.add(phi_k, values);
  }

  Variable den = slice(sums, 3, dv, dv + 1);
  if (floor_ > 0.0) {  // (18)
    const Variable lowest = mul(count, floor_);
    den = where(less(den.value(), lowest.value()), lowest, den);
  }
  // Where nothing is visible the numerator is 0 as well.
  const Tensor blind = equal(count.value(), 0.0);
  const Variable out = cast(div(slice(sums, 3, 0, dv), masked_fill(den, blind, 1.0)), q.dtype());
  return without_invalid(out, mask.query_valid);
}

}  // namespace macgrad::nn
