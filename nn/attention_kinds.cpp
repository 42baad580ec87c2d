// The table of attention kinds, and which settings each reads.
#include <fmt/ranges.h>

#include <algorithm>

#include "macgrad/nn/attention_core.h"
#include "macgrad/nn/constant_features.h"

namespace macgrad::nn {

namespace {

template <class Core>
std::unique_ptr<AttentionCore> make(Module* parent, const std::string& name,
                                    const AttentionSettings& settings, const AttentionSite& site) {
  return std::make_unique<Core>(parent, name, settings, site);
}

// Linear attention with a fixed map.
auto linear_with(FeatureMapKind (*map)()) {
  return [map](Module* parent, const std::string& name, AttentionSettings settings,
               const AttentionSite& site) {
    settings.map = map();
    settings.matrix.reset();
    return make<LinearAttentionCore>(parent, name, settings, site);
  };
}

}  // namespace

const std::vector<AttentionKind>& attention_kinds() {
  // To add a kind, add a row: name, formula, settings that it reads, whether it has a feature map,
  // how it is made.
  static const std::vector<AttentionKind> table = {
      {"softmax",
       "softmax(t)·v",
       {"logit_scale", "train_logit_scale", "attention_dropout"},
       false,
       make<SoftmaxCore>},
      {"exact",
       "Σ f(t) v / Σ f(t), quadratic",
       {"kernel", "logit_scale", "train_logit_scale"},
       false,
       make<ExactKernelCore>},
      {"linear", "φ(q) Σ φ(k) vᵀ / φ(q) Σ φ(k)", {"map"}, true, make<LinearAttentionCore>},
      {"rmfa", "linear attention with the map maclaurin", feature_map("maclaurin").reads, false,
       linear_with([] { return feature_map("maclaurin"); })},
      {"mean", "the mean of visible values", {}, false, linear_with(constant_map)},
  };
  return table;
}

const AttentionKind& attention_kind(const std::string& name) {
  std::vector<std::string> names;
  for (const AttentionKind& kind : attention_kinds()) {
    if (kind.name == name) return kind;
    names.push_back(kind.name);
  }
  throw Error("attention '{}' is unknown; use {}", name, fmt::join(names, ", "));
}

bool AttentionSettings::reads(const std::string& setting) const {
  const auto has = [&](const std::vector<std::string>& list) {
    return std::find(list.begin(), list.end(), setting) != list.end();
  };
  return has(kind.reads) || (kind.uses_map && has(map.reads));
}

}  // namespace macgrad::nn
