// The mark of functions that g++ compiles for the host and nvcc for both sides.
#pragma once

#include <cstring>

#if defined(__CUDACC__)
#define MACGRAD_HD __host__ __device__
#else
#define MACGRAD_HD
#endif

namespace macgrad {

/// std::bit_cast that also runs on a device.
template <class To, class From>
MACGRAD_HD inline To bit_copy(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}

}  // namespace macgrad
