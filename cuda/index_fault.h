// Indices that lie outside their tensor: a kernel cannot throw and nothing waits for it, so it
// skips the element, notes the first such index in memory that host and device share, and the next
// read of a value throws it (cuda/memory.cpp).
#pragma once

#include <cstdint>

namespace macgrad::cuda {

struct IndexFault {
  int noted;
  const char* op;  // a literal of the host
  int64_t index, place, extent;
};

/// The one record, readable and writable on both sides.
IndexFault* index_fault();

/// Throws what was noted, once, in the words of the CPU kernels. To be called when the stream is
/// idle.
void throw_index_fault();

}  // namespace macgrad::cuda
