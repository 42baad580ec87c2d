// Linear attention (nn/README.md, equation (16)): the map, the floor of denominators (18) and its
// statistics around one op, and decoding from sums of constant size.
#include <algorithm>
#include <cmath>

#include "macgrad/nn/attention_core.h"

namespace macgrad::nn {

namespace {

constexpr size_t kMostPending = 256;

// log φ with κ as one more feature: log κ on the side of queries, 0 on that of keys.
Variable with_constant(const Variable& log_features, double constant, Side side) {
  if (constant == 0.0) return log_features;
  const double value = side == Side::query ? std::log(constant) : 0.0;
  return concat({log_features, Variable(Tensor::full(log_features.shape().with(3, 1), value,
                                                     log_features.dtype(), log_features.device()))},
                3);
}

}  // namespace

LinearAttentionCore::LinearAttentionCore(Module* parent, std::string name,
                                         const AttentionSettings& settings,
                                         const AttentionSite& site)
    : AttentionCore(parent, std::move(name)),
      logit_scale(this, "logit_scale", resolved_logit_scale(settings, site.head_dim),
                  settings.train_logit_scale, settings.kernel.radius(), site.head_dim),
      delta_(settings.denominator),
      map_(make_feature_map(this, "features", settings, site, &logit_scale)) {}

Variable LinearAttentionCore::forward(const AttentionInputs& in, DecodeState* state) {
  const auto in_scope = scope();
  if (!map_->row_by_row() && (state || in.mask.causal))
    throw Error(
        "[linear_attention] {} needs all keys at once, so it has no causal form and no decoding",
        map_->describe());
  if (state) return in_scope.result(decode(in, *state));
  Tensor seen;
  const Variable out = map_->attend(in.q, in.k, in.v, in.log_weight, in.mask, delta_, &seen);
  // Reading waits for the device, so it is put off; long decoding must not pile them up.
  if (seen.defined()) pending_.push_back(seen);
  if (pending_.size() == kMostPending) settle();
  return in_scope.result(out);
}

// New keys join sums of constant size, and queries read them, so that a step costs O(D·d) per head
// however long the sequence is. Several new positions of a causal attention are taken one by one.
Variable LinearAttentionCore::decode(const AttentionInputs& in, DecodeState& state) {
  const int64_t T = in.q.size(2);
  check(in.k.defined() || state.length() > 0, "[linear_attention] the state is empty: {}",
        "the first call must bring keys");
  check(!in.mask.causal || (in.k.defined() && in.k.size(2) == T),
        "[linear_attention] causal decoding needs as many new keys as queries ({}), got {}", T,
        in.k.defined() ? in.k.size(2) : 0);
  const Tensor key_valid = in.k.defined() ? valid_new_keys(in, &state) : Tensor();
  if (in.mask.causal && T > 1) {
    Variables rows;
    for (int64_t t = 0; t < T; ++t) {
      const auto at = [&](const Variable& x) { return slice(x, 2, t, t + 1); };
      AttentionInputs one{at(in.q), at(in.k), at(in.v), {}, {}};
      if (in.log_weight.defined()) one.log_weight = at(in.log_weight);
      if (key_valid.defined()) one.mask.key_valid = key_valid.slice(1, t, t + 1);
      if (in.mask.query_valid.defined())
        one.mask.query_valid = in.mask.query_valid.slice(1, t, t + 1);
      rows.push_back(decode(one, state));
    }
    return concat(rows, 2);
  }
  // Features and values of low precision are summed, and the sums divided, in the wider one.
  const DType wide = compute_dtype(in.q.dtype());
  const auto mapped = [&](const Variable& x, const Tensor& valid, Side side) {
    MappedRows rows = map_->map(without_invalid(x, valid), side, valid);
    if (rows.features.defined()) rows.features = cast(rows.features, wide);
    if (map_->log_features()) rows.features = with_constant(rows.features, rows.constant, side);
    return rows;
  };
  if (in.k.defined()) {
    MappedRows keys = mapped(in.k, key_valid, Side::key);
    const Variable ones(Tensor::full(in.v.shape().with(3, 1), 1.0, wide, in.v.device()));
    const Variable values = concat({cast(in.v, wide), ones}, 3);
    state.add(keys.features, map_->log_features(), sum_of_weights(keys.log_weight, in.log_weight),
              without_invalid(values, key_valid));
  }
  const MappedRows queries = mapped(in.q, in.mask.query_valid, Side::query);
  const int64_t dv = state.sums().size(3) - 1;
  const bool quotient = map_->normaliser() == Normaliser::quotient;
  Variable sums;  // [numerator, denominator] (B,H,T|1,dv+1)
  if (map_->log_features()) {
    const Variable b =
        add(cast(queries.features, DType::float64), transpose(Variable(state.shift()), 2, 3));
    const Variable largest = max(b, 3, true).first;
    sums = matmul(cast(exp(sub(b, largest)), wide), Variable(state.products()));
    if (!quotient) sums = mul(sums, cast(exp(largest), wide));
  } else {
    sums = mul(Variable(state.sums()), queries.constant);
    if (queries.features.defined())
      sums = add(matmul(queries.features, Variable(state.products())), sums);
  }
  if (!quotient) {
    Variable out = mul(slice(sums, 3, 0, dv), map_->factor());
    if (!map_->log_features() && state.shift().defined())
      out = mul(out, cast(exp(Variable(state.shift())), wide));
    return without_invalid(cast(out, in.q.dtype()), in.mask.query_valid);
  }
  Variable den = slice(sums, 3, dv, dv + 1);
  const double floor = delta_ * map_->value_at_zero();
  if (floor > 0.0) {  // (18)
    const Variable lowest = mul(slice(Variable(state.sums()), 3, dv, dv + 1), floor);
    den = where(less(den.value(), lowest.value()), lowest, den);
  }
  // Where nothing is visible the numerator is 0 as well.
  const Tensor blind = equal(state.count(), 0.0);
  Variable out = cast(div(slice(sums, 3, 0, dv), masked_fill(den, blind, 1.0)), in.q.dtype());
  // Without features the sums are the same for all queries.
  if (out.size(2) != T) out = expand(out, out.shape().with(2, T));
  return without_invalid(out, in.mask.query_valid);
}

void LinearAttentionCore::on_begin_step(uint32_t, int64_t) {
  pending_.clear();
  settled_ = {};
}

void LinearAttentionCore::settle() const {
  for (const Tensor& one : pending_) settled_ += read_statistics(one);
  pending_.clear();
}

DenominatorStatistics LinearAttentionCore::statistics() const {
  settle();
  return settled_;
}

std::string LinearAttentionCore::describe() const {
  std::string denominator = "not floored";
  if (const double at_zero = map_->value_at_zero(); delta_ > 0.0 && at_zero > 0.0)
    denominator = fmt::format("floored at {:.3g} per visible key", delta_ * at_zero);
  return fmt::format("linear attention, {}, {}, denominator {}", map_->describe(),
                     logit_scale.describe(), denominator);
}

Tensors pending_statistics(Module& model) {
  Tensors all;
  for (Module* m : model.modules())
    if (const auto* core = dynamic_cast<const LinearAttentionCore*>(m))
      all.insert(all.end(), core->pending_statistics().begin(), core->pending_statistics().end());
  return all;
}

DenominatorStatistics denominator_statistics(Module& model) {
  DenominatorStatistics total;
  for (Module* m : model.modules())
    if (const auto* core = dynamic_cast<const LinearAttentionCore*>(m)) total += core->statistics();
  return total;
}

}  // namespace macgrad::nn
