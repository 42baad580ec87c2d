// Settings by name: their roles, and their JSON.
#include <algorithm>
#include <nlohmann/json.hpp>
#include <type_traits>
#include <utility>

#include "macgrad/experiments/multi30k/settings.h"

namespace macgrad::experiments {
namespace {

// Calls f(name in JSON, value, role) for every setting but the common ones.
template <class Settings, class F>
void each_setting(Settings& s, F&& f) {
  const auto with = [&](SettingRole role) {
    return [&f, role](const char* name, auto& value) { f(name, value, role); };
  };
  const auto model = with(SettingRole::model), end = with(SettingRole::end),
             use = with(SettingRole::use), place = with(SettingRole::place),
             label = with(SettingRole::label);
  label("preset", s.preset);
  model("toy", s.toy);
  model("toy_train_pairs", s.toy_train_pairs);
  model("toy_valid_pairs", s.toy_valid_pairs);
  place("data", s.data);
  model("text", s.text);
  model("source", s.source);
  model("target", s.target);
  model("subwords", s.subwords);
  model("vocabularies", s.vocabularies);
  model("vocabulary_size", s.vocabulary_size);
  model("min_frequency", s.min_frequency);
  model("layers", s.layers);
  model("d_model", s.d_model);
  model("heads", s.heads);
  model("ffn", s.ffn);
  model("dropout", s.dropout);
  model("share_embeddings", s.share_embeddings);
  model("norm", s.norm);
  model("activation", s.activation);
  model("attention", s.attention);
  model("attention_dropout", s.attention_dropout);
  model("map", s.map);
  model("matrix", s.matrix);
  model("kernel", s.kernel);
  model("logit_scale", s.logit_scale);
  model("train_logit_scale", s.train_logit_scale);
  model("features", s.features);
  model("draws", s.draws);
  model("redraw", s.redraw);
  model("eval_draws", s.eval_draws);
  model("denominator", s.denominator);
  model("ppsbn", s.ppsbn);
  model("presbn", s.presbn);
  model("qkv_gain", s.qkv_gain);
  end("epochs", s.epochs);
  end("max_updates", s.max_updates);
  model("batch_tokens", s.batch_tokens);
  model("accumulate", s.accumulate);
  model("lr", s.lr);
  model("warmup", s.warmup);
  model("warmup_from", s.warmup_from);
  model("schedule", s.schedule);
  model("label_smoothing", s.label_smoothing);
  model("clip", s.clip);
  place("graph", s.graph);
  model("shape_multiple", s.shape_multiple);
  model("weight_decay", s.weight_decay);
  model("adam_beta1", s.adam_beta1);
  model("adam_beta2", s.adam_beta2);
  model("adam_eps", s.adam_eps);
  end("patience", s.patience);
  use("average", s.average);
  place("keep", s.keep);
  place("checkpoint_minutes", s.checkpoint_minutes);
  model("valid_bleu_sentences", s.valid_bleu_sentences);
  model("bleu_every", s.bleu_every);
  use("beam", s.beam);
  use("length_penalty", s.length_penalty);
  use("test", s.test);
}

std::vector<std::pair<std::string, SettingRole>> list_roles() {
  std::vector<std::pair<std::string, SettingRole>> roles;
  const Multi30kSettings defaults;
  each_setting(defaults, [&](const char* name, const auto&, SettingRole role) {
    roles.emplace_back(name, role);
  });
  roles.insert(roles.end(), {{"seed", SettingRole::seed},
                             {"threads", SettingRole::place},
                             {"device", SettingRole::place},
                             {"math", SettingRole::model},
                             {"precision", SettingRole::model},
                             {"out", SettingRole::place}});
  return roles;
}

const std::vector<std::pair<std::string, SettingRole>>& roles() {
  static const auto roles = list_roles();
  return roles;
}

// A file may hold what no command line gives: each value goes through the checks of its option.
void check_values(const Multi30kSettings& s) {
  Multi30kSettings ignored;
  Options options("multi30k");
  declare_options(options, ignored);
  const Json common = to_json(s.common);
  for (const auto& [name, value] : common.items())
    if (name != "out")  // a path may be anything
      options.set(option_of(name), value.is_string() ? value.get<std::string>() : value.dump());
  each_setting(s, [&](const std::string& name, const auto& value, SettingRole) {
    using T = std::decay_t<decltype(value)>;
    if constexpr (std::is_same_v<T, int64_t> || std::is_same_v<T, double> ||
                  std::is_same_v<T, std::string>)
      if (options.has(option_of(name)) && name != "data")
        options.set(option_of(name), fmt::format("{}", value));
  });
}

}  // namespace

SettingRole setting_role(const std::string& name) {
  for (const auto& [known, role] : roles())
    if (known == name) return role;
  return SettingRole::model;
}

bool may_change(SettingRole role) {
  return role == SettingRole::end || role == SettingRole::use || role == SettingRole::place;
}

std::vector<std::string> changeable_options() {
  std::vector<std::string> options;
  for (const auto& [name, role] : roles())
    if (may_change(role) && name != "out") options.push_back(option_of(name));
  return options;
}

Json to_json(const Multi30kSettings& s) {
  Json json;
  each_setting(s, [&](const char* name, const auto& value, SettingRole) { json[name] = value; });
  json["common"] = to_json(s.common);
  return json;
}

Multi30kSettings settings_from_json(const Json& json) {
  Multi30kSettings s;
  try {
    each_setting(s, [&](const char* name, auto& value, SettingRole) {
      const Json& found = json.at(name);
      constexpr bool whole = std::is_same_v<std::decay_t<decltype(value)>, int64_t>;
      // The JSON library would cut off the fraction.
      require(!whole || found.is_number_integer(),
              "settings of a run: {} is {}, not a whole number", name, found.dump());
      found.get_to(value);
    });
    s.common = common_options_from_json(json.at("common"));
    check_values(s);
  } catch (const UsageError& error) {
    throw Error("settings of a run: {}", error.what());
  } catch (const nlohmann::json::exception& error) {
    throw Error("settings of a run: {}; they were written by another version of multi30k",
                error.what());
  }
  return s;
}

}  // namespace macgrad::experiments
