// A GPU's library of matrix products, called past the kernel slots: the limit of their speed.
#pragma once

#include "macgrad/core/tensor.h"

namespace macgrad::experiments {

/// c = a·b by one plain call of cuBLAS (cublas_product in cuda/register.h). Throws in a build
/// without CUDA.
void gpu_library_product(const Tensor& a, const Tensor& b, const Tensor& c);

}  // namespace macgrad::experiments
