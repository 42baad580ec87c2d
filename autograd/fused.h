// FusedOp: an op with its own kernels and a mandatory composite in primitive ops. The composite is
// test oracle, fallback, and the way to higher derivatives: the backward kernel is itself a FusedOp
// whose composite is derived by differentiating the forward composite.
#pragma once

#include <memory>
#include <string>

#include "macgrad/autograd/node.h"
#include "macgrad/core/operands.h"

namespace macgrad {

/// One call of a fused op: a derived class holds what the call needs besides its inputs. Only what
/// runs is called: without a gradient neither attributes nor constants nor backward.
class FusedOp {
 public:
  struct Result {
    Tensors outputs;  // of the op
    Tensors saved;    // statistics for the backward kernel; no gradients
  };

  virtual ~FusedOp() = default;
  virtual const char* name() const = 0;
  virtual Attributes attributes() const { return {}; }
  /// What the rules read in addition to inputs and results: masks, targets, feature draws.
  /// Overwriting one before the backward pass is an error that names it.
  virtual std::vector<SavedTensor> constants() const { return {}; }
  /// Whether the kernels take these operands.
  virtual Support supports(const Tensors&) const { return {}; }
  /// The same for the backward kernel, checked before the forward kernel runs when a gradient may
  /// be needed.
  virtual Support supports_backward(const Tensors&) const { return {}; }
  virtual Result forward(const Tensors& inputs) = 0;
  /// Without a backward kernel the composite is differentiated, and backward() is not called.
  virtual bool has_backward() const { return true; }
  /// Gradients of the inputs; entries not in `needs` may stay undefined.
  virtual Tensors backward(const Tensors& inputs, const Result& result, const Tensors& cotangents,
                           const std::vector<bool>& needs) const;
  /// The same outputs from primitive ops.
  virtual Variables composite(const Variables& inputs) const = 0;
};

/// Runs the op: its kernels where they take the operands, else its composite on the same device
/// (the reason is logged once; an Error with MACGRAD_FUSED=strict). Inside Unfused, always the
/// composite.
Variables apply_fused(const std::shared_ptr<FusedOp>& op, const Variables& inputs);

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
