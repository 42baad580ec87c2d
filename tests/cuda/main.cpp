// The CUDA tests, a program of their own: without a usable GPU it prints why and returns 77, which
// CTest reports as skipped. The same tests run on every machine as cuda_played_tests.
#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>

#include <cstdio>
#include <cstdlib>

#ifdef MACGRAD_WITH_CUDA
#include "macgrad/cuda/register.h"
#endif

int main(int argc, char** argv) {
#ifdef MACGRAD_WITH_CUDA
  setenv("MACGRAD_FUSED", "strict", /*overwrite=*/0);
  macgrad::register_cuda_kernels();
  const macgrad::CudaStatus status = macgrad::cuda_status();
  if (!status.usable) {
    std::printf("skipped, no usable GPU: %s\n", status.reason.c_str());
    return 77;
  }
  std::printf("CUDA device 0: %s\n", status.device.c_str());
  doctest::Context context(argc, argv);
  return context.run();
#else
  (void)argc;
  (void)argv;
  std::printf("skipped, built without CUDA: %s\n", MACGRAD_CUDA_STATUS);
  return 77;
#endif
}
