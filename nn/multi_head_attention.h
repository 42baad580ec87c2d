// MultiHeadAttention (Vaswani et al. 2017, section 3.2.2) around any AttentionCore. Heads are views
// of the projections: nothing is copied on the way in.
#pragma once

#include <memory>

#include "macgrad/nn/attention_core.h"
#include "macgrad/nn/linear.h"

namespace macgrad::nn {

class MultiHeadAttention : public Module {
 public:
  /// C must be divisible by `heads`; head dimension d = C/heads.
  MultiHeadAttention(Module* parent, std::string name, int64_t width, int64_t heads,
                     const AttentionSettings& settings, AttentionRole role, ModelRandom& random);
  /// query (B,T,C), memory (B,S,C), the same Variable for self-attention -> (B,T,C). With a state,
  /// `memory` holds the new places alone, or is undefined when there are none.
  Variable forward(const Variable& query, const Variable& memory, const Mask& mask,
                   DecodeState* state = nullptr);
  AttentionCore& core() { return *core_; }

  Linear q_proj;
  Linear k_proj;
  Linear v_proj;
  Linear out_proj;

 private:
  int64_t heads_;
  std::unique_ptr<AttentionCore> core_;
};

}  // namespace macgrad::nn
