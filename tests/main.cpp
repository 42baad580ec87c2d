// The one main of the unit tests. It registers the CUDA kernels when they are built, so that a row
// of the op table can run on both devices; fused ops may not fall back silently here.
#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>

#include <cstdlib>

#ifdef MACGRAD_WITH_CUDA
#include "macgrad/cuda/register.h"
#endif

int main(int argc, char** argv) {
  setenv("MACGRAD_FUSED", "strict", /*overwrite=*/0);
#ifdef MACGRAD_WITH_CUDA
  macgrad::register_cuda_kernels();
#endif
  doctest::Context context(argc, argv);
  return context.run();
}
