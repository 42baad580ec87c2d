// RMFA (nn/README.md, equation (16)): the draw, the denominator policy (18) and its statistics
// around the rmfa op.
#include <algorithm>
#include <cmath>
#include <limits>

#include "macgrad/nn/attention_core.h"

namespace macgrad::nn {

namespace {

constexpr size_t kMostPending = 256;

FeatureSettings feature_settings(const AttentionSettings& settings, int64_t heads,
                                 int64_t head_dim) {
  FeatureSettings f;
  f.method = settings.draws;
  f.features = settings.features;
  f.head_dim = head_dim;
  f.p = settings.p;
  f.logit_scale = settings.logit_scale;
  f.heads = settings.draws_per_head ? heads : 1;
  return f;
}

void merge(RmfaStatistics& total, const RmfaStatistics& one) {
  total.floored += one.floored;
  total.smallest_ratio = std::min(total.smallest_ratio, one.smallest_ratio);
}

}  // namespace

RmfaCore::RmfaCore(Module* parent, std::string name, const AttentionSettings& settings,
                   int64_t heads, int64_t head_dim, ModelRandom& random)
    : AttentionCore(parent, std::move(name)),
      logit_scale(this, "logit_scale", settings.logit_scale, settings.train_logit_scale,
                  settings.kernel.radius(), head_dim),
      features(this, "features", settings.kernel, feature_settings(settings, heads, head_dim),
               settings.redraw, settings.eval_draws, random),
      settled_(read_statistics(Tensor())) {
  require(settings.floor >= 0.0 && std::isfinite(settings.floor),
          "[rmfa] the floor of denominators is {}; use a positive number, or 0 for none",
          settings.floor);
  const double at_zero = features.kernel().coefficient(0);
  floor_ = settings.floor * at_zero;
  no_floor_at_zero_ = settings.floor > 0.0 && at_zero == 0.0;
}

Variable RmfaCore::forward(const Variable& q, const Variable& k, const Variable& v,
                           const Mask& mask, DecodeState* state) {
  const auto in_scope = scope();
  const FeatureDraw& draw = features.current(q.dtype(), q.device());
  RmfaArgs args;
  args.levels = draw.levels;
  args.constant = draw.constant;
  args.linear = draw.linear;
  args.floor = floor_;
  args.layout = draw.layout;
  const Tensor scale_of_draw = draw.layout.defined()
                                   ? draw.layout.slice(0, kRmfaLayoutScale, kRmfaLayoutScale + 1)
                                   : Tensor();
  const Variable scaled = logit_scale.apply(q, draw.settings.logit_scale, scale_of_draw);
  if (state) return in_scope.result(decode(scaled, k, v, mask, *state, draw, args));
  Tensor seen;
  const Variable out = rmfa(scaled, k, v, mask, draw.omega, draw.weight, args, &seen);
  // Reading waits for the device, so it is put off; long decoding must not pile them up.
  if (seen.defined()) pending_.push_back(seen);
  if (pending_.size() == kMostPending) settle();
  return in_scope.result(out);
}

void RmfaCore::on_begin_step(uint32_t, int64_t) {
  pending_.clear();
  settled_ = read_statistics(Tensor());
  if (logit_scale.trained()) features.set_logit_scale(logit_scale.value());
}

void RmfaCore::settle() const {
  for (const Tensor& one : pending_) merge(settled_, read_statistics(one));
  pending_.clear();
}

RmfaStatistics RmfaCore::statistics() const {
  settle();
  return settled_;
}

std::string RmfaCore::describe() const {
  const FeatureDraw& draw = features.training_draw();
  const FeatureSettings& f = draw.settings;
  std::string denominator =
      floor_ > 0.0 ? fmt::format("floored at {:.3g} a visible key", floor_) : std::string("none");
  if (no_floor_at_zero_) denominator += " (f(0) = 0)";
  return fmt::format(
      "rmfa {}, D {} ({} projections), draws {}{}, p {:.4g}, redraw {}, {} evaluation draw{}, "
      "logit scale {:.4g}{}, denominator {}",
      features.kernel().name(), f.features, draw.projections(), draw_method_name(f.method),
      f.heads > 1 ? " a head" : "", f.p, features.redraw_policy().text(), features.eval_draws(),
      features.eval_draws() > 1 ? "s" : "", logit_scale.value(),
      logit_scale.trained() ? " (trained)" : "", denominator);
}

Tensors pending_statistics(Module& model) {
  Tensors all;
  for (Module* m : model.modules())
    if (const auto* core = dynamic_cast<const RmfaCore*>(m))
      all.insert(all.end(), core->pending_statistics().begin(), core->pending_statistics().end());
  return all;
}

RmfaStatistics rmfa_statistics(Module& model) {
  RmfaStatistics total = read_statistics(Tensor());
  for (Module* m : model.modules())
    if (const auto* core = dynamic_cast<const RmfaCore*>(m)) merge(total, core->statistics());
  return total;
}

}  // namespace macgrad::nn
