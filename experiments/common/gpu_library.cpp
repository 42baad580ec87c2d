#include "macgrad/experiments/common/gpu_library.h"

#include "macgrad/core/error.h"

#ifdef MACGRAD_WITH_CUDA
#include "macgrad/cuda/register.h"
#endif

namespace macgrad::experiments {

void gpu_library_product([[maybe_unused]] const Tensor& a, [[maybe_unused]] const Tensor& b,
                         [[maybe_unused]] const Tensor& c) {
#ifdef MACGRAD_WITH_CUDA
  cublas_product(a, b, c);
#else
  throw Error("a product by cuBLAS needs a build with CUDA");
#endif
}

}  // namespace macgrad::experiments
