#pragma once

namespace macgrad::cuda {

/// Gives core's allocator the device's memory. Called by register_cuda_kernels().
void register_memory();

}  // namespace macgrad::cuda
