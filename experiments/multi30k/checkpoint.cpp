// Writing and reading checkpoints. What does not fit is an error that names the file: another
// format, a model without its optimizer, missing or unexpected tensors, shapes of another model,
// other data.
#include "macgrad/experiments/multi30k/checkpoint.h"

#include <nlohmann/json.hpp>
#include <set>

#include "macgrad/core/safetensors.h"

namespace macgrad::experiments {
namespace {

constexpr char kProgram[] = "macgrad multi30k ";
constexpr char kFormat[] = "macgrad multi30k 3";
constexpr char kModel[] = "model/";
constexpr char kOptimizer[] = "optimizer/";

using Metadata = std::map<std::string, std::string>;
using State = std::map<std::string, Tensor>;

void check_format(const Metadata& metadata, const std::string& path) {
  const auto format = metadata.find("format");
  require(format != metadata.end() && format->second.starts_with(kProgram),
          "{}: not a checkpoint of multi30k (its metadata has no format \"{}...\")", path,
          kProgram);
  require(
      format->second == kFormat,
      "{}: a checkpoint in the format \"{}\" of another version of multi30k; this version reads "
      "\"{}\": use the version that wrote it, or train again",
      path, format->second, kFormat);
}

// The JSON under `key` of the metadata, turned into something by `read`.
template <class Read>
auto read_metadata(const Metadata& metadata, const std::string& path, const std::string& key,
                   const Read& read) {
  const auto found = metadata.find(key);
  require(found != metadata.end(), "{}: a broken checkpoint: its metadata has no \"{}\"", path,
          key);
  try {
    return read(Json::parse(found->second));
  } catch (const std::exception& error) {
    throw Error("{}: a broken checkpoint: \"{}\" in its metadata: {}", path, key, error.what());
  }
}

void check_data(const Metadata& metadata, const std::string& path, const Json& data) {
  const Json saved = read_metadata(metadata, path, "data", [](const Json& json) { return json; });
  require(saved == data,
          "{}: the run was trained on other data; it had {}, now it is {}: give --data the folder "
          "that it was started with",
          path, saved.dump(), data.dump());
}

// Entries whose name starts with `prefix`, without it.
State part(const State& tensors, const std::string& prefix) {
  State result;
  for (const auto& [name, value] : tensors)
    if (name.starts_with(prefix)) result.emplace(name.substr(prefix.size()), value);
  return result;
}

void add(State& tensors, const std::string& prefix, const State& more) {
  for (const auto& [name, value] : more) tensors.emplace(prefix + name, value);
}

// Runs `load`, whose errors then name the file.
template <class Load>
void fitting(const std::string& path, const Load& load) {
  try {
    load();
  } catch (const Error& error) {
    throw Error("{}: {}", path, error.what());
  }
}

// A path in the settings may not be UTF-8, which must not cost the model.
std::string text_of(const Json& json) {
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

void save_state(const std::string& path, const State& model, const Multi30kSettings& settings) {
  State tensors;
  add(tensors, kModel, model);
  save_safetensors(path, tensors, {{"format", kFormat}, {"settings", text_of(to_json(settings))}});
}

}  // namespace

void save_checkpoint(const std::string& path, nn::Transformer& model, const nn::Adam& optimizer,
                     const RunState& state, const Multi30kSettings& settings, const Json& data) {
  State tensors;
  add(tensors, kModel, model.state_dict());
  add(tensors, kOptimizer, optimizer.state_dict());
  save_safetensors(path, tensors,
                   {{"format", kFormat},
                    {"settings", text_of(to_json(settings))},
                    {"state", text_of(to_json(state))},
                    {"data", text_of(data)}});
}

void save_model(const std::string& path, nn::Transformer& model, const Multi30kSettings& settings) {
  save_state(path, model.state_dict(), settings);
}

RunState load_checkpoint(const std::string& path, nn::Transformer& model, nn::Adam& optimizer,
                         const Json& data) {
  const Safetensors file = load_safetensors(path);
  check_format(file.metadata, path);
  require(file.metadata.contains("state"),
          "{}: holds a model alone; training goes on from checkpoint.safetensors", path);
  check_data(file.metadata, path, data);
  RunState state = read_metadata(file.metadata, path, "state", run_state_from_json);
  fitting(path, [&] {
    model.load_state_dict(part(file.tensors, kModel));
    optimizer.load_state_dict(part(file.tensors, kOptimizer));
  });
  return state;
}

void check_data(const std::string& path, const Json& data) {
  const SafetensorsHeader header = list_safetensors(path);
  check_format(header.metadata, path);
  check_data(header.metadata, path, data);
}

void load_model(const std::string& path, nn::Transformer& model) {
  const Safetensors file = load_safetensors(path);
  check_format(file.metadata, path);
  fitting(path, [&] { model.load_state_dict(part(file.tensors, kModel)); });
}

Multi30kSettings checkpoint_settings(const std::string& path) {
  const SafetensorsHeader header = list_safetensors(path);
  check_format(header.metadata, path);
  return read_metadata(header.metadata, path, "settings", settings_from_json);
}

bool is_training_checkpoint(const std::string& path) {
  const SafetensorsHeader header = list_safetensors(path);
  check_format(header.metadata, path);
  return header.metadata.contains("state");
}

RunState checkpoint_state(const std::string& path) {
  const SafetensorsHeader header = list_safetensors(path);
  check_format(header.metadata, path);
  return read_metadata(header.metadata, path, "state", run_state_from_json);
}

void average_models(const std::vector<std::string>& paths, const std::string& result,
                    nn::Transformer& model, const Multi30kSettings& settings) {
  require(!paths.empty(), "{}: there are no epochs to average", result);
  std::set<std::string> trained;
  for (const auto& [name, parameter] : model.named_parameters()) trained.insert(name);
  std::map<std::string, std::vector<double>> sums;
  State mean;
  for (const std::string& path : paths) {
    const Safetensors file = load_safetensors(path);
    check_format(file.metadata, path);
    State state = part(file.tensors, kModel);
    for (const auto& [name, value] : state) {
      if (!trained.contains(name)) continue;
      const std::vector<double> values = value.to(DType::float64).to_vector<double>();
      std::vector<double>& sum = sums[name];
      if (&path == &paths.front()) sum.assign(values.size(), 0.0);
      require(sum.size() == values.size(), "{}: {} has {} values, in {} it has {}", path, name,
              values.size(), paths.front(), sum.size());
      for (size_t i = 0; i < values.size(); ++i) sum[i] += values[i];
    }
    if (&path == &paths.back()) mean = std::move(state);
  }
  for (auto& [name, sum] : sums) {
    const auto last = mean.find(name);
    require(last != mean.end(), "{}: has no {}", paths.back(), name);
    for (double& value : sum) value /= static_cast<double>(paths.size());
    const Tensor& old = last->second;
    last->second = Tensor::from_vector(sum, old.shape()).to(old.dtype());
  }
  save_state(result, mean, settings);
}

}  // namespace macgrad::experiments
