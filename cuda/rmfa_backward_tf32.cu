// Backward kernels of RMFA for float32, products rounded to tf32.
#include "macgrad/cuda/rmfa_backward.cuh"

namespace macgrad::cuda::rmfa {
template MACGRAD_PULL_GRADIENTS(float, tf32);
}  // namespace macgrad::cuda::rmfa
