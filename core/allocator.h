// Caching allocators, one a device: blocks are 64-byte aligned, rounded to size classes and kept
// for the next request, because a training step asks for the same sizes again and again.
// Tools of the memory live here: NaN poison, guard words, counters of current and peak bytes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "macgrad/core/dtype.h"

namespace macgrad {

struct MemoryStats {
  size_t current_bytes = 0;  // held by live tensors
  size_t peak_bytes = 0;     // largest value of current_bytes since reset_peak
  size_t cached_bytes = 0;   // kept for reuse
  size_t private_bytes = 0;  // of recorded steps, used or not (part of the two above)
  uint64_t allocations = 0;  // requests since the start
};

/// Where a backend puts its memory functions; the CPU's are built in, CUDA's come with
/// register_cuda_kernels().
struct RawMemory {
  void* (*allocate)(size_t bytes, Device device) = nullptr;  // nullptr result = out of memory
  void (*release)(void* block, size_t bytes, Device device) = nullptr;
  void (*copy)(void* to, Device to_device, const void* from, Device from_device,
               size_t bytes) = nullptr;
  void (*left)(size_t& free, size_t& total, Device device) = nullptr;  // absent: not known
  void (*fill)(void* block, int byte, size_t bytes, Device device) = nullptr;
  void (*wait)(Device device) = nullptr;  // absent: nothing is ever queued
};
void set_raw_memory(DeviceType type, RawMemory functions);

/// Block of at least `bytes` (0 gives a valid pointer). Out of memory throws an Error saying how
/// much was asked, used, cached and free, and in which scope.
void* allocate(size_t bytes, Device device);
/// Needs no memory itself: it can run while another allocation's failure is handled.
void release(void* block, size_t bytes, Device device) noexcept;
/// Copies bytes between devices; waits until the data is there.
void copy_bytes(void* to, Device to_device, const void* from, Device from_device, size_t bytes);

/// Waits for everything that was queued on `device`. Reading a value waits by itself; this is for
/// timing.
void wait_for(Device device);

MemoryStats memory_stats(Device device = kCpu);
void reset_peak(Device device = kCpu);
/// Returns cached blocks to the system.
void trim_cache(Device device = kCpu);

/// From `on` to off, requests are served from a private part of the device's memory: blocks that
/// were freed there, else cached blocks, which then belong to it; when neither fits, a new block is
/// asked from the device. Nothing else ever gets its blocks (core/step_graph.h).
void use_private_memory(Device device, bool on);

/// While alive, blocks are handed out filled with NaN bit patterns, and guard words after each
/// block are checked on release: an unwritten output or an overrun shows in the tests.
class PoisonScope {
 public:
  PoisonScope();
  ~PoisonScope();
  PoisonScope(const PoisonScope&) = delete;
  PoisonScope& operator=(const PoisonScope&) = delete;
};
/// Overruns found by guard words since the start of the process.
uint64_t guard_violations();

}  // namespace macgrad
