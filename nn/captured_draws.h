// Feature draws that a captured training step renews in each replay: all maps of a model in one
// launch.
#pragma once

#include <vector>

#include "macgrad/core/kernels/rmfa.h"

namespace macgrad::nn {

/// Operands of kernels::draw_features, one entry per map.
struct CapturedDraws {
  Tensors laws, omegas, weights, layouts;
  std::vector<FeatureDrawArgs> args;

  void queue() const {
    if (!args.empty()) kernels::draw_features(laws, omegas, weights, layouts, args);
  }
};

}  // namespace macgrad::nn
