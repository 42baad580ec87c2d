// Weights of torch.nn.Transformer (and of its encoder and decoder layers) under macgrad's names.
#pragma once

#include <map>
#include <string>

#include "macgrad/nn/module.h"

namespace macgrad::nn {

/// Renames a state dict (or gradients under the same names): in_proj_weight (3C, C) and
/// in_proj_bias become views of q_proj, k_proj, v_proj; self_attn -> self_attention,
/// multihead_attn -> cross_attention, linear1/2 -> feed_forward.linear1/2. A name that no rule
/// knows is kept, so that load_state_dict reports it.
std::map<std::string, Tensor> from_torch_names(const std::map<std::string, Tensor>& state);

/// Loads a safetensors file of such a state dict into `module` (strictly; see
/// Module::load_state_dict). `prefix` is cut from the file's names; others are ignored.
void load_torch_weights(Module& module, const std::string& path, const std::string& prefix = "");

}  // namespace macgrad::nn
