// launch(): the one way a kernel starts. Included by .cu files only.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <source_location>

#include "macgrad/cuda/runtime.h"

namespace macgrad::cuda {

inline constexpr size_t kDefaultSharedBytes = 48 << 10;  // larger sizes need an opt-in per kernel

struct LaunchShape {
  dim3 grid;
  dim3 block;
  size_t shared_bytes = 0;
  std::source_location from = std::source_location::current();  // where the launch stands
};

/// Queues `kernel` on stream(). An empty grid launches nothing. A failure names the file and line
/// of the launch; a fault within the kernel is known at a later call (CUDA_LAUNCH_BLOCKING=1: at
/// once).
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), const LaunchShape& shape,
            const Arguments&... arguments) {
  if (shape.grid.x == 0 || shape.grid.y == 0 || shape.grid.z == 0) return;
  if (shape.shared_bytes > kDefaultSharedBytes)
    allow_shared_bytes(reinterpret_cast<const void*>(kernel), shape.shared_bytes);
  cudaLaunchConfig_t config{};
  config.gridDim = shape.grid;
  config.blockDim = shape.block;
  config.dynamicSmemBytes = shape.shared_bytes;
  config.stream = stream();
  check(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...), "the launch",
        shape.from.file_name(), static_cast<int>(shape.from.line()));
}

/// Blocks of `per_block` that cover n, at most 2^31 - 1.
inline unsigned blocks_for(int64_t n, int64_t per_block) {
  const int64_t blocks = (n + per_block - 1) / per_block;
  require(blocks <= 0x7fffffff, "{} elements are more than one CUDA launch covers", n);
  return static_cast<unsigned>(blocks);
}

/// The same for a kernel whose threads stride over the rest: at most `waves` blocks a
/// multiprocessor.
inline unsigned blocks_strided(int64_t n, int64_t per_block, int waves = 16) {
  const int64_t most = int64_t{card().multiprocessors} * waves;
  return static_cast<unsigned>(std::clamp<int64_t>((n + per_block - 1) / per_block, 0, most));
}

}  // namespace macgrad::cuda
