// FusedOp: an op with its own kernels and a mandatory composite in primitive ops. The composite is
// test oracle, fallback, and the way to higher derivatives: the backward kernel is itself a FusedOp
// whose composite is derived by differentiating the forward composite.
#pragma once

#include <functional>
#include <string>

#include "macgrad/autograd/node.h"
#include "macgrad/core/kernel.h"

namespace macgrad {

struct FusedOp {
  struct Forward {
    Tensors outputs;  // of the op
    Tensors saved;    // statistics for the backward kernel; no gradients
  };
  std::string name;
  Attributes attributes;
  /// What the rules read beside inputs and results: masks, targets, feature draws. Overwriting one
  /// before the gradient is asked for is an error that names it.
  std::vector<SavedTensor> constants;
  /// Whether the kernels take these operands; absent: yes.
  std::function<Support(const Tensors& inputs)> supports;
  /// The same for the backward kernel, checked before the forward kernel runs when a gradient may
  /// be needed.
  std::function<Support(const Tensors& inputs)> supports_backward;
  std::function<Forward(const Tensors& inputs)> forward;
  /// Gradients of the inputs; entries not in `needs` may stay undefined. Absent: the composite is
  /// differentiated.
  std::function<Tensors(const Tensors& inputs, const Forward& result, const Tensors& cotangents,
                        const std::vector<bool>& needs)>
      backward;
  /// The same outputs from primitive ops.
  std::function<Variables(const Variables& inputs)> composite;
};

/// Runs the op: its kernels where they serve the operands, else its composite on the same device
/// (the reason is logged once; an Error with MACGRAD_FUSED=strict). Inside Unfused, always the
/// composite.
Variables apply_fused(const FusedOp& op, const Variables& inputs);

/// While alive, fused ops of this thread record their composites, so that inner values and their
/// gradients can be seen.
class Unfused {
 public:
  Unfused();
  ~Unfused();
  Unfused(const Unfused&) = delete;
  Unfused& operator=(const Unfused&) = delete;
};

}  // namespace macgrad
