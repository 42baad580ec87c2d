// Embedding: rows of a table by token id. The table can serve as output projection as well (weight
// tying: pass `weight` to project()).
#pragma once

#include "macgrad/nn/module.h"

namespace macgrad::nn {

class Embedding : public Module {
 public:
  /// weight (V, C), normal with deviation 1/√C.
  Embedding(Module* parent, std::string name, int64_t vocabulary, int64_t width,
            ModelRandom& random);
  /// ids (…) int64 -> (…, C). An id outside [0, V) is an Error.
  Variable forward(const Tensor& ids) const;
  /// x (…, C) -> logits (…, V) with the same table.
  Variable project(const Variable& x) const;

  Parameter weight;
};

}  // namespace macgrad::nn
