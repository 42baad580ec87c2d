// Dropout (Srivastava et al. 2014): in training each element is 0 with probability p, else scaled
// by 1/(1-p). Masks are draws of the model's dropout stream and are replayed by key in gradients.
#pragma once

#include "macgrad/nn/module.h"

namespace macgrad::nn {

class Dropout : public Module {
 public:
  /// Throws an Error unless 0 <= p < 1.
  Dropout(Module* parent, std::string name, double p, ModelRandom& random);
  /// x (…) -> the same shape.
  Variable forward(const Variable& x) const;
  double p() const { return p_; }

 protected:
  void on_micro_batch(uint32_t step, uint32_t micro_batch) override {
    random_->begin_step(step, micro_batch);
  }

 private:
  double p_;
  ModelRandom* random_;
};

}  // namespace macgrad::nn
