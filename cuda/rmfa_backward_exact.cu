// Backward kernels of RMFA for float32, products in float32.
#include "macgrad/cuda/rmfa_backward.cuh"

namespace macgrad::cuda::rmfa {
template MACGRAD_PULL_GRADIENTS(float, exact);
}  // namespace macgrad::cuda::rmfa
