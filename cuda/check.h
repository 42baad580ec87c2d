// CUDA_CHECK(call): every call of the CUDA runtime goes through it. A failure is a macgrad::Error
// with the expression, file, line, device and CUDA's own words.
#pragma once

#include <cuda_runtime_api.h>

#include "core/error.h"

namespace macgrad::cuda {

/// Throws when `status` is a failure. Use through CUDA_CHECK.
inline void check(cudaError_t status, const char* expression, const char* file, int line) {
  if (status == cudaSuccess) [[likely]]
    return;
  int device = -1;
  if (cudaGetDevice(&device) != cudaSuccess) device = -1;
  throw Error("{}:{}: {} failed on CUDA device {}: {} ({})", file, line, expression, device,
              cudaGetErrorString(status), cudaGetErrorName(status));
}

}  // namespace macgrad::cuda

#define CUDA_CHECK(expression) ::macgrad::cuda::check((expression), #expression, __FILE__, __LINE__)
