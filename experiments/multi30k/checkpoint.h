// Checkpoints are safetensors files of two kinds. A training checkpoint holds all that a run needs
// to go on: parameters and buffers (running statistics, feature draws) as "model/...", the
// optimizer's state as "optimizer/...", and as metadata the settings, the state (training_state.h)
// and the checksums of the data. A model file (an epoch, the best, the averaged one) holds
// "model/..." and the settings. The vocabularies lie beside them. Every file is replaced
// atomically.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "macgrad/experiments/multi30k/settings.h"
#include "macgrad/experiments/multi30k/training_state.h"
#include "macgrad/nn/optimizer.h"

namespace macgrad::experiments {

/// `data`: facts that must be the same when training goes on (checksums of the text).
void save_checkpoint(const std::string& path, nn::Transformer& model, const nn::Adam& optimizer,
                     const RunState& state, const Multi30kSettings& settings, const Json& data);
void save_model(const std::string& path, nn::Transformer& model, const Multi30kSettings& settings);

/// Copies a training checkpoint into a model and optimizer of the same settings. Throws an Error
/// naming the file when it is no such checkpoint or of other data, and listing what does not fit.
RunState load_checkpoint(const std::string& path, nn::Transformer& model, nn::Adam& optimizer,
                         const Json& data);

/// Throws as load_checkpoint does when a training checkpoint is of other data.
void check_data(const std::string& path, const Json& data);

/// Copies the model of a file of either kind.
void load_model(const std::string& path, nn::Transformer& model);

/// The settings that a file of either kind was made with; reads its header alone.
Multi30kSettings checkpoint_settings(const std::string& path);

/// Whether a file of either kind is a training checkpoint; reads its header alone.
bool is_training_checkpoint(const std::string& path);

/// Where the run of a training checkpoint stands; reads its header alone.
RunState checkpoint_state(const std::string& path);

/// Writes the mean of the parameters of several model files, computed in float64; buffers are those
/// of the last. An Error when the files hold different models.
void average_models(const std::vector<std::string>& paths, const std::string& result,
                    nn::Transformer& model, const Multi30kSettings& settings);

}  // namespace macgrad::experiments
