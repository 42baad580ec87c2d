// Backward kernels of RMFA for float32, products rounded to bfloat16.
#include "macgrad/cuda/rmfa_backward.cuh"

namespace macgrad::cuda::rmfa {
template MACGRAD_PULL_GRADIENTS(float, bf16);
}  // namespace macgrad::cuda::rmfa
