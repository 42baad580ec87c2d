// Backward kernels of RMFA for tensors stored in bfloat16.
#include "macgrad/cuda/rmfa_backward.cuh"

namespace macgrad::cuda::rmfa {
template MACGRAD_PULL_GRADIENTS(bfloat16, bf16);
}  // namespace macgrad::cuda::rmfa
