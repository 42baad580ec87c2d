// FeedForward: linear2(dropout(activation(linear1(x)))), row by row.
#pragma once

#include "macgrad/nn/dropout.h"
#include "macgrad/nn/linear.h"

namespace macgrad::nn {

enum class Activation { relu, gelu, gelu_tanh };
/// "relu", "gelu", "gelu_tanh"; an Error lists them.
Activation parse_activation(const std::string& name);
Variable activate(const Variable& x, Activation activation);

class FeedForward : public Module {
 public:
  FeedForward(Module* parent, std::string name, int64_t width, int64_t hidden,
              Activation activation, double dropout_p, ModelRandom& random);
  /// x (…, C) -> (…, C).
  Variable forward(const Variable& x) const;

  Linear linear1;
  Dropout dropout;
  Linear linear2;

 private:
  Activation activation_;
};

}  // namespace macgrad::nn
