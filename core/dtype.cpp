// Names of dtypes and devices.
#include "macgrad/core/dtype.h"

#include <fmt/format.h>

namespace macgrad {

const char* name(DType dtype) {
  switch (dtype) {
    case DType::float32:
      return "float32";
    case DType::float64:
      return "float64";
    case DType::bfloat16:
      return "bfloat16";
    case DType::int64:
      return "int64";
    case DType::boolean:
      return "bool";
  }
  return "unknown";
}

const char* name(DeviceType type) {
  return type == DeviceType::cpu ? "cpu" : "cuda";
}

std::string text(Device device) {
  return device.type == DeviceType::cpu ? "cpu" : fmt::format("cuda:{}", device.index);
}

size_t item_size(DType dtype) {
  return dispatch_any(dtype, []<class T>() { return sizeof(T); });
}

bool is_floating(DType dtype) {
  return dtype == DType::float32 || dtype == DType::float64 || dtype == DType::bfloat16;
}

}  // namespace macgrad
