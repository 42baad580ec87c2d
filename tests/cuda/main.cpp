// The CUDA tests, a program of their own: without a usable GPU it prints why and returns 77, which
// CTest reports as skipped.
#include <cstdio>

#ifdef MACGRAD_WITH_CUDA
#include "cuda/register.h"
#endif

int main() {
#ifdef MACGRAD_WITH_CUDA
  macgrad::register_cuda_kernels();
  const macgrad::CudaStatus status = macgrad::cuda_status();
  if (!status.usable) {
    std::printf("skipped, no usable GPU: %s\n", status.reason.c_str());
    return 77;
  }
  std::printf("CUDA device 0: %s\n", status.device.c_str());
  return 0;
#else
  std::printf("skipped, built without CUDA: %s\n", MACGRAD_CUDA_STATUS);
  return 77;
#endif
}
