// A CUDA device emulated on the CPU, for tests on machines without a GPU: the sources of cuda/ are
// compiled by g++ against the headers of this folder, and every kernel runs, thread by thread. A
// CUDA thread is a fiber; it runs until a barrier or a warp collective and then lets the others
// run.
//
// The emulator finds wrong indices, missing barriers (the order of the threads can be changed
// between runs), reads of unwritten shared memory (it starts as NaN), host code that touches device
// memory (it is locked outside kernels), overruns (guard pages at every block's end), misaligned
// loads and stores (alignment.cpp), launches beyond the limits of the card, the kernel's launch
// bounds or the shared memory that it was opted in to, and steps that replay wrongly as a graph. It
// cannot find races inside a warp, registers that do not suffice, and says nothing about speed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>

namespace emulation {

struct Index {
  unsigned x = 0, y = 0, z = 0;
};

/// Runs `kernel` once for every thread of every block, blocks one after the other.
void run_grid(const Index& grid, const Index& block, size_t shared_bytes,
              const std::function<void()>& kernel);

/// Dynamic shared memory of the running block, NaN bit patterns at its start.
void* shared();
/// __syncthreads(): all threads of the block that have not returned.
void block_barrier();
/// Number of threads with a true predicate, known to all (__syncthreads_count).
int block_count(bool predicate);
/// Exchange among the lanes of `mask`, which must all call it: puts `bytes` of `value` down and
/// returns what every lane put (32 slots of `bytes`).
const void* warp_exchange(unsigned mask, const void* value, size_t bytes);

/// Ends the running grid with an error that its launch returns. Called by a CUDA thread.
[[noreturn]] void fault(const std::string& what);
/// What ended the last grid, or "".
std::string take_fault();
/// Faults unless `address` is a multiple of `bytes`.
void require_aligned(const void* address, size_t bytes);
/// Ends the program: the emulator itself cannot go on.
[[noreturn]] void fail(const std::string& what);

/// Of the emulated card; the shared memory is what a block may be opted in to.
struct Properties {
  int major = 9, minor = 0;
  size_t shared_bytes = 227 << 10;
};
Properties& properties();

/// Order in which the threads between two barriers run. Results must not depend on it.
enum class Order { forward, backward, scattered };
void set_order(Order order);

/// Device memory: nullptr when the machine's memory (`memory_limit`) is used up.
void* device_allocate(size_t bytes);
/// False when `block` is not one of ours.
bool device_release(void* block);
bool is_device(const void* address);
size_t device_bytes_in_use();
size_t memory_limit();
void set_memory_limit(size_t bytes);

/// While alive, the host may touch device memory (copies, kernels, the emulated cuBLAS).
class Unlock {
 public:
  Unlock();
  ~Unlock();
  Unlock(const Unlock&) = delete;
  Unlock& operator=(const Unlock&) = delete;
};

/// The same, for tests (tests/cuda/device.h).
class Unlocked : public Unlock {};

/// Calls of cudaFuncSetAttribute since the start.
uint64_t attribute_calls();

/// Kernels, copies and products since the start: what a launch costs is seen here.
uint64_t launches();
void count_launch();

}  // namespace emulation
