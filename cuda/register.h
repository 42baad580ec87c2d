// The door to the CUDA backend: the one header of cuda/ that others include, free of CUDA's own
// headers. Without a call of register_cuda_kernels() nothing of this folder runs.
#pragma once

#include <string>

namespace macgrad {

/// Whether a GPU can be used: `usable`, else the driver's words in `reason`, or the architectures
/// that the kernels were compiled for and the card's.
struct CudaStatus {
  bool usable = false;
  std::string reason;  // empty when usable
  std::string device;  // name, compute capability and memory of device 0; empty without a card
};

/// Asks the driver. Never throws; on a machine without a driver or a card it says so.
CudaStatus cuda_status();

/// Fills the CUDA column of the slots in core/kernels.h, gives core's allocator the device's
/// memory, and obeys MACGRAD_CHECK=cpu (core/compare_with_cpu.h). Returns how many slots it filled.
int register_cuda_kernels();

/// How products and attention tiles round their float32 inputs: "exact" (not at all, the default),
/// "tf32" or "bf16"; storage and sums stay float32. Anything else is an Error.
void set_cuda_math(const std::string& mode);

}  // namespace macgrad
