#include "macgrad/experiments/inspect/attention_seen.h"

#include <cmath>
#include <limits>
#include <span>

#include "macgrad/autograd/attention.h"
#include "macgrad/nn/maclaurin_features.h"

namespace macgrad::experiments {
namespace {

using Values = std::vector<double>;

// Rows of one head of one sentence of x (B, H, n, d), the first `n` of them.
HeadRows rows_of(const Tensor& x, int64_t sentence, int64_t head, int64_t n) {
  return {x.select(0, sentence).select(0, head).slice(0, 0, n).to_vector<double>(), n, x.size(3)};
}

// Each row centred, divided by its deviation and brought to norm 1 (preSBN `row`).
HeadRows normalised(const HeadRows& x) {
  const NoGrad off;
  const Variable v(Tensor::from_vector(x.values, Shape{1, 1, x.n, x.d}));
  return {pre_sbn(v, Tensor(), SbnStatistics::row, 1e-13, nullptr).value().to_vector<double>(), x.n,
          x.d};
}

// The value that the op of this name made in a scope; undefined without one.
Tensor named_value(const GraphRecord& graph, const std::string& scope, const std::string& name) {
  for (const GraphRecord::Op& op : graph.ops())
    if (*op.node->scope == scope && op.node->outputs[0].meta->name == name) return op.outputs[0];
  return Tensor();
}

// The last value made in a scope or below it.
Tensor last_value(const GraphRecord& graph, const std::string& scope) {
  Tensor last;
  for (const GraphRecord::Op& op : graph.ops())
    if (*op.node->scope == scope || op.node->scope->starts_with(scope + ".")) last = op.outputs[0];
  return last;
}

// The module of type M at a path or below it; nullptr without one.
template <class M>
M* module_below(nn::Module& model, const std::string& path) {
  for (nn::Module* m : model.modules())
    if (auto* found = dynamic_cast<M*>(m);
        found && (m->path() == path || m->path().starts_with(path + ".")))
      return found;
  return nullptr;
}

nn::FeatureSettings feature_settings(const Multi30kSettings& s, int64_t head_dim, double scale) {
  nn::FeatureSettings f;
  f.method = nn::draw_method(s.draws);
  f.features = s.features;
  f.head_dim = head_dim;
  f.logit_scale = scale;
  return f;
}

}  // namespace

std::vector<std::string> attention_paths(ModelStep& model) {
  std::vector<std::string> names;
  for (nn::Module* m : model.model().modules())
    if (dynamic_cast<nn::MultiHeadAttention*>(m)) names.push_back(m->path());
  return names;
}

nn::DotProductKernel shown_kernel(const Multi30kSettings& s) {
  const nn::AttentionSettings attention = attention_settings(s);
  return attention.reads("kernel") ? attention.kernel.function() : nn::dot_product_kernel("exp");
}

SeenAttention see_attention(ModelStep& model, const RecordedStep& step, const std::string& name,
                            int64_t head, int64_t sentence) {
  SeenAttention seen;
  seen.name = name;
  seen.head = head;
  const bool cross = name.ends_with("cross_attention");
  const bool encoder = name.starts_with("encoder.");
  seen.causal = !cross && !encoder;
  seen.query_tokens = encoder ? model.source_tokens(sentence) : model.target_tokens(sentence);
  seen.key_tokens = encoder || cross ? model.source_tokens(sentence) : seen.query_tokens;
  const auto queries = std::ssize(seen.query_tokens), keys = std::ssize(seen.key_tokens);
  const Tensor q = named_value(step.graph, name, "q"), k = named_value(step.graph, name, "k");
  seen.q = rows_of(q, sentence, head, queries);
  seen.k = rows_of(k, sentence, head, keys);
  const Tensor unit_q = last_value(step.graph, name + ".core.query_norm");
  const Tensor unit_k = last_value(step.graph, name + ".core.key_norm");
  seen.normalises = unit_q.defined() && unit_k.defined();
  seen.unit_q = seen.normalises ? rows_of(unit_q, sentence, head, queries) : normalised(seen.q);
  seen.unit_k = seen.normalises ? rows_of(unit_k, sentence, head, keys) : normalised(seen.k);
  if (const auto* scale = module_below<nn::LogitScale>(model.model(), name))
    seen.scale = scale->value();
  if (const auto* map = module_below<nn::RandomMaclaurinFeatures>(model.model(), name)) {
    seen.draw = map->training_draw();
  } else {
    const Multi30kSettings& s = model.settings();
    seen.draw = nn::draw_features(shown_kernel(s), feature_settings(s, seen.q.d, seen.scale),
                                  {s.common.seed, kViewDraws, 0, 0}, DType::float64);
  }
  return seen;
}

Values logits_of(const SeenAttention& seen, const HeadRows& q, const HeadRows& k) {
  const double factor = seen.scale / std::sqrt(static_cast<double>(q.d));
  Values logits;
  for (int64_t i = 0; i < q.n; ++i)
    for (int64_t j = 0; j < k.n; ++j) {
      double t = seen.causal && j > i ? std::numeric_limits<double>::quiet_NaN() : 0.0;
      for (int64_t c = 0; c < q.d; ++c)
        t +=
            q.values[static_cast<size_t>(i * q.d + c)] * k.values[static_cast<size_t>(j * k.d + c)];
      logits.push_back(t * factor);
    }
  return logits;
}

Values kernel_values(const nn::DotProductKernel& kernel, const Values& logits) {
  Values values;
  for (const double t : logits)
    values.push_back(std::abs(t) < kernel.radius() ? kernel(t)
                                                   : std::numeric_limits<double>::quiet_NaN());
  return values;
}

KernelEstimate kernel_estimate(const SeenAttention& seen, const nn::FeatureDraw& draw,
                               const HeadRows& q, const HeadRows& k) {
  Values scaled = q.values;
  for (double& x : scaled) x *= seen.scale / draw.settings.logit_scale;
  return kernel_estimate(draw, seen.head, scaled, k.values);
}

KernelEstimate kernel_estimate(const nn::FeatureDraw& draw, int64_t head, const Values& q,
                               const Values& k) {
  const auto d = static_cast<size_t>(draw.settings.head_dim);
  const auto features = static_cast<size_t>(draw.levels.empty() ? 0 : draw.levels[0]);
  const auto phi = [&](const Values& x) {
    std::vector<Values> rows;
    for (size_t i = 0; i < x.size(); i += d) {
      const Values all = nn::reference_features(draw, std::span(x).subspan(i, d), head);
      rows.emplace_back(all.end() - static_cast<std::ptrdiff_t>(features), all.end());
    }
    return rows;
  };
  const std::vector<Values> phi_q = phi(q), phi_k = phi(k);
  std::vector<size_t> degree(features, 0);
  for (const int64_t level : draw.levels)
    for (size_t m = 0; m < static_cast<size_t>(level); ++m) ++degree[m];
  const size_t size = phi_q.size() * phi_k.size();
  KernelEstimate e;
  e.degrees.assign(std::max<size_t>(draw.levels.size(), 1) + 1, Values(size));
  e.degrees[0].assign(size, draw.constant);
  for (size_t i = 0; i < phi_q.size(); ++i) {
    for (size_t j = 0; j < phi_k.size(); ++j) {
      const size_t at = i * phi_k.size() + j;
      for (size_t c = 0; c < d && draw.linear > 0; ++c)
        e.degrees[1][at] += draw.linear * q[i * d + c] * k[j * d + c];
      for (size_t m = 0; m < features; ++m) e.degrees[degree[m]][at] += phi_q[i][m] * phi_k[j][m];
    }
  }
  e.total.assign(size, 0.0);
  for (const Values& one : e.degrees)
    for (size_t i = 0; i < size; ++i) e.total[i] += one[i];
  return e;
}

}  // namespace macgrad::experiments
