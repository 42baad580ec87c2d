// From a DType at run time to a type at compile time.
#pragma once

#include "macgrad/core/error.h"

namespace macgrad {

template <class F>
decltype(auto) dispatch_floating(DType dtype, const char* op, F&& f) {
  switch (dtype) {
    case DType::float32:
      return f.template operator()<float>();
    case DType::float64:
      return f.template operator()<double>();
    case DType::bfloat16:
      return f.template operator()<bfloat16>();
    default:
      throw Error("[{}] needs float32, float64 or bfloat16, got {}; cast first", op, name(dtype));
  }
}

template <class F>
decltype(auto) dispatch_any(DType dtype, F&& f) {
  switch (dtype) {
    case DType::float32:
      return f.template operator()<float>();
    case DType::float64:
      return f.template operator()<double>();
    case DType::bfloat16:
      return f.template operator()<bfloat16>();
    case DType::int64:
      return f.template operator()<int64_t>();
    case DType::boolean:
      return f.template operator()<bool>();
  }
  throw Error("dtype tag {} is unknown", static_cast<int>(dtype));
}

}  // namespace macgrad
