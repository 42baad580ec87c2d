// When random feature maps draw, and linear attention with any map.
#include "macgrad/nn/feature_map.h"

#include <charconv>

namespace macgrad::nn {

Variable FeatureMap::attend(const Variable& q, const Variable& k, const Variable& v,
                            const Variable& log_weight, const AttentionMask& mask, double delta,
                            Tensor* statistics) {
  // NaN at padding must not reach the gradient of the map.
  const auto mapped = [&](const Variable& x, Side side, const Tensor& valid) {
    MappedRows rows = map(without_invalid(x, valid), side, valid);
    if (!rows.features.defined())
      rows.features = Variable(Tensor::zeros(x.shape().with(3, 0), x.dtype(), x.device()));
    return rows;
  };
  const MappedRows mapped_q = mapped(q, Side::query, mask.query_valid);
  const MappedRows mapped_k = mapped(k, Side::key, mask.key_valid);
  LinearAttentionArgs args;
  args.log_features = log_features();
  args.constant = mapped_k.constant;
  args.floor = delta * value_at_zero();
  args.normaliser = normaliser();
  args.factor = factor();
  return linear_attention(mapped_q.features, mapped_k.features, v,
                          sum_of_weights(mapped_k.log_weight, log_weight), mask, args, statistics);
}

Variable sum_of_weights(const Variable& a, const Variable& b) {
  if (!a.defined() || !b.defined()) return a.defined() ? a : b;
  return add(cast(a, DType::float64), cast(b, DType::float64));
}

RedrawPolicy RedrawPolicy::parse(const std::string& text) {
  if (text == "step") return {Kind::step, 1};
  if (text == "epoch") return {Kind::epoch, 1};
  if (text == "never") return {Kind::never, 1};
  const std::string every = "every:";
  if (text.starts_with(every)) {
    int64_t k = 0;
    const auto [end, code] =
        std::from_chars(text.data() + every.size(), text.data() + text.size(), k);
    if (code == std::errc{} && end == text.data() + text.size() && k >= 1) return {Kind::every, k};
  }
  throw Error("redraw policy '{}' is unknown; use step, epoch, never or every:K with K >= 1", text);
}

std::string RedrawPolicy::text() const {
  switch (kind) {
    case Kind::step:
      return "step";
    case Kind::epoch:
      return "epoch";
    case Kind::every:
      return fmt::format("every:{}", interval);
    case Kind::never:
      break;
  }
  return "never";
}

int64_t RedrawPolicy::draw_number(int64_t step, int64_t epoch) const {
  switch (kind) {
    case Kind::step:
      return step;
    case Kind::epoch:
      return epoch;
    case Kind::every:
      return step / interval;
    case Kind::never:
      break;
  }
  return 0;
}

RandomFeatures::RandomFeatures(Module* parent, std::string name, const LogitScale* scale,
                               RedrawPolicy redraw, int eval_draws, ModelRandom& random)
    : FeatureMap(parent, std::move(name), scale),
      redraw_(redraw),
      eval_draws_(eval_draws),
      seed_(random.seed()),
      stream_(random.next_feature_stream()) {
  require(eval_draws >= 1, "[features] eval_draws is {} and must be at least 1", eval_draws);
  require(eval_draws == 1 || redraw_.kind != RedrawPolicy::Kind::never,
          "[features] {} evaluation draws with redraw policy never: there is one draw for all; "
          "redraw in training or use 1",
          eval_draws);
}

std::string RandomFeatures::describe_draws() const {
  return fmt::format("redraw {}, {} evaluation draw{}", redraw_.text(), eval_draws_,
                     eval_draws_ > 1 ? "s" : "");
}

void RandomFeatures::on_begin_step(uint32_t step, int64_t epoch) {
  const auto number = static_cast<uint32_t>(redraw_.draw_number(step, epoch));
  if (number != training_number()) redraw(number);
}

void RandomFeatures::on_eval_draw(int index) {
  require(index >= 0 && index < eval_draws_,
          "[features] evaluation draw {} was requested, but there are {}", index, eval_draws_);
  eval_index_ = index;
}

}  // namespace macgrad::nn
