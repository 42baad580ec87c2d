// The state as JSON. Numbers are written with the fewest digits that read back to the same bits;
// what is not finite has no number in JSON and is written as a word.
#include "macgrad/experiments/multi30k/training_state.h"

#include <limits>
#include <nlohmann/json.hpp>

#include "macgrad/core/error.h"

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
  f("denominators", s.denominators.rows);
  f("floored", s.denominators.floored);
  f("smallest_ratio", s.denominators.smallest_ratio);
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

// No such number in a state is negative.
int64_t whole(const Json& json, const char* name) {
  const Json& value = json.at(name);
  require(value.is_number_integer(), "{} is {}, not a whole number", name, value.dump());
  require(value >= 0 && value <= std::numeric_limits<int64_t>::max(), "{} is {}, out of range",
          name, value.dump());
  return value.get<int64_t>();
}

// A fact about a machine or build; "" where it was not known.
std::string known(const Json& json, const char* name) {
  const Json& value = json.at(name);
  return value.is_null() ? "" : value.get<std::string>();
}

auto reader(const Json& json) {
  return [&json](const char* name, auto& value) {
    if constexpr (std::is_same_v<std::decay_t<decltype(value)>, double>)
      value = number_from_json(json.at(name));
    else
      value = whole(json, name);
  };
}

// What a run cannot have come to.
void check_state(const RunState& s) {
  const TrainingPlace& p = s.place;
  const auto check = [](bool holds, const char* what) { require(holds, "impossible: {}", what); };
  check(p.epoch >= 1, "the epoch under way is not counted from 1");
  check(p.done.updates <= p.updates, "more updates in an epoch than in the run");
  check(p.skipped_in_a_row <= p.skipped && p.skipped <= p.updates,
        "more updates skipped than made");
  check(p.done.seconds >= 0 && s.wall_seconds >= 0, "a negative time");
  check(s.best_epoch <= p.epoch, "the best epoch has not been");
  check(!std::isnan(s.best_loss), "the lowest loss is no number");
  const Metrics* before = nullptr;
  for (const Metrics& m : s.epochs) {
    check(m.epoch > (before != nullptr ? before->epoch : 0) && m.epoch <= p.epoch,
          "epochs out of order");
    check(m.updates >= (before != nullptr ? before->updates : 0) && m.updates <= p.updates,
          "updates out of order");
    check(m.seconds >= 0, "a negative time");
    before = &m;
  }
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

Json to_json(const std::vector<Sitting>& sittings) {
  Json json = Json::array();
  for (const Sitting& s : sittings)
    json.push_back({{"from_update", s.from_update},
                    {"commit", s.commit},
                    {"machine", s.machine},
                    {"device", s.device},
                    {"threads", s.threads}});
  return json;
}

Json to_json(const RunState& state) {
  Json json{{"epoch", state.place.epoch},
            {"updates", state.place.updates},
            {"skipped", state.place.skipped},
            {"skipped_in_a_row", state.place.skipped_in_a_row},
            {"best_epoch", state.best_epoch},
            {"best_loss", number(state.best_loss)},
            {"wall_seconds", number(state.wall_seconds)},
            {"sittings", to_json(state.sittings)},
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
  state.place.epoch = whole(json, "epoch");
  state.place.updates = whole(json, "updates");
  state.place.skipped = whole(json, "skipped");
  state.place.skipped_in_a_row = whole(json, "skipped_in_a_row");
  state.best_epoch = whole(json, "best_epoch");
  state.best_loss = number_from_json(json.at("best_loss"));
  state.wall_seconds = number_from_json(json.at("wall_seconds"));
  // Earlier versions did not keep them.
  if (json.contains("sittings")) {
    require(json.at("sittings").is_array(), "sittings is no list");
    for (const Json& s : json.at("sittings"))
      state.sittings.push_back({whole(s, "from_update"), known(s, "commit"), known(s, "machine"),
                                known(s, "device"), whole(s, "threads")});
  }
  each_field(state.place.done, reader(json.at("done")));
  for (const Json& row : json.at("epochs")) {
    Metrics m;
    each_metric(m, reader(row));
    state.epochs.push_back(m);
  }
  check_state(state);
  return state;
}

}  // namespace macgrad::experiments
