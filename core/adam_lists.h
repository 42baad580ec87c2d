// What the lists of the adam kernel must be, for both backends.
#pragma once

#include "macgrad/core/kernel.h"

namespace macgrad {

/// Throws an Error that names the parameter whose tensors do not go together.
inline void check_adam_lists(InOutList params, InOutList masters, InList grads, InOutList first,
                             InOutList second) {
  require(masters.list.empty() || masters.list.size() == params.list.size(),
          "[adam] {} masters for {} parameters; give one each, or none", masters.list.size(),
          params.list.size());
  for (size_t i = 0; i < params.list.size(); ++i) {
    const DType dtype = params.list[i].dtype();
    require(is_floating(dtype), "[adam] parameter {} is {} and must be floating", i, name(dtype));
    if (!masters.list.empty())
      require(dtype == DType::bfloat16 && masters.list[i].dtype() == DType::float32,
              "[adam] parameter {} is {}, its master {}; masters are float32 and belong to "
              "bfloat16 parameters",
              i, name(dtype), name(masters.list[i].dtype()));
    const DType kept = masters.list.empty() ? dtype : DType::float32;
    require(grads.list[i].dtype() == dtype && first.list[i].dtype() == kept &&
                second.list[i].dtype() == kept,
            "[adam] parameter {} is {}, its gradient {}, its moments {} and {}; the gradient must "
            "be {}, moments {}",
            i, name(dtype), name(grads.list[i].dtype()), name(first.list[i].dtype()),
            name(second.list[i].dtype()), name(dtype), name(kept));
  }
}

}  // namespace macgrad
