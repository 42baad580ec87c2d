// Linear: x·Wᵀ + b.
#pragma once

#include "macgrad/nn/module.h"

namespace macgrad::nn {

class Linear : public Module {
 public:
  /// Weight (out, in) Xavier uniform, bias 0.
  Linear(Module* parent, std::string name, int64_t in, int64_t out, ModelRandom& random,
         bool with_bias = true);
  /// x (…, in) -> (…, out).
  Variable forward(const Variable& x) const;

  Parameter weight;
  std::optional<Parameter> bias;
};

}  // namespace macgrad::nn
