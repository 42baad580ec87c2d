// Lists of tensors as one kernel argument, so that a launch works on all parameters of a model: a
// block finds its tensor and its place there by a search in the table. Nothing is copied to the
// device beforehand, and a captured launch keeps its table.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "macgrad/cuda/runtime.h"

#if defined(MACGRAD_CUDA_EMULATED)
#define MACGRAD_GRID_CONSTANT
#else
#define MACGRAD_GRID_CONSTANT __grid_constant__
#endif

namespace macgrad::cuda {

// Kernel arguments hold 4096 bytes, and 32764 where both the toolkit and the driver are of
// CUDA 12.1 or later. 256 bytes are left to the others.
inline constexpr int kSmallTable = 4096 - 256;
#if CUDART_VERSION >= 12010
inline constexpr int kLargeTable = 32764 - 256;
#else
inline constexpr int kLargeTable = kSmallTable;
#endif

inline bool large_tables() {
  static const bool large = [] {
    int version = 0;
    CUDA_CHECK(cudaDriverGetVersion(&version));
    return version >= 12010;
  }();
  return large;
}

/// Up to kCapacity entries of `operands` equally sized tensors in about `bytes` of arguments.
template <int operands, int bytes>
struct TensorTable {
  static constexpr int kCapacity = (bytes - 16) / (8 * operands + 8 + 4);
  void* at[operands][kCapacity];
  int64_t size[kCapacity];
  uint32_t first[kCapacity];  // block
  int count = 0;

  /// The entry that `block` works on.
  MACGRAD_HD int find(uint32_t block) const {
    int low = 0, high = count;
    while (high - low > 1) {
      const int middle = (low + high) / 2;
      if (first[middle] <= block) {
        low = middle;
      } else {
        high = middle;
      }
    }
    return low;
  }
};

/// Adds a tensor cut into `chunk` elements a block, which begins at block `blocks`; returns the
/// number of blocks with it.
template <int operands, int bytes>
uint32_t add_entry(TensorTable<operands, bytes>& table, void* const (&at)[operands], int64_t size,
                   int64_t chunk, uint32_t blocks) {
  for (int k = 0; k < operands; ++k) table.at[k][table.count] = at[k];
  table.size[table.count] = size;
  table.first[table.count] = blocks;
  ++table.count;
  const int64_t total = blocks + (size + chunk - 1) / chunk;
  require(total <= 0x7fffffff, "a list of tensors needs {} blocks, more than a launch has", total);
  return static_cast<uint32_t>(total);
}

}  // namespace macgrad::cuda
