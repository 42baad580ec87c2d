// Short words for the CUDA tests: the device, moving a tensor there with its layout, what runs on
// it.
#pragma once

#include <cstdlib>

#include "core/tensor.h"
#ifdef MACGRAD_CUDA_EMULATED
#include "tests/cuda/emulation/machine.h"
#endif

namespace macgrad::testing {

inline constexpr Device kGpu{DeviceType::cuda, 0};

/// While alive, the played machine leaves device memory open to the host, which saves two system
/// calls a launch: for long tests of what others have run with it locked.
#ifdef MACGRAD_CUDA_EMULATED
using OpenMemory = emulation::Unlocked;
#else
struct OpenMemory {};
#endif

/// While alive, composites run where the kernels refuse operands, instead of an error.
class CompositesAllowed {
 public:
  explicit CompositesAllowed(bool allowed = true) : changed_(allowed) {
    if (changed_) setenv("MACGRAD_FUSED", "", 1);
  }
  ~CompositesAllowed() {
    if (changed_) setenv("MACGRAD_FUSED", "strict", 1);
  }
  CompositesAllowed(const CompositesAllowed&) = delete;
  CompositesAllowed& operator=(const CompositesAllowed&) = delete;

 private:
  bool changed_;
};

/// A tensor on the GPU with the shape, strides and offset of `t`, and its whole storage behind it.
inline Tensor on_gpu(const Tensor& t) {
  const auto bytes = static_cast<int64_t>(t.storage()->bytes() / item_size(t.dtype()));
  const Tensor flat = t.as_strided({bytes}, {1}, 0);
  return flat.to(kGpu).as_strided(t.shape(), t.strides(), t.offset());
}

}  // namespace macgrad::testing
