#include "macgrad/nn/sequential.h"

namespace macgrad::nn {

void Sequential::add(std::function<Variable(const Variable&)> function) {
  require(static_cast<bool>(function), "[sequential] position {} is an empty function; add a layer",
          next_name());
  steps_.push_back(std::move(function));
}

Variable Sequential::forward(const Variable& x) const {
  const auto in_scope = scope();
  Variable y = x;
  for (const auto& step : steps_) y = step(y);
  return in_scope.result(y);
}

}  // namespace macgrad::nn
