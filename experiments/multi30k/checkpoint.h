// A checkpoint is one safetensors file: parameters and buffers (running statistics, the feature
// draws) as "model/...", the optimizer's moments as "optimizer/...", and as metadata the settings
// and where training stood. The vocabularies lie beside it.
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "experiments/multi30k/settings.h"
#include "nn/optimizer.h"

namespace macgrad::experiments {

struct TrainingPlace {
  int64_t epoch = 0;    // last one begun
  int64_t updates = 0;  // made so far
};

/// Replaces `path` atomically.
void save_checkpoint(const std::string& path, nn::Transformer& model, const nn::Adam& optimizer,
                     const TrainingPlace& place, const Multi30kSettings& settings);

/// Copies a checkpoint into a model and optimizer of the same settings. Throws an Error naming the
/// file when it is no such checkpoint, and listing what does not fit.
TrainingPlace load_checkpoint(const std::string& path, nn::Transformer& model, nn::Adam& optimizer);

/// What a checkpoint says of the model, for translating with it.
struct SavedModel {
  Multi30kSettings settings;
  std::map<std::string, Tensor> state;  // of Transformer::load_state_dict
};
/// Throws an Error naming the file when it is missing or no such checkpoint.
SavedModel read_saved_model(const std::string& path);

}  // namespace macgrad::experiments
