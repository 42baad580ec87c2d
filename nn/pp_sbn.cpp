// ppSBN (nn/README.md, equations (22) and (23)) and the plain q-k norm around any attention core.
#include "macgrad/autograd/ops.h"
#include "macgrad/nn/attention_core.h"

namespace macgrad::nn {

namespace {

constexpr double kMomentum = 0.1;
constexpr double kTinyNorm = 1e-12;

AttentionSettings inner_settings(AttentionSettings settings) {
  settings.ppsbn = false;
  settings.qk_norm = false;
  settings.unit_rows_given = true;
  return settings;
}

bool uses_batch(PreSbnMode mode, AttentionRole role) {
  return mode == PreSbnMode::batch ||
         (mode == PreSbnMode::automatic && role == AttentionRole::self);
}

}  // namespace

PreSbn::PreSbn(Module* parent, std::string name, bool batch_statistics, int64_t heads,
               int64_t head_dim, double eps)
    : Module(parent, std::move(name)), eps_(eps) {
  if (!batch_statistics) return;
  running_mean.emplace(this, "running_mean", Tensor::zeros(Shape{heads, head_dim}));
  running_var.emplace(this, "running_var", Tensor::full(Shape{heads, head_dim}, 1.0));
}

Variable PreSbn::forward(const Variable& x, const Tensor& valid) const {
  const auto in_scope = scope();
  if (!running_mean) return in_scope.result(pre_sbn(x, valid, SbnStatistics::row, eps_, nullptr));
  if (!training()) {
    SbnMoments moments{running_mean->value(), running_var->value()};
    return in_scope.result(pre_sbn(x, valid, SbnStatistics::fixed, eps_, &moments));
  }
  return in_scope.result(pre_sbn(x, valid, SbnStatistics::batch, eps_, nullptr,
                                 {running_mean->value(), running_var->value(), kMomentum}));
}

OwnStatisticsScope::OwnStatisticsScope(Module& model) {
  for (Module* m : model.modules()) {
    auto* norm = dynamic_cast<PreSbn*>(m);
    if (!norm || !norm->running_mean) continue;
    kept_.push_back({norm, norm->training(), norm->running_mean->value().clone(),
                     norm->running_var->value().clone()});
    norm->train();
  }
}

OwnStatisticsScope::~OwnStatisticsScope() {
  for (const Kept& kept : kept_) {
    kept.module->train(kept.training);
    kept.module->running_mean->set(kept.mean);
    kept.module->running_var->set(kept.var);
  }
}

PpSbn::PpSbn(Module* parent, std::string name, const AttentionSettings& settings,
             const AttentionSite& site)
    : AttentionCore(parent, std::move(name)),
      batch_(uses_batch(settings.pre_sbn, site.role)),
      role_(site.role),
      query_norm(this, "query_norm", batch_, site.heads, site.head_dim, settings.sbn_eps),
      key_norm(this, "key_norm", batch_, site.heads, site.head_dim, settings.sbn_eps),
      gamma(this, "gamma", Tensor::full(Shape{settings.post_sbn_per_dim ? site.head_dim : 1}, 1.0),
            {false, {}}),
      beta(this, "beta", Tensor::full(Shape{settings.post_sbn_per_dim ? site.head_dim : 1}, 1.0),
           {false, 0.1}),
      inner_(make_attention_core(this, "inner", inner_settings(settings), site)) {}

Variable PpSbn::forward(const AttentionInputs& in, DecodeState* state) {
  const auto in_scope = scope();
  AttentionInputs normalised = in;
  if (in.k.defined()) normalised.k = key_norm.forward(in.k, valid_new_keys(in, state));
  normalised.q = query_norm.forward(in.q, in.mask.query_valid);
  return in_scope.result(post_sbn(inner_->forward(normalised, state), gamma, beta));
}

std::string PpSbn::describe() const {
  const bool leaks = batch_ && role_ != AttentionRole::self;
  return fmt::format("ppSBN (preSBN {}{}, gamma and beta {}) around {}", batch_ ? "batch" : "row",
                     leaks ? ": in training a position sees later ones" : "",
                     gamma.numel() == 1 ? "scalar" : "per head dimension", inner_->describe());
}

Variable unit_rows(const Variable& x) {
  const Variable squares = sum(mul(x, x), {-1}, true);
  const Tensor tiny = less(squares.value(), kTinyNorm * kTinyNorm);
  return masked_fill(mul(x, rsqrt(masked_fill(squares, tiny, 1.0))), tiny, 0.0);
}

QkNorm::QkNorm(Module* parent, std::string name, const AttentionSettings& settings,
               const AttentionSite& site)
    : AttentionCore(parent, std::move(name)),
      inner_(make_attention_core(this, "inner", inner_settings(settings), site)) {}

Variable QkNorm::forward(const AttentionInputs& in, DecodeState* state) {
  const auto in_scope = scope();
  AttentionInputs normalised = in;
  if (in.k.defined()) normalised.k = unit_rows(without_invalid(in.k, valid_new_keys(in, state)));
  normalised.q = unit_rows(without_invalid(in.q, in.mask.query_valid));
  return in_scope.result(inner_->forward(normalised, state));
}

std::string QkNorm::describe() const {
  return "unit-norm q and k, " + inner_->describe();
}

}  // namespace macgrad::nn
