// The deterministic map φ(x) = elu(x) + 1 (Katharopoulos et al. 2020): x + 1 for x >= 0 and exp(x)
// below. It estimates no kernel and reads queries and keys unscaled.
#pragma once

#include "macgrad/autograd/ops.h"
#include "macgrad/nn/attention_settings.h"

namespace macgrad::nn {

class EluFeatures : public FeatureMap {
 public:
  EluFeatures(Module* parent, std::string name, int64_t head_dim)
      : FeatureMap(parent, std::move(name), nullptr), head_dim_(head_dim) {}

  int64_t columns() const override { return head_dim_; }
  bool log_features() const override { return true; }
  MappedRows map(const Variable& x, Side, const Tensor&) override {
    const Tensor below = less(x.value(), 0.0);
    return {where(below, x, log(add(masked_fill(x, below, 0.0), 1.0))), Variable()};
  }
  std::string describe() const override {
    return fmt::format("elu(x) + 1, {} features", head_dim_);
  }

 private:
  int64_t head_dim_;
};

}  // namespace macgrad::nn
