// The table of feature maps.
#include <fmt/ranges.h>

#include "macgrad/nn/elu_features.h"
#include "macgrad/nn/maclaurin_features.h"
#include "macgrad/nn/positive_features.h"
#include "macgrad/nn/trig_features.h"

namespace macgrad::nn {

namespace {

const std::vector<std::string> kOfProjections{
    "kernel", "logit_scale", "train_logit_scale", "matrix", "features", "redraw", "eval_draws"};

std::vector<std::string> with(std::vector<std::string> reads, const std::string& another) {
  reads.push_back(another);
  return reads;
}

template <class Map>
std::unique_ptr<FeatureMap> make(Module* parent, const std::string& name,
                                 const AttentionSettings& settings, const AttentionSite& site,
                                 const LogitScale* scale) {
  return std::make_unique<Map>(parent, name, settings, site, scale);
}

std::unique_ptr<FeatureMap> make_maclaurin(Module* parent, const std::string& name,
                                           const AttentionSettings& settings,
                                           const AttentionSite& site, const LogitScale* scale) {
  FeatureSettings f;
  f.method = settings.draws;
  f.features = settings.features;
  f.head_dim = site.head_dim;
  f.p = settings.p;
  f.logit_scale = settings.logit_scale;
  f.heads = settings.draws_per_head ? site.heads : 1;
  return std::make_unique<RandomMaclaurinFeatures>(parent, name, settings.kernel.function(), f,
                                                   settings.redraw, settings.eval_draws,
                                                   *site.random, scale);
}

}  // namespace

const std::vector<FeatureMapKind>& feature_maps() {
  // To add a map, add a row: name, formula, settings that it reads, columns per row of Ω, the
  // matrix it has by default, the kernels it estimates, how it is made.
  static const std::vector<FeatureMapKind> table = {
      {"maclaurin",
       "Π of random ±1 projections per degree",
       {"kernel", "logit_scale", "train_logit_scale", "features", "draws", "p", "redraw",
        "eval_draws", "denominator"},
       0,
       "",
       [](const PairKernel& k) { return !k.has_factor(); },
       make_maclaurin},
      {"positive", "exp(ω·x)/√m", kOfProjections, 1, "orf", is_exponential, make<PositiveFeatures>},
      {"trig", "[cos ω·x, sin ω·x]/√m", with(kOfProjections, "denominator"), 2, "iid",
       is_exponential, make<TrigFeatures>},
      {"elu",
       "elu(x) + 1",
       {},
       0,
       "",
       nullptr,
       [](Module* parent, const std::string& name, const AttentionSettings&,
          const AttentionSite& site, const LogitScale*) -> std::unique_ptr<FeatureMap> {
         return std::make_unique<EluFeatures>(parent, name, site.head_dim);
       }},
  };
  return table;
}

const FeatureMapKind& feature_map(const std::string& name) {
  std::vector<std::string> names;
  for (const FeatureMapKind& map : feature_maps()) {
    if (map.name == name) return map;
    names.push_back(map.name);
  }
  throw Error("feature map '{}' is unknown; use {}", name, fmt::join(names, ", "));
}

void check_feature_map(const AttentionSettings& settings) {
  const FeatureMapKind& map = settings.map;
  require(!map.estimates || map.estimates(settings.kernel),
          "[features] map {} cannot estimate the kernel {} = {}; choose another kernel or map",
          map.name, settings.kernel.name(), settings.kernel.formula());
  require(!settings.matrix || !map.matrix.empty(),
          "[features] map {} has no projection matrix to choose, but {} is given; leave it out",
          map.name, settings.matrix ? settings.matrix->name : "");
  require(settings.denominator >= 0.0 && std::isfinite(settings.denominator),
          "[features] the floor of denominators is {}; use a positive number, or 0 for none",
          settings.denominator);
  require(map.columns_per_row == 0 || (settings.features >= map.columns_per_row &&
                                       settings.features % map.columns_per_row == 0),
          "[features] map {} has {} columns per projection, so the number of features must be a "
          "multiple of it, is {}",
          map.name, map.columns_per_row, settings.features);
}

std::unique_ptr<FeatureMap> make_feature_map(Module* parent, const std::string& name,
                                             const AttentionSettings& settings,
                                             const AttentionSite& site, const LogitScale* scale) {
  check_feature_map(settings);
  AttentionSettings resolved = settings;
  resolved.logit_scale = resolved_logit_scale(settings, site.head_dim);
  return settings.map.make(parent, name, resolved, site, scale);
}

}  // namespace macgrad::nn
