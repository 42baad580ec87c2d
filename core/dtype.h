// Element types and devices. bfloat16 is a storage type: kernels compute in float.
#pragma once

#include <bit>
#include <cstdint>
#include <string>

#include "macgrad/core/host_device.h"

namespace macgrad {

enum class DType : uint8_t { float32, float64, bfloat16, int64, boolean };
inline constexpr int kDTypes = 5;

enum class DeviceType : uint8_t { cpu, cuda };
inline constexpr int kDeviceTypes = 2;

struct Device {
  DeviceType type = DeviceType::cpu;
  int index = 0;
  friend bool operator==(const Device&, const Device&) = default;
};
inline constexpr Device kCpu{};

/// Upper 16 bits of a float32; conversion rounds to nearest even and keeps NaN a NaN (with other
/// bits on a GPU, which rounds in one instruction).
struct bfloat16 {
  uint16_t bits = 0;

  bfloat16() = default;
  MACGRAD_HD explicit bfloat16(float value) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
#else
    uint32_t u = bit_copy<uint32_t>(value);
    if ((u & 0x7fffffffu) > 0x7f800000u) {
      bits = static_cast<uint16_t>((u >> 16) | 0x40u);
    } else {
      bits = static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
    }
#endif
  }
  MACGRAD_HD explicit operator float() const {
    return bit_copy<float>(static_cast<uint32_t>(bits) << 16);
  }
};

const char* name(DType dtype);
const char* name(DeviceType type);
std::string text(Device device);
/// Bytes of one element.
size_t item_size(DType dtype);
bool is_floating(DType dtype);

template <class T>
constexpr DType dtype_of();
template <>
constexpr DType dtype_of<float>() {
  return DType::float32;
}
template <>
constexpr DType dtype_of<double>() {
  return DType::float64;
}
template <>
constexpr DType dtype_of<bfloat16>() {
  return DType::bfloat16;
}
template <>
constexpr DType dtype_of<int64_t>() {
  return DType::int64;
}
template <>
constexpr DType dtype_of<bool>() {
  return DType::boolean;
}

/// Type in which a kernel computes on elements stored as T.
template <class T>
struct compute_type {
  using type = T;
};
template <>
struct compute_type<bfloat16> {
  using type = float;
};
template <class T>
using compute_t = typename compute_type<T>::type;
/// The same at run time: that of statistics which a kernel keeps for its backward kernel.
constexpr DType compute_dtype(DType dtype) {
  return dtype == DType::bfloat16 ? DType::float32 : dtype;
}

/// Calls f.template operator()<T>() with T of `dtype`, one of float, double, bfloat16.
template <class F>
decltype(auto) dispatch_floating(DType dtype, const char* op, F&& f);
/// The same for every dtype.
template <class F>
decltype(auto) dispatch_any(DType dtype, F&& f);

}  // namespace macgrad

#include "macgrad/core/dtype_dispatch.h"
