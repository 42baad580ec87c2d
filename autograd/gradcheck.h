// gradcheck: analytic gradients against central differences in float64, with a random cotangent (a
// cotangent of ones cannot see a wrong softmax gradient).
#pragma once

#include <functional>
#include <string>

#include "macgrad/autograd/variable.h"

namespace macgrad {

struct GradcheckOptions {
  double step = 1e-6;
  double rtol = 1e-5;
  double atol = 1e-7;
  int order = 1;      // 2: gradients of the gradients as well
  uint64_t seed = 0;  // of the cotangents
};

struct GradcheckResult {
  bool ok = true;
  double worst = 0;     // largest |analytic - numeric| / (atol + rtol·|numeric|)
  std::string message;  // the worst entry: input, index, both values
  explicit operator bool() const { return ok; }
};

/// Checks every input that asks for a gradient: float64 on the CPU, an Error otherwise. Elements
/// are moved in place and put back.
GradcheckResult gradcheck(const std::function<Variable(const Variables&)>& f,
                          const Variables& inputs, const GradcheckOptions& options = {});

}  // namespace macgrad
