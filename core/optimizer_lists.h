// What the lists of the optimizer kernels must be, for both backends.
#pragma once

#include <fmt/ranges.h>

#include <initializer_list>
#include <vector>

#include "macgrad/core/kernel.h"

namespace macgrad {

/// Throws an Error that names the first parameter whose tensors do not go together. `moments`: the
/// lists that the optimizer keeps; an empty one is absent.
inline void check_optimizer_lists(const char* op, InOutList params, InOutList masters, InList grads,
                                  std::initializer_list<InOutList> moments) {
  require(masters.list.empty() || masters.list.size() == params.list.size(),
          "[{}] {} masters for {} parameters; give one each, or none", op, masters.list.size(),
          params.list.size());
  for (size_t i = 0; i < params.list.size(); ++i) {
    const DType dtype = params.list[i].dtype();
    require(is_floating(dtype), "[{}] parameter {} is {} and must be floating", op, i, name(dtype));
    if (!masters.list.empty())
      require(dtype == DType::bfloat16 && masters.list[i].dtype() == DType::float32,
              "[{}] parameter {} is {}, its master {}; masters are float32 and belong to "
              "bfloat16 parameters",
              op, i, name(dtype), name(masters.list[i].dtype()));
    const DType kept = masters.list.empty() ? dtype : DType::float32;
    bool right = grads.list[i].dtype() == dtype;
    for (const InOutList& m : moments)
      right = right && (m.list.empty() || m.list[i].dtype() == kept);
    if (right) continue;
    std::vector<const char*> given;
    for (const InOutList& m : moments)
      if (!m.list.empty()) given.push_back(name(m.list[i].dtype()));
    throw Error(
        "[{}] parameter {} is {}, its gradient {}, its moments {}; the gradient must be {}, "
        "moments {}",
        op, i, name(dtype), name(grads.list[i].dtype()), fmt::join(given, " and "), name(dtype),
        name(kept));
  }
}

/// x within ±limit; NaN stays NaN.
template <class C>
MACGRAD_HD inline C clipped(C x, C limit) {
  return x > limit ? limit : x < -limit ? -limit : x;
}

}  // namespace macgrad
