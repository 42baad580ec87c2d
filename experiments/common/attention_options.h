// What the options of attention have in common in all programs: their words, from the library's
// tables, and which of them an attention does not read.
#pragma once

#include <string>
#include <vector>

#include "macgrad/experiments/common/options.h"
#include "macgrad/nn/attention_settings.h"

namespace macgrad::experiments {

/// For --attention: "softmax", "exact", "linear", "rmfa", "mean".
std::vector<std::string> attention_names();
/// For --map: "maclaurin", "positive", "trig", "elu".
std::vector<std::string> feature_map_names();
/// For --matrix: "auto" (the map's), "iid", "orf", "rademacher".
std::vector<std::string> projection_matrix_names();
/// The matrix of a word of --matrix; absent for "auto".
std::optional<nn::ProjectionMatrix> matrix_named(const std::string& name);

/// Settings that only some kinds of attention or maps read, as members of settings files:
/// "eval_draws".
const std::vector<std::string>& attention_settings_names();
/// "maclaurin or trig": the maps that read it.
std::string maps_reading(const std::string& setting);
/// "--attention linear with --map positive or trig": what reads the setting.
std::string readers_of(const std::string& setting);

/// Throws a UsageError for a given option that this attention does not read: "--features has no
/// effect with --attention softmax; ...".
void reject_idle_attention_options(const Options& options, const std::string& attention,
                                   const std::string& map);

}  // namespace macgrad::experiments
