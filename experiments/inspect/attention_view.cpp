// Plain float64 loops: a head of a sentence is small, and every number on the page can be followed
// by hand from its definition.
#include "macgrad/experiments/inspect/attention_view.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

#include "macgrad/experiments/inspect/attention_seen.h"

namespace macgrad::experiments {
namespace {

constexpr double kNone = std::numeric_limits<double>::quiet_NaN();
using Values = std::vector<double>;

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
  Mode(const SeenAttention& seen, const HeadRows& q, const HeadRows& k,
       const nn::DotProductKernel& kernel)
      : seen_(seen),
        q_(q),
        k_(k),
        kernel_(kernel),
        size_(q.n * k.n),
        logits_(logits_of(seen, q, k)),
        exact_(kernel_values(kernel, logits_)) {}

  Json describe(const std::string& name, bool used, int64_t redraws, uint64_t seed) const {
    const KernelEstimate own = kernel_estimate(seen_, seen_.draw, q_, k_);
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
                            {seed, kViewDraws, 0, static_cast<uint32_t>(r)}, DType::float64);
      const KernelEstimate e = kernel_estimate(seen_, draw, q_, k_);
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

  const SeenAttention& seen_;
  const HeadRows& q_;
  const HeadRows& k_;
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

}  // namespace

void check_view(ModelStep& model, const AttentionViewSettings& settings) {
  const std::vector<std::string> names = attention_paths(model);
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
  const nn::DotProductKernel kernel = shown_kernel(s);
  Json list = Json::array();
  for (const std::string& name : attention_paths(model)) {
    if (settings.attention != "all" && settings.attention != name) continue;
    const SeenAttention seen = see_attention(model, step, name, settings.head, settings.sentence);
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
