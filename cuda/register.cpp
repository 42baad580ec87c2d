// The CUDA backend's entry points. Host code only: the kernels' own files are compiled by nvcc.
#include "cuda/register.h"

#include <cuda_runtime_api.h>
#include <fmt/format.h>

#include "cuda/check.h"

namespace macgrad {

CudaStatus cuda_status() {
  CudaStatus status;
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess) {
    status.reason = fmt::format("cudaGetDeviceCount: {} ({})", cudaGetErrorString(error),
                                cudaGetErrorName(error));
    return status;
  }
  if (count == 0) {
    status.reason = "cudaGetDeviceCount: the driver is there, but no device";
    return status;
  }
  try {
    cudaDeviceProp properties{};
    CUDA_CHECK(cudaGetDeviceProperties(&properties, 0));
    status.device = fmt::format("{}, compute {}.{}, {:.1f} GiB", properties.name, properties.major,
                                properties.minor, double(properties.totalGlobalMem) / (1 << 30));
    status.usable = true;
  } catch (const Error& failure) {
    status.reason = failure.what();
  }
  return status;
}

int register_cuda_kernels() {
  return 0;
}

}  // namespace macgrad
