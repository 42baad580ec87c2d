// The door to the CUDA backend: the one header of cuda/ that others include, free of CUDA's own
// headers. Without a call of register_cuda_kernels() nothing of this folder runs.
#pragma once

#include <string>

namespace macgrad {

class Tensor;

/// Whether a GPU can be used: `usable`, else the driver's words in `reason`, or the architectures
/// that the kernels were compiled for and the card's.
struct CudaStatus {
  bool usable = false;
  std::string reason;  // empty when usable
  std::string device;  // name, compute capability and memory; empty without a card
};

/// Asks the driver about the current device. Never throws; on a machine without a driver or a card
/// `reason` says so.
CudaStatus cuda_status();

/// Fills the CUDA column of the slots in core/kernels.h, gives core's allocator the device's
/// memory, and obeys MACGRAD_CHECK=cpu (core/compare_with_cpu.h). Returns how many slots it filled.
int register_cuda_kernels();

/// How products and attention tiles round their float32 inputs: "exact" (not at all, the default),
/// "tf32" or "bf16"; storage and sums stay float32. Anything else is an Error.
void set_cuda_math(const std::string& mode);

/// c = a·b by one plain call of cuBLAS, bypassing the slot `matmul`: the limit that a benchmark
/// compares that slot with. a (M, K), b (K, N), c (M, N), float32 or bfloat16, one of their
/// strides 1.
void cublas_product(const Tensor& a, const Tensor& b, const Tensor& c);

}  // namespace macgrad
