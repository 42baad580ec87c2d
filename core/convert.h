// One element from one dtype to another, for the copy kernels of both backends: to bool what is not
// zero, to bfloat16 the nearest, else as C++ casts.
#pragma once

#include <type_traits>

#include "macgrad/core/dtype.h"

namespace macgrad {

template <class To, class From>
MACGRAD_HD To convert(From value) {
  if constexpr (std::is_same_v<To, From>) {
    return value;
  } else if constexpr (std::is_same_v<To, bool>) {
    return static_cast<compute_t<From>>(value) != compute_t<From>(0);
  } else if constexpr (std::is_same_v<To, bfloat16>) {
    return bfloat16(static_cast<float>(static_cast<compute_t<From>>(value)));
  } else {
    return static_cast<To>(static_cast<compute_t<From>>(value));
  }
}

}  // namespace macgrad
