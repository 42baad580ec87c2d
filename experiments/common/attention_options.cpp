#include "macgrad/experiments/common/attention_options.h"

#include <fmt/ranges.h>

#include <algorithm>

namespace macgrad::experiments {
namespace {

template <class Rows>
std::vector<std::string> names_of(const Rows& rows) {
  std::vector<std::string> names;
  for (const auto& row : rows) names.push_back(row.name);
  return names;
}

template <class Row>
bool reads(const Row& row, const std::string& setting) {
  return std::find(row.reads.begin(), row.reads.end(), setting) != row.reads.end();
}

std::string alternatives(const std::vector<std::string>& names) {
  if (names.size() < 2) return names.empty() ? "" : names[0];
  return fmt::format("{} or {}", fmt::join(names.begin(), names.end() - 1, ", "), names.back());
}

}  // namespace

std::vector<std::string> attention_names() {
  return names_of(nn::attention_kinds());
}

std::vector<std::string> feature_map_names() {
  return names_of(nn::feature_maps());
}

std::vector<std::string> projection_matrix_names() {
  std::vector<std::string> names = names_of(nn::projection_matrices());
  names.insert(names.begin(), "auto");
  return names;
}

std::optional<nn::ProjectionMatrix> matrix_named(const std::string& name) {
  if (name == "auto") return std::nullopt;
  return nn::projection_matrix(name);
}

const std::vector<std::string>& attention_settings_names() {
  static const std::vector<std::string> names{
      "kernel", "logit_scale", "train_logit_scale", "attention_dropout",
      "map",    "matrix",      "features",          "draws",
      "p",      "redraw",      "eval_draws",        "denominator"};
  return names;
}

std::string maps_reading(const std::string& setting) {
  std::vector<std::string> maps;
  for (const nn::FeatureMapKind& map : nn::feature_maps())
    if (reads(map, setting)) maps.push_back(map.name);
  return alternatives(maps);
}

std::string readers_of(const std::string& setting) {
  const std::string maps = maps_reading(setting);
  std::vector<std::string> kinds, with_map;
  for (const nn::AttentionKind& kind : nn::attention_kinds()) {
    if (reads(kind, setting))
      kinds.push_back("--attention " + kind.name);
    else if (kind.uses_map && !maps.empty())
      with_map.push_back(fmt::format("--attention {} with --map {}", kind.name, maps));
  }
  if (kinds.empty() || with_map.empty()) return alternatives(kinds.empty() ? with_map : kinds);
  return fmt::format("{}, or {}", fmt::join(kinds, ", "), alternatives(with_map));
}

void reject_idle_attention_options(const Options& options, const std::string& attention,
                                   const std::string& map) {
  nn::AttentionSettings settings;
  settings.kind = nn::attention_kind(attention);
  settings.map = nn::feature_map(map);
  for (const std::string& setting : attention_settings_names()) {
    const std::string name = option_of(setting);
    if (!options.has(name) || !options.given(name) || settings.reads(setting)) continue;
    throw UsageError("{} has no effect with --attention {}{}; use {}", name, attention,
                     settings.kind.uses_map ? " --map " + map : "", readers_of(setting));
  }
}

}  // namespace macgrad::experiments
