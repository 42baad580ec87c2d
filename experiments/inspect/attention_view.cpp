// Plain float64 loops: a head of a sentence is small, and every number on the page can be followed
// by hand from its definition.
#include "experiments/inspect/attention_view.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>

#include "autograd/attention.h"

namespace macgrad::experiments {
namespace {

constexpr uint32_t kRedrawStream = 3;
constexpr double kNone = std::numeric_limits<double>::quiet_NaN();
using Values = std::vector<double>;

struct Rows {
  Values values;  // (n, d)
  int64_t n = 0, d = 0;
};

// What one attention of the model is and saw.
struct Seen {
  std::string name;
  int64_t head = 0;
  double scale = 1.0;  // τ
  bool causal = false;
  std::vector<std::string> query_tokens, key_tokens;
  nn::FeatureDraw draw;
  Rows q, k;            // as projected
  Rows unit_q, unit_k;  // through preSBN
  bool normalises = false;
};

// Rows of one head of one sentence of x (B, H, n, d), the first `n` of them.
Rows rows_of(const Tensor& x, int64_t sentence, int64_t head, int64_t n) {
  return {x.select(0, sentence).select(0, head).slice(0, 0, n).to_vector<double>(), n, x.size(3)};
}

// Each row centred, divided by its deviation and brought to norm 1 (preSBN `row`).
Rows normalised(const Rows& x) {
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

nn::DotProductKernel kernel_of(const Multi30kSettings& s) {
  return nn::dot_product_kernel(s.attention == "softmax" ? "exp" : s.kernel);
}

Seen see(ModelStep& model, const RecordedStep& step, const std::string& name,
         const AttentionViewSettings& settings) {
  Seen seen;
  seen.name = name;
  seen.head = settings.head;
  const bool cross = name.ends_with("cross_attention");
  const bool encoder = name.starts_with("encoder.");
  seen.causal = !cross && !encoder;
  seen.query_tokens =
      encoder ? model.source_tokens(settings.sentence) : model.target_tokens(settings.sentence);
  seen.key_tokens = encoder || cross ? model.source_tokens(settings.sentence) : seen.query_tokens;
  const auto queries = std::ssize(seen.query_tokens), keys = std::ssize(seen.key_tokens);
  const Tensor q = named_value(step.graph, name, "q"), k = named_value(step.graph, name, "k");
  seen.q = rows_of(q, settings.sentence, settings.head, queries);
  seen.k = rows_of(k, settings.sentence, settings.head, keys);
  const Tensor unit_q = last_value(step.graph, name + ".core.query_norm");
  const Tensor unit_k = last_value(step.graph, name + ".core.key_norm");
  seen.normalises = unit_q.defined() && unit_k.defined();
  seen.unit_q = seen.normalises ? rows_of(unit_q, settings.sentence, settings.head, queries)
                                : normalised(seen.q);
  seen.unit_k = seen.normalises ? rows_of(unit_k, settings.sentence, settings.head, keys)
                                : normalised(seen.k);
  if (const auto* scale = module_below<nn::LogitScale>(model.model(), name))
    seen.scale = scale->value();
  if (const auto* map = module_below<nn::RandomMaclaurinFeatures>(model.model(), name)) {
    seen.draw = map->training_draw();
  } else {
    const Multi30kSettings& s = model.settings();
    seen.draw = nn::draw_features(kernel_of(s), feature_settings(s, seen.q.d, seen.scale),
                                  {s.common.seed, kRedrawStream, 0, 0}, DType::float64);
  }
  return seen;
}

Json matrix(const Values& values, int64_t rows, int64_t columns) {
  Json list = Json::array();
  for (const double v : values) {
    // Four digits: what a picture shows.
    if (std::isfinite(v))
      list.push_back(std::stod(fmt::format("{:.4g}", v)));
    else
      list.push_back(nullptr);
  }
  return {{"rows", rows}, {"columns", columns}, {"values", std::move(list)}};
}

// One way of making rows, and everything that follows from them.
class Mode {
 public:
  Mode(const Seen& seen, const Rows& q, const Rows& k, const nn::DotProductKernel& kernel)
      : seen_(seen), q_(q), k_(k), kernel_(kernel), size_(q.n * k.n) {
    const double factor = seen.scale / std::sqrt(static_cast<double>(q.d));
    logits_ = hidden();
    exact_ = hidden();
    for (int64_t i = 0; i < q.n; ++i)
      for (int64_t j = 0; j < k.n; ++j) {
        if (!visible(i, j)) continue;
        double t = 0;
        for (int64_t c = 0; c < q.d; ++c) t += at(q.values, i, c, q.d) * at(k.values, j, c, k.d);
        at(logits_, i, j, k.n) = t *= factor;
        // Outside its radius the series does not give f.
        if (std::abs(t) < kernel.radius()) at(exact_, i, j, k.n) = kernel(t);
      }
  }

  Json describe(const std::string& name, bool used, int64_t redraws, uint64_t seed) const {
    const KernelEstimate own = estimate(seen_.draw);
    const Values estimated = shown(own.total);
    Values difference = hidden();
    for (size_t i = 0; i < difference.size(); ++i) difference[i] = estimated[i] - exact_[i];
    Json json{{"name", name},
              {"used_by_the_model", used},
              {"logits", as_json(logits_)},
              {"exact", as_json(exact_)},
              {"estimate", as_json(estimated)},
              {"difference", as_json(difference)},
              {"exact_weights", as_json(weights(exact_))},
              {"estimated_weights", as_json(weights(estimated))},
              {"exact_denominators", sums(exact_)},
              {"estimated_denominators", sums(estimated)}};
    add_redraws(json, own, redraws, seed);
    return json;
  }

 private:
  static double& at(Values& v, int64_t i, int64_t j, int64_t columns) {
    return v[static_cast<size_t>(i * columns + j)];
  }
  static double at(const Values& v, int64_t i, int64_t j, int64_t columns) {
    return v[static_cast<size_t>(i * columns + j)];
  }
  bool visible(int64_t i, int64_t j) const { return !seen_.causal || j <= i; }
  Values hidden() const { return Values(static_cast<size_t>(size_), kNone); }
  Json as_json(const Values& v) const { return matrix(v, q_.n, k_.n); }

  // A trained τ moves away from the one that a draw was made for; q makes up for it, as in
  // training.
  KernelEstimate estimate(const nn::FeatureDraw& draw) const {
    Values q = q_.values;
    for (double& x : q) x *= seen_.scale / draw.settings.logit_scale;
    return kernel_estimate(draw, seen_.head, q, k_.values);
  }

  Values shown(const Values& v) const {
    Values result = hidden();
    for (int64_t i = 0; i < q_.n; ++i)
      for (int64_t j = 0; j < k_.n; ++j)
        if (visible(i, j)) at(result, i, j, k_.n) = at(v, i, j, k_.n);
    return result;
  }

  Values sums(const Values& v) const {
    Values result;
    for (int64_t i = 0; i < q_.n; ++i) {
      double sum = 0;
      for (int64_t j = 0; j < k_.n; ++j)
        if (visible(i, j)) sum += at(v, i, j, k_.n);
      result.push_back(sum);
    }
    return result;
  }

  Values weights(const Values& v) const {
    Values result = v;
    const Values sum = sums(v);
    for (int64_t i = 0; i < q_.n; ++i)
      for (int64_t j = 0; j < k_.n; ++j) at(result, i, j, k_.n) /= sum[static_cast<size_t>(i)];
    return result;
  }

  double rms(const Values& v) const {
    double sum = 0;
    int64_t count = 0;
    for (int64_t i = 0; i < q_.n; ++i)
      for (int64_t j = 0; j < k_.n; ++j)
        if (visible(i, j)) {
          sum += at(v, i, j, k_.n) * at(v, i, j, k_.n);
          ++count;
        }
    return std::sqrt(sum / static_cast<double>(std::max<int64_t>(count, 1)));
  }

  // a_N t^N.
  Values exact_degree(size_t degree) const {
    Values result = logits_;
    for (double& t : result)
      t = kernel_.coefficient(static_cast<int64_t>(degree)) *
          std::pow(t, static_cast<double>(degree));
    return result;
  }

  void add_redraws(Json& json, const KernelEstimate& own, int64_t redraws, uint64_t seed) const {
    const auto n = static_cast<size_t>(size_);
    Values mean(n), squares(n), weight_mean(n), weight_squares(n), sum_mean, sum_squares;
    sum_mean.assign(static_cast<size_t>(q_.n), 0.0);
    sum_squares = sum_mean;
    int64_t not_positive = 0;
    // Degrees that the own draw has, and those before them.
    const size_t degrees = own.degrees.size();
    Values degree_error(degrees);
    std::vector<Values> exact;
    for (size_t g = 0; g < degrees; ++g) exact.push_back(exact_degree(g));
    for (int64_t r = 1; r <= redraws; ++r) {
      const nn::FeatureDraw draw =
          nn::draw_features(kernel_, seen_.draw.settings, seen_.draw.plan,
                            {seed, kRedrawStream, 0, static_cast<uint32_t>(r)}, DType::float64);
      const KernelEstimate e = estimate(draw);
      const Values total = shown(e.total), w = weights(total), s = sums(total);
      for (size_t i = 0; i < n; ++i) {
        mean[i] += total[i];
        squares[i] += total[i] * total[i];
        weight_mean[i] += w[i];
        weight_squares[i] += w[i] * w[i];
      }
      for (size_t i = 0; i < s.size(); ++i) {
        sum_mean[i] += s[i];
        sum_squares[i] += s[i] * s[i];
        not_positive += s[i] <= 0;
      }
      for (size_t g = 0; g < degrees; ++g) {
        Values error = exact[g];
        for (size_t i = 0; i < n; ++i) error[i] -= g < e.degrees.size() ? e.degrees[g][i] : 0.0;
        const double one = rms(error);
        degree_error[g] += one * one;
      }
    }
    const auto count = static_cast<double>(redraws);
    const auto deviation = [&](Values& sum, Values& square) {
      Values result(sum.size());
      for (size_t i = 0; i < sum.size(); ++i) {
        sum[i] /= count;
        result[i] = std::sqrt(std::max(square[i] / count - sum[i] * sum[i], 0.0) * count /
                              std::max(count - 1.0, 1.0));
        if (!std::isfinite(sum[i])) result[i] = kNone;
      }
      return result;
    };
    const Values spread = deviation(mean, squares);
    const Values weight_spread = deviation(weight_mean, weight_squares);
    const Values sum_spread = deviation(sum_mean, sum_squares);
    json["degrees"] = Json::array();
    for (size_t g = 0; g < degrees; ++g) {
      Values error = exact[g];
      for (size_t i = 0; i < n; ++i) error[i] -= own.degrees[g][i];
      json["degrees"].push_back({{"degree", g},
                                 {"exact_rms", rms(exact[g])},
                                 {"estimate_rms", rms(own.degrees[g])},
                                 {"error_rms", rms(error)},
                                 {"deviation", std::sqrt(degree_error[g] / count)}});
    }
    json["redraw"] = {{"mean", as_json(mean)},
                      {"deviation", as_json(spread)},
                      {"weights_deviation", as_json(weight_spread)},
                      {"denominator_deviation", sum_spread},
                      {"not_positive", not_positive}};
  }

  const Seen& seen_;
  const Rows& q_;
  const Rows& k_;
  const nn::DotProductKernel& kernel_;
  int64_t size_;
  Values logits_, exact_;
};

Json draw_json(const nn::FeatureDraw& draw) {
  Json json{{"constant", draw.constant},
            {"linear", draw.linear},
            {"projections", draw.projections()},
            {"degrees", Json::array()}};
  const Values weight = draw.weight.to_vector<double>();
  const auto all = std::ssize(weight);
  for (size_t l = draw.levels.size(); l-- > 0;) {
    // Features of degree l + 1 stand after those of higher degrees.
    const int64_t from = l + 1 < draw.levels.size() ? draw.levels[l + 1] : 0;
    const int64_t to = std::min<int64_t>(draw.levels[l], all);
    if (from >= to) continue;
    json["degrees"].push_back({{"degree", l + 1},
                               {"features", to - from},
                               {"weight", weight[static_cast<size_t>(from)]}});
  }
  std::reverse(json["degrees"].begin(), json["degrees"].end());
  return json;
}

std::vector<std::string> attention_names(ModelStep& model) {
  std::vector<std::string> names;
  for (nn::Module* m : model.model().modules())
    if (dynamic_cast<nn::MultiHeadAttention*>(m)) names.push_back(m->path());
  return names;
}

}  // namespace

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

void check_view(ModelStep& model, const AttentionViewSettings& settings) {
  const std::vector<std::string> names = attention_names(model);
  require(settings.attention == "all" ||
              std::find(names.begin(), names.end(), settings.attention) != names.end(),
          "--view {}: the model has {}", settings.attention, fmt::join(names, ", "));
  require(settings.sentence < model.rows(), "--view-sentence {}: the step has sentences 0 to {}",
          settings.sentence, model.rows() - 1);
  require(settings.head < model.settings().heads, "--view-head {}: there are heads 0 to {}",
          settings.head, model.settings().heads - 1);
}

Json attention_views(ModelStep& model, const RecordedStep& step,
                     const AttentionViewSettings& settings) {
  check_view(model, settings);
  const Multi30kSettings& s = model.settings();
  const nn::DotProductKernel kernel = kernel_of(s);
  Json list = Json::array();
  for (const std::string& name : attention_names(model)) {
    if (settings.attention != "all" && settings.attention != name) continue;
    const Seen seen = see(model, step, name, settings);
    Json json{{"name", name},
              {"head", settings.head},
              {"sentence", settings.sentence},
              {"kernel", kernel.name()},
              {"formula", kernel.formula()},
              {"draws", nn::draw_method_name(seen.draw.settings.method)},
              {"features", seen.draw.settings.features},
              {"logit_scale", seen.scale},
              {"head_dim", seen.q.d},
              {"causal", seen.causal},
              {"redraws", settings.redraws},
              {"query_tokens", seen.query_tokens},
              {"key_tokens", seen.key_tokens},
              {"draw", draw_json(seen.draw)}};
    json["modes"] = {
        Mode(seen, seen.unit_q, seen.unit_k, kernel)
            .describe("with ppSBN", seen.normalises, settings.redraws, s.common.seed),
        Mode(seen, seen.q, seen.k, kernel)
            .describe("without ppSBN", !seen.normalises, settings.redraws, s.common.seed)};
    list.push_back(std::move(json));
  }
  return list;
}

}  // namespace macgrad::experiments
