// LayerNorm (Ba, Kiros & Hinton 2016) over the last dimension.
#pragma once

#include "macgrad/nn/module.h"

namespace macgrad::nn {

class LayerNorm : public Module {
 public:
  /// weight 1, bias 0; neither decays.
  LayerNorm(Module* parent, std::string name, int64_t width, double eps = 1e-5);
  /// x (…, width) -> the same shape.
  Variable forward(const Variable& x) const;

  Parameter weight;
  Parameter bias;

 private:
  double eps_;
};

}  // namespace macgrad::nn
