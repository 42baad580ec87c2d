// The door to the CUDA backend: the one header of cuda/ that others include, free of CUDA's own
// headers. Without a call of register_cuda_kernels() nothing of this folder runs.
#pragma once

#include <string>

namespace macgrad {

/// Whether a GPU can be used: `usable`, else the driver's words in `reason`.
struct CudaStatus {
  bool usable = false;
  std::string reason;  // empty when usable
  std::string device;  // name, compute capability and memory of device 0; empty when not usable
};

/// Asks the driver. Never throws; on a machine without a driver or a card it says so.
CudaStatus cuda_status();

/// Fills the CUDA column of the slots in core/kernels.h and returns how many it filled. No slot has
/// a CUDA kernel yet, so an op on a CUDA tensor reports its missing kernel by name.
int register_cuda_kernels();

}  // namespace macgrad
