// The map φ(x) = 1: linear attention with it is the mean of the visible values for any q and k, the
// baseline of every comparison.
#pragma once

#include "macgrad/nn/attention_settings.h"

namespace macgrad::nn {

class ConstantFeatures : public FeatureMap {
 public:
  ConstantFeatures(Module* parent, std::string name)
      : FeatureMap(parent, std::move(name), nullptr) {}

  int64_t columns() const override { return 1; }
  MappedRows map(const Variable& x, Side, const Tensor&) override {
    return {Variable(Tensor::full(x.shape().with(3, 1), 1.0, x.dtype(), x.device())), Variable()};
  }
  std::string describe() const override { return "the mean of visible values"; }
};

inline FeatureMapKind constant_map() {
  return {"constant",
          "1",
          {},
          0,
          "",
          nullptr,
          [](Module* parent, const std::string& name, const AttentionSettings&,
             const AttentionSite&, const LogitScale*) -> std::unique_ptr<FeatureMap> {
            return std::make_unique<ConstantFeatures>(parent, name);
          }};
}

}  // namespace macgrad::nn
