// Short words for the CUDA tests: the device, moving a tensor there with its layout, what runs on
// it.
#pragma once

#include "macgrad/core/tensor.h"
#ifdef MACGRAD_CUDA_EMULATED
#include "macgrad/tests/cuda/emulation/machine.h"
#endif

namespace macgrad::testing {

inline constexpr Device kGpu{DeviceType::cuda, 0};

/// While alive, the emulator leaves device memory open to the host, which saves two system
/// calls a launch: for long tests of what others have run with it locked.
#ifdef MACGRAD_CUDA_EMULATED
using OpenMemory = emulation::Unlocked;
#else
struct OpenMemory {};
#endif

/// A tensor on the GPU with the shape, strides and offset of `t`, and its whole storage behind it.
inline Tensor on_gpu(const Tensor& t) {
  const auto bytes = static_cast<int64_t>(t.storage()->bytes() / item_size(t.dtype()));
  const Tensor flat = t.as_strided({bytes}, {1}, 0);
  return flat.to(kGpu).as_strided(t.shape(), t.strides(), t.offset());
}

}  // namespace macgrad::testing
