// When a feature map draws, and what it keeps of a draw.
#include "macgrad/nn/feature_map.h"

#include <charconv>
#include <cmath>
#include <utility>

#include "macgrad/core/kernels.h"
#include "macgrad/core/step_graph.h"
#include "macgrad/nn/captured_draws.h"

namespace macgrad::nn {

namespace {

constexpr double kScaleTolerance = 0.05;

// The last dimension made `width` long with zeros.
Tensor widened(const Tensor& t, int64_t width) {
  const int last = t.rank() - 1;
  Shape shape = t.shape();
  shape[last] = width;
  const Tensor wide = Tensor::zeros(shape, t.dtype());
  wide.slice(last, 0, t.size(last)).copy_from(t);
  return wide;
}

// Without what was widened, and without a place.
FeatureDraw on_cpu(const FeatureDraw& draw) {
  const auto exact = [](const Tensor& t, int64_t n) {
    return t.slice(t.rank() - 1, 0, n).contiguous().to(kCpu);
  };
  FeatureDraw result = draw;
  result.omega = exact(draw.omega, draw.projections());
  result.weight = exact(draw.weight, draw.levels.empty() ? 0 : draw.levels[0]);
  result.layout = Tensor();
  return result;
}

Tensor layout_of(const FeatureDraw& draw) {
  std::vector<double> layout{draw.constant, draw.linear, draw.settings.logit_scale};
  layout.insert(layout.end(), draw.levels.begin(), draw.levels.end());
  layout.resize(static_cast<size_t>(kRmfaLayout), 0.0);
  return Tensor::from_vector(layout);
}

Tensor to_tensor(const FeatureDraw& draw) {
  return Tensor::from_vector(to_record(draw));
}

}  // namespace

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

RandomMaclaurinFeatures::RandomMaclaurinFeatures(Module* parent, std::string name,
                                                 DotProductKernel kernel,
                                                 const FeatureSettings& settings,
                                                 RedrawPolicy redraw, int eval_draws,
                                                 ModelRandom& random)
    : Module(parent, std::move(name)),
      kernel_(std::move(kernel)),
      redraw_(redraw),
      eval_draws_(eval_draws),
      next_scale_(settings.logit_scale),
      draw_(draw_features(kernel_, settings,
                          DrawKey{random.seed(), random.next_feature_stream(), 0, 0})),
      record_(this, "draw", to_tensor(draw_)) {
  require(eval_draws >= 1, "[features] eval_draws is {} and must be at least 1", eval_draws);
  require(eval_draws == 1 || redraw_.kind != RedrawPolicy::Kind::never,
          "[features] {} evaluation draws with redraw policy never: there is one draw for all; "
          "redraw in training or use 1",
          eval_draws);
}

void RandomMaclaurinFeatures::take(FeatureDraw draw, Device device) const {
  draw_ = std::move(draw);
  const DrawBounds bounds = draw_bounds(kernel_, draw_.plan);
  if (!StepGraph::available(device) || draw_.projections() > bounds.projections ||
      draw_.weight.numel() > bounds.features || std::ssize(draw_.levels) > kRmfaLayoutLevels) {
    draw_.omega = draw_.omega.to(device);
    draw_.weight = draw_.weight.to(device);
    return;
  }
  const Tensor omega = widened(draw_.omega, bounds.projections);
  const Tensor weight = widened(draw_.weight, bounds.features);
  const Tensor layout = layout_of(draw_);
  if (!place_.omega.defined() || !(place_.bounds == bounds) ||
      place_.omega.dtype() != omega.dtype() || !(place_.omega.device() == device)) {
    place_ = {place_.number + 1, bounds,
              omega.to(device),  weight.to(device),
              layout.to(device), feature_law(kernel_, draw_.settings, draw_.plan).to(device)};
  } else {
    place_.omega.copy_from(omega);
    place_.weight.copy_from(weight);
    place_.layout.copy_from(layout);
  }
  draw_.omega = place_.omega;
  draw_.weight = place_.weight;
  draw_.layout = place_.layout;
}

const FeatureDraw& RandomMaclaurinFeatures::current(DType dtype, Device device) const {
  // Each replay of the step that is being recorded makes its own.
  if (!StepGraph::recording()) make_draw();
  // A model trained on one draw alone fits that draw, and fails on others.
  const bool fixed = redraw_.kind == RedrawPolicy::Kind::never;
  if (training() && !fixed) check_step_begun();
  if (training() || fixed) return draw_on(dtype, device);
  if (eval_.empty()) eval_.resize(static_cast<size_t>(eval_draws_));
  FeatureDraw& draw = eval_[static_cast<size_t>(eval_index_)];
  if (!draw.omega.defined() || draw.omega.dtype() != dtype) {
    // Draw 0 of every step is training's; evaluation has draws 1 … eval_draws of step 0.
    DrawKey key = draw_.key;
    key.step = 0;
    key.draw = static_cast<uint32_t>(eval_index_) + 1;
    draw = draw_features(kernel_, draw_.settings, draw_.plan, key, dtype);
  }
  if (!(draw.omega.device() == device)) {
    draw.omega = draw.omega.to(device);
    draw.weight = draw.weight.to(device);
  }
  return draw;
}

const FeatureDraw& RandomMaclaurinFeatures::draw_on(DType dtype, Device device) const {
  if (draw_.omega.dtype() != dtype) {
    take(draw_features(kernel_, draw_.settings, draw_.plan, draw_.key, dtype), device);
  } else if (!(draw_.omega.device() == device)) {
    take(on_cpu(draw_), device);
  }
  return draw_;
}

std::optional<std::vector<int64_t>> RandomMaclaurinFeatures::on_capture(DType dtype,
                                                                        Device device) {
  if (draw_.omega.dtype() != dtype || !(draw_.omega.device() == device)) {
    make_draw();
    draw_on(dtype, device);
  }
  return recorded_part();
}

void RandomMaclaurinFeatures::on_captured_step(CapturedDraws& draws) {
  const auto live = live_draw();
  if (!live) return;
  draws.laws.push_back(live->law);
  draws.omegas.push_back(live->omega);
  draws.weights.push_back(live->weight);
  draws.layouts.push_back(live->layout);
  draws.args.push_back(live->args);
}

void RandomMaclaurinFeatures::redraw(const FeatureSettings& settings, const FeaturePlan& plan,
                                     uint32_t number) const {
  put_off_.reset();
  if (settings.logit_scale != draw_.settings.logit_scale) eval_.clear();
  DrawKey key = draw_.key;
  key.step = number;
  const DType dtype = draw_.omega.dtype();
  const Device device = draw_.omega.device();
  take(draw_features(kernel_, settings, plan, key, dtype), device);
  record_.set(to_tensor(draw_));
}

std::optional<std::vector<int64_t>> RandomMaclaurinFeatures::recorded_part() const {
  if (!draw_.layout.defined()) return std::nullopt;
  return std::vector<int64_t>{place_.number, draw_.linear > 0.0, drawn_in_replays()};
}

// The law is that of the plan and scale for which the place was made.
bool RandomMaclaurinFeatures::drawn_in_replays() const {
  return redraw_.kind == RedrawPolicy::Kind::step && !scale_changes_ && draw_.layout.defined();
}

std::optional<RandomMaclaurinFeatures::LiveDraw> RandomMaclaurinFeatures::live_draw() const {
  if (!drawn_in_replays()) return std::nullopt;
  DrawKey key = draw_.key;
  key.step = kLiveStep;
  return LiveDraw{place_.law, place_.omega, place_.weight, place_.layout,
                  feature_draw_args(kernel_, draw_.settings, draw_.plan, key)};
}

void RandomMaclaurinFeatures::make_draw() const {
  if (put_off_) redraw(draw_.settings, FeaturePlan(draw_.plan), *put_off_);
}

void RandomMaclaurinFeatures::set_logit_scale(double scale) {
  make_draw();
  scale_changes_ = true;
  next_scale_ = scale;
  if (std::abs(scale / draw_.plan.logit_scale - 1.0) <= kScaleTolerance) return;
  FeatureSettings settings = draw_.settings;
  settings.logit_scale = scale;
  redraw(settings, feature_plan(kernel_, settings), draw_.key.step);
}

void RandomMaclaurinFeatures::on_begin_step(uint32_t step, int64_t epoch) {
  const auto number = static_cast<uint32_t>(redraw_.draw_number(step, epoch));
  if (number == put_off_.value_or(draw_.key.step)) return;
  if (drawn_in_replays()) {
    DrawKey key = draw_.key;
    key.step = number;
    if (draw_fits(kernel_, draw_.plan, place_.bounds, key)) {
      put_off_ = number;
      // A replay writes there unseen: a backward pass of an earlier step must not read it.
      for (const Tensor& t : {place_.omega, place_.weight, place_.layout}) detail::bump(t);
      return;
    }
  }
  FeatureSettings settings = draw_.settings;
  settings.logit_scale = next_scale_;
  redraw(settings, FeaturePlan(draw_.plan), number);
}

void RandomMaclaurinFeatures::on_eval_draw(int index) {
  require(index >= 0 && index < eval_draws_,
          "[features] evaluation draw {} was asked for, but there are {}", index, eval_draws_);
  eval_index_ = index;
}

void RandomMaclaurinFeatures::on_load() {
  const Device device = draw_.omega.device();
  FeatureDraw loaded =
      from_record(kernel_, record_.value().to_vector<int64_t>(), draw_.omega.dtype());
  const FeatureSettings &theirs = loaded.settings, &own = draw_.settings;
  require(
      theirs.head_dim == own.head_dim && theirs.heads == own.heads &&
          theirs.features == own.features,
      "[features] the draw is of {} features of {} dimensions for {} heads, the model has {} of "
      "{} for {}",
      theirs.features, theirs.head_dim, theirs.heads, own.features, own.head_dim, own.heads);
  put_off_.reset();
  // Draws of another law or stream, which the steps recorded so far would not make.
  if (!(loaded.plan == draw_.plan) || loaded.key.seed != draw_.key.seed ||
      loaded.key.stream != draw_.key.stream ||
      loaded.settings.logit_scale != draw_.settings.logit_scale)
    place_.omega = Tensor();
  take(std::move(loaded), device);
  next_scale_ = draw_.settings.logit_scale;
  eval_.clear();
}

}  // namespace macgrad::nn
