// The name table between torch.nn.Transformer and macgrad.
#include "macgrad/nn/torch_names.h"

#include <array>
#include <utility>

#include "macgrad/core/safetensors.h"

namespace macgrad::nn {

namespace {

// What a name holds in PyTorch, and here; applied in order, each at most once.
constexpr std::array<std::pair<const char*, const char*>, 4> kRenames{{
    {"self_attn.", "self_attention."},
    {"multihead_attn.", "cross_attention."},
    {".linear1.", ".feed_forward.linear1."},
    {".linear2.", ".feed_forward.linear2."},
}};

}  // namespace

std::map<std::string, Tensor> from_torch_names(const std::map<std::string, Tensor>& state) {
  std::map<std::string, Tensor> result;
  for (const auto& [torch_name, value] : state) {
    std::string name = torch_name;
    for (const auto& [theirs, ours] : kRenames) {
      const size_t at = name.find(theirs);
      if (at != std::string::npos) name.replace(at, std::string(theirs).size(), ours);
    }
    const size_t at = name.find("in_proj_");
    if (at == std::string::npos) {
      result.emplace(std::move(name), value);
      continue;
    }
    const std::string kind = name.substr(at + std::string("in_proj_").size());  // weight or bias
    require(value.rank() >= 1 && value.size(0) % 3 == 0,
            "[torch names] {} is {}; three projections need a first extent divisible by 3",
            torch_name, value.shape());
    const int64_t C = value.size(0) / 3;
    int64_t start = 0;
    for (const char* part : {"q_proj.", "k_proj.", "v_proj."}) {
      result.emplace(name.substr(0, at) + part + kind, value.slice(0, start, start + C));
      start += C;
    }
  }
  return result;
}

void load_torch_weights(Module& module, const std::string& path, const std::string& prefix) {
  std::map<std::string, Tensor> state;
  for (auto& [name, value] : load_safetensors(path).tensors)
    if (name.starts_with(prefix)) state.emplace(name.substr(prefix.size()), value);
  require(!state.empty(), "[torch names] {} has no tensor whose name begins with '{}'", path,
          prefix);
  module.load_state_dict(from_torch_names(state));
}

}  // namespace macgrad::nn
