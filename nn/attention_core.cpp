// Softmax and exact kernelized attention, the logit scale, and the choice of a core.
#include "macgrad/nn/attention_core.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>

#include "macgrad/autograd/ops.h"
#include "macgrad/nn/init.h"

namespace macgrad::nn {

AttentionKind parse_attention(const std::string& name) {
  if (name == "softmax") return AttentionKind::softmax;
  if (name == "exact") return AttentionKind::exact;
  if (name == "rmfa") return AttentionKind::rmfa;
  throw Error("attention '{}' is unknown; use softmax, exact or rmfa", name);
}

PreSbnMode parse_pre_sbn(const std::string& name) {
  if (name == "auto") return PreSbnMode::automatic;
  if (name == "batch") return PreSbnMode::batch;
  if (name == "row") return PreSbnMode::row;
  throw Error("preSBN mode '{}' is unknown; use auto, batch or row", name);
}

double parse_denominator_floor(const std::string& text) {
  if (text == "floor") return kDenominatorFloor;
  if (text == "none") return 0.0;
  const std::string with_delta = "floor:";
  if (text.starts_with(with_delta)) {
    double delta = 0.0;
    const auto [end, code] =
        std::from_chars(text.data() + with_delta.size(), text.data() + text.size(), delta);
    if (code == std::errc{} && end == text.data() + text.size() && delta > 0.0 &&
        std::isfinite(delta))
      return delta;
  }
  throw Error("denominator policy '{}' is unknown; use floor, floor:DELTA with DELTA > 0, or none",
              text);
}

AttentionSettings paper_attention() {
  AttentionSettings s;
  s.kind = AttentionKind::rmfa;
  s.kernel = dot_product_kernel("exp");
  s.logit_scale = 1.0;
  s.draws = DrawMethod::iid;
  s.features = 128;
  s.p = 2.0;
  s.redraw = RedrawPolicy::parse("step");
  s.ppsbn = true;
  s.pre_sbn = PreSbnMode::automatic;
  s.sbn_eps = 1e-13;
  return s;
}

// Logit scale: nn/README.md, equation (5).

double resolved_logit_scale(const AttentionSettings& s, int64_t head_dim) {
  if (s.logit_scale != kAutomaticScale) return s.logit_scale;
  if (!s.ppsbn && !s.qk_norm && !s.unit_rows_given) return 1.0;
  const double radius = s.kind == AttentionKind::softmax ? kEverywhere : s.kernel.radius();
  return std::min(std::sqrt(2.0), 0.5 * radius) * std::sqrt(static_cast<double>(head_dim));
}

namespace {

double start_of_theta(double initial, double limit) {
  if (std::isinf(limit)) return std::log(initial);
  return std::log(initial / (limit - initial));
}

}  // namespace

LogitScale::LogitScale(Module* parent, std::string name, double initial, bool trained,
                       double radius, int64_t head_dim)
    : Module(parent, std::move(name)), fixed_(initial), limit_(max_logit_scale(radius, head_dim)) {
  require(initial > 0.0 && std::isfinite(initial), "[logit_scale] is {} and must be positive",
          initial);
  if (!trained) return;
  require(initial < limit_,
          "[logit_scale] starts at {}, but training keeps it below 0.95·radius·√head_dim = {:.4g}; "
          "start lower",
          initial, limit_);
  theta.emplace(this, "theta", Tensor::full(Shape{1}, start_of_theta(initial, limit_)),
                ParameterOptions{false, {}});
}

double LogitScale::value() const {
  if (!theta) return fixed_;
  const double t = theta->value().item();
  return std::isinf(limit_) ? std::exp(t) : limit_ / (1.0 + std::exp(-t));
}

Variable LogitScale::apply(const Variable& x, double relative_to,
                           const Tensor& live_relative_to) const {
  if (!theta) return fixed_ == relative_to ? x : mul(x, fixed_ / relative_to);
  const auto in_scope = scope();
  // One rounding to x's dtype: τ and what it is divided by are close.
  const Variable wide = cast(*theta, compute_dtype(theta->dtype()));
  const Variable tau = std::isinf(limit_) ? exp(wide) : mul(sigmoid(wide), limit_);
  const Variable factor = live_relative_to.defined()
                              ? div(tau, Variable(live_relative_to.to(tau.dtype())))
                              : mul(tau, 1.0 / relative_to);
  return in_scope.result(mul(x, cast(factor, x.dtype())));
}

namespace {

std::string describe_scale(const LogitScale& scale) {
  return fmt::format("logit scale {:.4g}{}", scale.value(), scale.trained() ? " (trained)" : "");
}

}  // namespace

// Softmax.

SoftmaxCore::SoftmaxCore(Module* parent, std::string name, const AttentionSettings& settings,
                         int64_t head_dim, ModelRandom& random)
    : AttentionCore(parent, std::move(name)),
      logit_scale(this, "logit_scale", settings.logit_scale, settings.train_logit_scale,
                  kEverywhere, head_dim),
      head_dim_(head_dim),
      dropout_(settings.dropout),
      random_(&random) {
  require(dropout_ >= 0.0 && dropout_ < 1.0, "[attention] dropout is {} and must be in [0, 1)",
          dropout_);
}

Variable SoftmaxCore::forward(const Variable& q, const Variable& k_in, const Variable& v_in,
                              const Mask& mask, DecodeState* state) {
  const auto in_scope = scope();
  const auto [k, v] = state ? state->append(k_in, v_in) : std::pair(k_in, v_in);
  const double fixed = logit_scale.trained() ? 1.0 : logit_scale.value();
  const bool drops = training() && dropout_ > 0.0;
  if (drops) check_step_begun();
  return in_scope.result(softmax_attention(logit_scale.trained() ? logit_scale.apply(q) : q, k, v,
                                           mask, fixed / std::sqrt(static_cast<double>(head_dim_)),
                                           drops ? dropout_ : 0.0,
                                           drops ? random_->dropout().draw() : DrawKey{}));
}

std::string SoftmaxCore::describe() const {
  return "softmax, " + describe_scale(logit_scale);
}

// Exact kernelized attention.

ExactKernelCore::ExactKernelCore(Module* parent, std::string name,
                                 const AttentionSettings& settings, int64_t head_dim)
    : AttentionCore(parent, std::move(name)),
      logit_scale(this, "logit_scale", settings.logit_scale, settings.train_logit_scale,
                  settings.kernel.radius(), head_dim),
      kernel_(settings.kernel),
      head_dim_(head_dim) {}

Variable ExactKernelCore::forward(const Variable& q_in, const Variable& k_in, const Variable& v_in,
                                  const Mask& mask, DecodeState* state) {
  const auto in_scope = scope();
  const auto [all_k, all_v] = state ? state->append(k_in, v_in) : std::pair(k_in, v_in);
  const Variable q = without_invalid(q_in, mask.query_valid);
  const Variable k = without_invalid(all_k, mask.key_valid);
  const Variable v = without_invalid(all_v, mask.key_valid);
  const double root = std::sqrt(static_cast<double>(head_dim_));
  Variable weights = kernel_(matmul(logit_scale.apply(q, root), transpose(k, 2, 3)));
  Tensor shown = visible(mask, q.size(2), k.size(2), q.device());
  if (!shown.defined()) return in_scope.result(div(matmul(weights, v), sum(weights, {3}, true)));
  weights = where(shown, weights, 0.0);
  const Tensor any =
      greater(sum(Variable(shown.to(weights.dtype())), {3}, true).value(), 0.0);  // (B|1,1,T,1)
  const Variable one(Tensor::full(Shape{}, 1.0, weights.dtype(), weights.device()));
  return in_scope.result(div(matmul(weights, v), where(any, sum(weights, {3}, true), one)));
}

std::string ExactKernelCore::describe() const {
  return fmt::format("exact {}, {}", kernel_.name(), describe_scale(logit_scale));
}

// The choice.

std::unique_ptr<AttentionCore> make_attention_core(Module* parent, const std::string& name,
                                                   const AttentionSettings& settings,
                                                   AttentionRole role, int64_t heads,
                                                   int64_t head_dim, ModelRandom& random) {
  if (settings.logit_scale == kAutomaticScale) {
    AttentionSettings resolved = settings;
    resolved.logit_scale = resolved_logit_scale(settings, head_dim);
    return make_attention_core(parent, name, resolved, role, heads, head_dim, random);
  }
  if (settings.kind != AttentionKind::softmax) {
    const DotProductKernel& kernel = settings.kernel;
    // The inner core of ppSBN or of the norm comes here with both off and its domain checked.
    const bool unit = settings.ppsbn || settings.qk_norm || settings.unit_rows_given;
    if (!std::isinf(kernel.radius())) {
      require(unit,
              "[attention] the series of kernel {} converges for |t| < {} only, so q and k need "
              "unit norm: switch ppSBN or the q-k norm on",
              kernel.name(), kernel.radius());
      check_domain(kernel, settings.logit_scale, head_dim);
    }
  }
  if (settings.ppsbn)
    return std::make_unique<PpSbn>(parent, name, settings, role, heads, head_dim, random);
  if (settings.qk_norm)
    return std::make_unique<QkNorm>(parent, name, settings, role, heads, head_dim, random);
  switch (settings.kind) {
    case AttentionKind::softmax:
      return std::make_unique<SoftmaxCore>(parent, name, settings, head_dim, random);
    case AttentionKind::exact:
      return std::make_unique<ExactKernelCore>(parent, name, settings, head_dim);
    case AttentionKind::rmfa:
      return std::make_unique<RmfaCore>(parent, name, settings, heads, head_dim, random);
  }
  throw Error("attention tag {} is unknown", static_cast<int>(settings.kind));
}

}  // namespace macgrad::nn
