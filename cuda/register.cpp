// The CUDA backend's entry points. Host code only: the kernels' own files are compiled by nvcc.
#include "macgrad/cuda/register.h"

#include <cuda_runtime_api.h>
#include <fmt/format.h>

#include "macgrad/core/compare_with_cpu.h"
#include "macgrad/core/kernels.h"
#include "macgrad/cuda/math_mode.h"
#include "macgrad/cuda/memory.h"
#include "macgrad/cuda/runtime.h"

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
    int device = 0;
    CUDA_CHECK(cudaGetDevice(&device));
    cudaDeviceProp properties{};
    CUDA_CHECK(cudaGetDeviceProperties(&properties, device));
    status.device = fmt::format("{}, compute {}.{}, {:.1f} GiB", properties.name, properties.major,
                                properties.minor, double(properties.totalGlobalMem) / (1 << 30));
    status.reason =
        cuda::architecture_refusal(properties.major, properties.minor, MACGRAD_CUDA_ARCHITECTURES);
    status.usable = status.reason.empty();
  } catch (const Error& failure) {
    status.reason = failure.what();
  }
  return status;
}

void set_cuda_math(const std::string& mode) {
  if (mode == "exact") return cuda::set_math_mode(cuda::MathMode::exact);
  if (mode == "tf32") return cuda::set_math_mode(cuda::MathMode::tf32);
  if (mode == "bf16") return cuda::set_math_mode(cuda::MathMode::bf16);
  throw Error("math mode '{}' is unknown; use exact, tf32 or bf16", mode);
}

int register_cuda_kernels() {
  cuda::register_memory();
  cuda::register_graphs();
  compare_with_cpu_if_asked();
  int filled = 0;
#define MACGRAD_FILL(name, ...) \
  kernels::name.set(DeviceType::cuda, {cuda::name, nullptr, nullptr}), ++filled;
#define MACGRAD_FILL_SCRATCH(name, Call)                                                          \
  kernels::name.set(DeviceType::cuda, {cuda::name, cuda::name##_supports, cuda::name##_scratch}), \
      ++filled;
  MACGRAD_SHARED_KERNELS(MACGRAD_FILL, MACGRAD_FILL_SCRATCH)
#undef MACGRAD_FILL
#undef MACGRAD_FILL_SCRATCH
  return filled;
}

}  // namespace macgrad
