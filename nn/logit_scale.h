// LogitScale: the factor τ on the logits t = τ·q·k/√d, fixed or trained (nn/README.md, equation
// (5)).
#pragma once

#include <cmath>
#include <optional>
#include <string>

#include "macgrad/nn/module.h"

namespace macgrad::nn {

/// A trained τ is 0.95·R·√d·sigmoid(θ) for kernels of finite radius R and exp(θ) for the others.
class LogitScale : public Module {
 public:
  /// Throws an Error when `initial` does not keep |τ·q·k/√d| inside the radius.
  LogitScale(Module* parent, std::string name, double initial, bool trained, double radius,
             int64_t head_dim);
  /// τ now. For a trained one this reads θ back.
  double value() const;
  bool trained() const { return theta.has_value(); }
  /// x·τ/relative_to; x itself when nothing changes. A trained τ is divided by what
  /// `live_relative_to`, (1) on x's device, has at the time, where it is given: a captured step
  /// meets other values there.
  Variable apply(const Variable& x, double relative_to = 1.0,
                 const Tensor& live_relative_to = {}) const;
  /// x·√τ/d^¼, applied to queries and keys alike.
  Variable apply_root(const Variable& x) const;
  /// √τ/d^¼ of a fixed τ.
  double root() const {
    return std::sqrt(fixed_) * std::pow(static_cast<double>(head_dim_), -0.25);
  }
  /// "logit scale 1", "logit scale 2.5 (trained)".
  std::string describe() const;

  std::optional<Parameter> theta;  // (1)

 private:
  /// τ of a trained scale, (1) of compute_dtype.
  Variable trained_value() const;

  double fixed_;
  double limit_;  // 0.95·R·√d, infinite for an infinite radius
  int64_t head_dim_;
};

}  // namespace macgrad::nn
