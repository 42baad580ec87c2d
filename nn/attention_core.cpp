// Softmax and exact kernelized attention, the logit scale, and the choice of a core.
#include "macgrad/nn/attention_core.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>

#include "macgrad/autograd/ops.h"
#include "macgrad/nn/init.h"

namespace macgrad::nn {

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
  s.kind = attention_kind("rmfa");
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

double resolved_logit_scale(const AttentionSettings& s, int64_t head_dim) {
  if (s.logit_scale != kAutomaticScale) return s.logit_scale;
  if (!s.ppsbn && !s.qk_norm && !s.unit_rows_given) return 1.0;
  const double radius = s.reads("kernel") ? s.kernel.radius() : kEverywhere;
  return std::min(std::sqrt(2.0), 0.5 * radius) * std::sqrt(static_cast<double>(head_dim));
}

namespace {

// x (B,H,N,d) with one more column, (B,H,N,d+1), in float64: a weight rounded to float32 would be
// off by 4e-3 after 65,536 gates.
Variable with_column(const Variable& x, const Variable& column) {
  return concat({cast(x, DType::float64), cast(unsqueeze(column, 3), DType::float64)}, 3);
}

Variable with_ones(const Variable& x) {
  return with_column(x, Variable(Tensor::full(Shape{x.size(0), x.size(1), x.size(2)}, 1.0,
                                              x.dtype(), x.device())));
}

}  // namespace

Tensor valid_new_keys(const AttentionInputs& in, const DecodeState* state) {
  const Tensor& valid = in.mask.key_valid;
  if (!state || !valid.defined()) return valid;
  const int64_t end = valid.size(1);
  return valid.slice(1, end - in.k.size(2), end).contiguous();
}

// Softmax.

SoftmaxCore::SoftmaxCore(Module* parent, std::string name, const AttentionSettings& settings,
                         const AttentionSite& site)
    : AttentionCore(parent, std::move(name)),
      logit_scale(this, "logit_scale", resolved_logit_scale(settings, site.head_dim),
                  settings.train_logit_scale, kEverywhere, site.head_dim),
      head_dim_(site.head_dim),
      dropout_(settings.dropout),
      random_(site.random) {
  require(dropout_ >= 0.0 && dropout_ < 1.0, "[attention] dropout is {} and must be in [0, 1)",
          dropout_);
}

Variable SoftmaxCore::forward(const AttentionInputs& in, DecodeState* state) {
  const auto in_scope = scope();
  Variable q = logit_scale.trained() ? logit_scale.apply(in.q) : in.q, k = in.k, v = in.v;
  double scale = logit_scale.trained() ? 1.0 : logit_scale.value();
  scale /= std::sqrt(static_cast<double>(head_dim_));
  if (in.log_weight.defined()) {
    k = with_column(k, in.log_weight);
    v = cast(v, DType::float64);
  }
  const auto [all_k, all_v] = state ? state->append(k, v) : std::pair(k, v);
  if (all_k.size(3) > q.size(3)) {  // τ·q·k/√d + ℓ as one product of d + 1 columns
    q = with_ones(mul(q, scale));
    scale = 1.0;
  }
  const bool drops = training() && dropout_ > 0.0;
  if (drops) check_step_begun();
  const Variable out = softmax_attention(q, all_k, all_v, in.mask, scale, drops ? dropout_ : 0.0,
                                         drops ? random_->dropout().draw() : DrawKey{});
  return in_scope.result(cast(out, in.q.dtype()));
}

std::string SoftmaxCore::describe() const {
  return "softmax, " + logit_scale.describe();
}

// Exact kernelized attention.

ExactKernelCore::ExactKernelCore(Module* parent, std::string name,
                                 const AttentionSettings& settings, const AttentionSite& site)
    : AttentionCore(parent, std::move(name)),
      logit_scale(this, "logit_scale", resolved_logit_scale(settings, site.head_dim),
                  settings.train_logit_scale, settings.kernel.radius(), site.head_dim),
      kernel_(settings.kernel),
      head_dim_(site.head_dim) {}

// A key weight is one more column of the keys, so that a decoding state keeps it with them.
Variable ExactKernelCore::forward(const AttentionInputs& in, DecodeState* state) {
  const auto in_scope = scope();
  const Mask& mask = in.mask;
  const bool softmax = kernel_.has_factor() && is_exponential(kernel_);
  Variable keys = in.k, values = in.v;
  if (keys.defined() && (kernel_.has_factor() || in.log_weight.defined())) {
    keys = without_invalid(keys, valid_new_keys(in, state));
    Variable log_weight = in.log_weight;
    if (kernel_.has_factor())
      log_weight = sum_of_weights(
          log_weight, kernel_.log_factor(cast(logit_scale.apply_root(keys), DType::float64)));
    keys = with_column(softmax ? logit_scale.apply_root(keys) : keys, log_weight);
    if (softmax) values = cast(values, DType::float64);
  }
  const auto [all_keys, all_v] = state ? state->append(keys, values) : std::pair(keys, values);
  const Variable q = without_invalid(in.q, mask.query_valid);
  if (softmax) {
    const Variable x = with_ones(logit_scale.apply_root(q));
    return in_scope.result(cast(softmax_attention(x, all_keys, all_v, mask, 1.0), in.q.dtype()));
  }
  const bool weighted = all_keys.size(3) > head_dim_;
  const Variable k_and_weight = without_invalid(all_keys, mask.key_valid);
  const Variable v = without_invalid(all_v, mask.key_valid);
  const Variable k =
      weighted ? cast(slice(k_and_weight, 3, 0, head_dim_), q.dtype()) : k_and_weight;
  const double root = std::sqrt(static_cast<double>(head_dim_));
  Variable weights = kernel_.function()(matmul(logit_scale.apply(q, root), transpose(k, 2, 3)));
  const Tensor shown = visible(mask, q.size(2), k.size(2), q.device());
  if (weighted) {
    Variable log_weight = transpose(slice(k_and_weight, 3, head_dim_, head_dim_ + 1), 2, 3);
    if (shown.defined())
      log_weight = where(shown, log_weight, std::numeric_limits<float>::lowest());
    const Variable shifted = sub(log_weight, max(log_weight, 3, true).first.detach());
    weights = mul(weights, cast(exp(shifted), weights.dtype()));
  }
  if (!shown.defined()) return in_scope.result(div(matmul(weights, v), sum(weights, {3}, true)));
  weights = where(shown, weights, 0.0);
  const Tensor any =
      greater(sum(Variable(shown.to(weights.dtype())), {3}, true).value(), 0.0);  // (B|1,1,T,1)
  const Variable one(Tensor::full(Shape{}, 1.0, weights.dtype(), weights.device()));
  return in_scope.result(div(matmul(weights, v), where(any, sum(weights, {3}, true), one)));
}

std::string ExactKernelCore::describe() const {
  return fmt::format("exact {}, {}", kernel_.name(), logit_scale.describe());
}

// The choice.

std::unique_ptr<AttentionCore> make_attention_core(Module* parent, const std::string& name,
                                                   const AttentionSettings& settings,
                                                   const AttentionSite& site) {
  if (settings.reads("kernel") && !std::isinf(settings.kernel.radius())) {
    // The inner core of ppSBN or of the norm comes here with both off and its domain checked.
    require(settings.ppsbn || settings.qk_norm || settings.unit_rows_given,
            "[attention] the series of kernel {} converges for |t| < {} only, so q and k need "
            "unit norm: switch ppSBN or the q-k norm on",
            settings.kernel.name(), settings.kernel.radius());
    check_domain(settings.kernel.function(), resolved_logit_scale(settings, site.head_dim),
                 site.head_dim);
  }
  if (settings.ppsbn) return std::make_unique<PpSbn>(parent, name, settings, site);
  if (settings.qk_norm) return std::make_unique<QkNorm>(parent, name, settings, site);
  return settings.kind.make(parent, name, settings, site);
}

}  // namespace macgrad::nn
