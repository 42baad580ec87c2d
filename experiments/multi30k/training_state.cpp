// The state as JSON. Numbers are written with the fewest digits that read back to the same bits;
// what is not finite has no number in JSON and is written as a word.
#include "experiments/multi30k/training_state.h"

#include "core/error.h"

namespace macgrad::experiments {
namespace {

Json number(double value) {
  if (std::isfinite(value)) return value;
  return std::isnan(value) ? "nan" : value > 0 ? "inf" : "-inf";
}

double number_from_json(const Json& json) {
  if (json.is_number()) return json.get<double>();
  const auto word = json.get<std::string>();
  if (word == "nan") return NAN;
  require(word == "inf" || word == "-inf", "\"{}\" is no number", word);
  return word == "inf" ? INFINITY : -INFINITY;
}

template <class Summary, class F>
void each_field(Summary& s, const F& f) {
  f("updates", s.updates);
  f("tokens", s.tokens);
  f("loss_sum", s.loss_sum);
  f("seconds", s.seconds);
  f("floored", s.rmfa.floored);
  f("smallest_ratio", s.rmfa.smallest_ratio);
}

template <class Row, class F>
void each_metric(Row& m, const F& f) {
  f("epoch", m.epoch);
  f("train_loss", m.train_loss);
  f("valid_loss", m.valid_loss);
  f("bleu", m.bleu);
  f("seconds", m.seconds);
  f("tokens", m.tokens);
  f("updates", m.updates);
}

auto writer(Json& json) {
  return [&json](const char* name, const auto& value) {
    if constexpr (std::is_same_v<std::decay_t<decltype(value)>, double>)
      json[name] = number(value);
    else
      json[name] = value;
  };
}

auto reader(const Json& json) {
  return [&json](const char* name, auto& value) {
    if constexpr (std::is_same_v<std::decay_t<decltype(value)>, double>)
      value = number_from_json(json.at(name));
    else
      json.at(name).get_to(value);
  };
}

}  // namespace

bool RunState::add(const Metrics& epoch) {
  epochs.push_back(epoch);
  if (!(epoch.valid_loss < best_loss)) return false;
  best_loss = epoch.valid_loss;
  best_epoch = epoch.epoch;
  return true;
}

int64_t RunState::epochs_without_improvement() const {
  return epochs.empty() ? 0 : epochs.back().epoch - best_epoch;
}

Json to_json(const RunState& state) {
  Json json{{"epoch", state.place.epoch},
            {"updates", state.place.updates},
            {"skipped", state.place.skipped},
            {"skipped_in_a_row", state.place.skipped_in_a_row},
            {"best_epoch", state.best_epoch},
            {"best_loss", number(state.best_loss)},
            {"wall_seconds", number(state.wall_seconds)},
            {"done", Json::object()},
            {"epochs", Json::array()}};
  each_field(state.place.done, writer(json["done"]));
  for (const Metrics& m : state.epochs) {
    Json row;
    each_metric(m, writer(row));
    json["epochs"].push_back(row);
  }
  return json;
}

RunState run_state_from_json(const Json& json) {
  RunState state;
  json.at("epoch").get_to(state.place.epoch);
  json.at("updates").get_to(state.place.updates);
  json.at("skipped").get_to(state.place.skipped);
  json.at("skipped_in_a_row").get_to(state.place.skipped_in_a_row);
  json.at("best_epoch").get_to(state.best_epoch);
  state.best_loss = number_from_json(json.at("best_loss"));
  state.wall_seconds = number_from_json(json.at("wall_seconds"));
  each_field(state.place.done, reader(json.at("done")));
  for (const Json& row : json.at("epochs")) {
    Metrics m;
    each_metric(m, reader(row));
    state.epochs.push_back(m);
  }
  return state;
}

}  // namespace macgrad::experiments
