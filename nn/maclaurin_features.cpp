// When random Maclaurin features draw, and what they keep of a draw.
#include "macgrad/nn/maclaurin_features.h"

#include <cmath>
#include <utility>

#include "macgrad/core/kernels/rmfa.h"
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

RmfaArgs rmfa_args(const FeatureDraw& draw) {
  RmfaArgs args;
  args.levels = draw.levels;
  args.constant = draw.constant;
  args.linear = draw.linear;
  args.layout = draw.layout;
  return args;
}

}  // namespace

RandomMaclaurinFeatures::RandomMaclaurinFeatures(Module* parent, std::string name,
                                                 DotProductKernel function,
                                                 const FeatureSettings& settings,
                                                 RedrawPolicy redraw, int eval_draws,
                                                 ModelRandom& random, const LogitScale* scale)
    : RandomFeatures(parent, std::move(name), scale, redraw, eval_draws, random),
      function_(std::move(function)),
      next_scale_(settings.logit_scale),
      draw_(draw_features(function_, settings, training_key(0))),
      record_(this, "draw", to_tensor(draw_)) {}

MappedRows RandomMaclaurinFeatures::map(const Variable& x, Side side, const Tensor&) {
  const FeatureDraw& draw = current(x.dtype(), x.device());
  const RmfaArgs args = rmfa_args(draw);
  MappedRows rows;
  rows.constant = draw.constant;
  if (args.linear > 0.0 || (!args.levels.empty() && args.levels[0] > 0))
    rows.features = maclaurin_features(side == Side::query ? scaled_query(x, draw) : x, draw.omega,
                                       draw.weight, args);
  return rows;
}

Variable RandomMaclaurinFeatures::attend(const Variable& q, const Variable& k, const Variable& v,
                                         const Variable& log_weight, const AttentionMask& mask,
                                         double delta, Tensor* statistics) {
  if (log_weight.defined())
    return RandomFeatures::attend(q, k, v, log_weight, mask, delta, statistics);
  const FeatureDraw& draw = current(q.dtype(), q.device());
  RmfaArgs args = rmfa_args(draw);
  args.floor = delta * value_at_zero();
  return rmfa(scaled_query(q, draw), k, v, mask, draw.omega, draw.weight, args, statistics);
}

// The weights hold the scale of the draw.
Variable RandomMaclaurinFeatures::scaled_query(const Variable& q, const FeatureDraw& draw) const {
  if (!scale()) return q;
  const Tensor scale_of_draw = draw.layout.defined()
                                   ? draw.layout.slice(0, kRmfaLayoutScale, kRmfaLayoutScale + 1)
                                   : Tensor();
  return scale()->apply(q, draw.settings.logit_scale, scale_of_draw);
}

std::string RandomMaclaurinFeatures::describe() const {
  const FeatureDraw& draw = training_draw();
  const FeatureSettings& f = draw.settings;
  return fmt::format("maclaurin {}, D {} ({} projections), draws {}{}, p {:.4g}, {}",
                     function_.name(), f.features, draw.projections(), draw_method_name(f.method),
                     f.heads > 1 ? " per head" : "", f.p, describe_draws());
}

void RandomMaclaurinFeatures::take(FeatureDraw draw, Device device) const {
  draw_ = std::move(draw);
  const DrawBounds bounds = draw_bounds(function_, draw_.plan);
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
              layout.to(device), feature_law(function_, draw_.settings, draw_.plan).to(device)};
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
  if (uses_training_draw()) {
    check_drawn_for_step();
    return draw_on(dtype, device);
  }
  if (eval_.empty()) eval_.resize(static_cast<size_t>(eval_draws()));
  FeatureDraw& draw = eval_[static_cast<size_t>(eval_index())];
  if (!draw.omega.defined() || draw.omega.dtype() != dtype) {
    draw =
        draw_features(function_, draw_.settings, draw_.plan, evaluation_key(eval_index()), dtype);
  }
  if (!(draw.omega.device() == device)) {
    draw.omega = draw.omega.to(device);
    draw.weight = draw.weight.to(device);
  }
  return draw;
}

const FeatureDraw& RandomMaclaurinFeatures::draw_on(DType dtype, Device device) const {
  if (draw_.omega.dtype() != dtype) {
    take(draw_features(function_, draw_.settings, draw_.plan, draw_.key, dtype), device);
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
  auto part = recorded_part();
  if (part) part->push_back(uses_training_draw() ? -1 : eval_index());
  return part;
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
  const DType dtype = draw_.omega.dtype();
  const Device device = draw_.omega.device();
  take(draw_features(function_, settings, plan, training_key(number), dtype), device);
  record_.set(to_tensor(draw_));
}

std::optional<std::vector<int64_t>> RandomMaclaurinFeatures::recorded_part() const {
  if (!draw_.layout.defined()) return std::nullopt;
  return std::vector<int64_t>{place_.number, draw_.linear > 0.0, drawn_in_replays()};
}

// The law is that of the plan and scale for which the place was made.
bool RandomMaclaurinFeatures::drawn_in_replays() const {
  return redraw_policy().kind == RedrawPolicy::Kind::step && !scale_changes_ &&
         draw_.layout.defined();
}

std::optional<RandomMaclaurinFeatures::LiveDraw> RandomMaclaurinFeatures::live_draw() const {
  if (!drawn_in_replays()) return std::nullopt;
  return LiveDraw{
      place_.law, place_.omega, place_.weight, place_.layout,
      feature_draw_args(function_, draw_.settings, draw_.plan, training_key(kLiveStep))};
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
  redraw(settings, feature_plan(function_, settings), draw_.key.step);
}

void RandomMaclaurinFeatures::on_begin_step(uint32_t step, int64_t epoch) {
  if (scale() && scale()->trained()) set_logit_scale(scale()->value());
  RandomFeatures::on_begin_step(step, epoch);
}

void RandomMaclaurinFeatures::redraw(uint32_t number) {
  if (drawn_in_replays() && draw_fits(function_, draw_.plan, place_.bounds, training_key(number))) {
    put_off_ = number;
    // A replay writes there unseen: a backward pass of an earlier step must not read it.
    for (const Tensor& t : {place_.omega, place_.weight, place_.layout}) detail::bump(t);
    return;
  }
  FeatureSettings settings = draw_.settings;
  settings.logit_scale = next_scale_;
  redraw(settings, FeaturePlan(draw_.plan), number);
}

void RandomMaclaurinFeatures::on_load() {
  const Device device = draw_.omega.device();
  FeatureDraw loaded =
      from_record(function_, record_.value().to_vector<int64_t>(), draw_.omega.dtype());
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
  follow(loaded.key);
  take(std::move(loaded), device);
  next_scale_ = draw_.settings.logit_scale;
  eval_.clear();
}

}  // namespace macgrad::nn
