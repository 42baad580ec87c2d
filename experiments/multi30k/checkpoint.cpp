// Writing and reading the checkpoint file. What does not fit is an error that names the file:
// another format, missing or unexpected tensors, shapes of another model.
#include "experiments/multi30k/checkpoint.h"

#include <charconv>

#include "core/safetensors.h"

namespace macgrad::experiments {
namespace {

constexpr char kFormat[] = "macgrad multi30k 1";
constexpr char kModel[] = "model/";
constexpr char kOptimizer[] = "optimizer/";

int64_t number(const Safetensors& file, const std::string& path, const std::string& key) {
  const auto found = file.metadata.find(key);
  int64_t value = 0;
  if (found != file.metadata.end()) {
    const std::string& text = found->second;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error == std::errc() && end == text.data() + text.size() && value >= 0) return value;
  }
  throw Error("{}: not a checkpoint of multi30k: the metadata has no number \"{}\"", path, key);
}

void check_format(const Safetensors& file, const std::string& path) {
  const auto format = file.metadata.find("format");
  require(format != file.metadata.end() && format->second == kFormat,
          "{}: not a checkpoint of multi30k (its metadata does not say \"{}\")", path, kFormat);
}

}  // namespace

void save_checkpoint(const std::string& path, nn::Transformer& model, const nn::Adam& optimizer,
                     const TrainingPlace& place, const Multi30kSettings& settings) {
  std::map<std::string, Tensor> tensors;
  for (const auto& [name, value] : model.state_dict()) tensors.emplace(kModel + name, value);
  for (const auto& [name, value] : optimizer.state_dict())
    tensors.emplace(kOptimizer + name, value);
  save_safetensors(path, tensors,
                   {{"format", kFormat},
                    {"epoch", fmt::format("{}", place.epoch)},
                    {"updates", fmt::format("{}", place.updates)},
                    {"settings", to_json(settings).dump()}});
}

TrainingPlace load_checkpoint(const std::string& path, nn::Transformer& model,
                              nn::Adam& optimizer) {
  const Safetensors file = load_safetensors(path);
  check_format(file, path);
  const TrainingPlace place{number(file, path, "epoch"), number(file, path, "updates")};
  std::map<std::string, Tensor> parameters, moments;
  for (const auto& [name, value] : file.tensors) {
    if (name.starts_with(kModel)) {
      parameters.emplace(name.substr(sizeof kModel - 1), value);
    } else if (name.starts_with(kOptimizer)) {
      moments.emplace(name.substr(sizeof kOptimizer - 1), value);
    }
  }
  try {
    model.load_state_dict(parameters);
    optimizer.load_state_dict(moments);
  } catch (const Error& error) {
    throw Error("{}: {}", path, error.what());
  }
  return place;
}

SavedModel read_saved_model(const std::string& path) {
  const Safetensors file = load_safetensors(path);
  check_format(file, path);
  SavedModel saved;
  const auto text = file.metadata.find("settings");
  require(text != file.metadata.end(),
          "{}: its metadata has no settings; it cannot be told which "
          "model it holds",
          path);
  try {
    saved.settings = settings_from_json(Json::parse(text->second));
  } catch (const std::exception& error) {
    throw Error("{}: {}", path, error.what());
  }
  for (const auto& [name, value] : file.tensors)
    if (name.starts_with(kModel)) saved.state.emplace(name.substr(sizeof kModel - 1), value);
  return saved;
}

}  // namespace macgrad::experiments
