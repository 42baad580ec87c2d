// `inspect check`: gradients of a module or op at a real point of training, against central
// differences, first and second order. What enters (values made outside, parameters) is varied one
// entry at a time, in place, in a whole forward pass; what leaves is weighed with a random
// cotangent.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "macgrad/experiments/inspect/model_step.h"

namespace macgrad::experiments {

struct CheckSettings {
  std::string part;     // a module's path, or an op's key; "": from all parameters to the loss
  int order = 1;        // 1, or 2: gradients of gradients as well
  int64_t entries = 4;  // of each value that enters, at random
  double step = 1e-6;   // of the differences, relative to max(1, |x|)
  bool open = false;    // composites instead of fused kernels
};

/// One entry of one value that enters.
struct CheckedEntry {
  std::string key;
  int64_t entry = 0;  // in row-major order
  int order = 1;
  double analytic = 0, numeric = 0;
  double scale = 0;  // largest |analytic| of that value at this order
  double noise = 0;  // what rounding may do to `numeric`
  /// Error as a share of max(scale, |numeric|): all of it, and what is beyond the noise.
  double raw() const;
  double relative() const;
};

struct CheckResult {
  std::vector<std::string> inputs, outputs;  // keys
  std::vector<CheckedEntry> entries;
  /// By relative(), then by raw().
  const CheckedEntry& worst(int order) const;
};

/// Throws an Error that lists what there is when the part is not found, or when nothing enters it.
/// `stop`: asked before each entry; true leaves the rest out.
CheckResult check_gradients(
    ModelStep& model, const CheckSettings& settings,
    const std::function<bool()>& stop = [] { return false; });

/// argv[0] is "check". Exit code kFound when an entry is off by more than the tolerance.
int check_command(int argc, const char* const* argv);

}  // namespace macgrad::experiments
