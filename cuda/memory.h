#pragma once

namespace macgrad::cuda {

/// Gives core's allocator the device's memory. Called by register_cuda_kernels().
void register_memory();
/// Gives core's StepGraph the CUDA graphs. Called by register_cuda_kernels().
void register_graphs();

}  // namespace macgrad::cuda
