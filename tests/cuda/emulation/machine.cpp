#include "machine.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace emulation {

void fail(const std::string& what) {
  std::fprintf(stderr, "emulated CUDA device: %s\n", what.c_str());
  std::abort();
}

namespace {

// ---- fibers: a stack each, and a switch that saves the registers a call must keep.

constexpr size_t kStackBytes = 128 << 10;

struct Fiber {
  char* stack = nullptr;
#if defined(__x86_64__)
  void* sp = nullptr;
#else
  ucontext_t context;
#endif
#if defined(__SANITIZE_ADDRESS__)
  void* fake_stack = nullptr;
  // The scheduler's stack, which is the host thread's; learnt at the first switch away from it.
  const void* host_stack = nullptr;
  size_t host_bytes = 0;
#endif
};

#if defined(__x86_64__)
extern "C" void emulation_switch(void** save, void* to);
asm(R"(
.text
.globl emulation_switch
.type emulation_switch,@function
emulation_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size emulation_switch,.-emulation_switch
)");
#endif

enum class State { ready, at_block, at_warp, done };

struct Thread {
  Fiber fiber;
  Index place;
  State state = State::done;
  unsigned warp_mask = 0;  // of the collective it waits in
  unsigned parity = 0;     // which of the warp's two boards the next collective uses
  bool predicate = false;
};

constexpr size_t kSlotBytes = 32;

struct Warp {
  // Two boards in turns: a lane may put its next value down before the others have read this one.
  alignas(32) char board[2][32 * kSlotBytes];
};

struct Machine {
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  std::vector<size_t> order;
  Fiber scheduler;
  Thread* current = nullptr;
  size_t live = 0;
  const std::function<void()>* kernel = nullptr;
  std::unique_ptr<char[]> shared_storage;
  char* shared = nullptr;
  int count = 0;
  Order mode = Order::forward;
  uint64_t launches = 0;
  std::string fault;  // of the running grid
};
Machine machine;

// The running thread's built-in variables.
struct {
  Index thread, block, block_size, grid_size;
} here;

void switch_to(Fiber& from, Fiber& to, [[maybe_unused]] bool leaves_for_good) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(leaves_for_good ? nullptr : &from.fake_stack,
                                 to.stack ? to.stack : to.host_stack,
                                 to.stack ? kStackBytes : to.host_bytes);
#endif
#if defined(__x86_64__)
  emulation_switch(&from.sp, to.sp);
#else
  swapcontext(&from.context, &to.context);
#endif
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(from.fake_stack, nullptr, nullptr);
#endif
}

void yield() {
  switch_to(machine.current->fiber, machine.scheduler, false);
}

void thread_main() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &machine.scheduler.host_stack,
                                  &machine.scheduler.host_bytes);
#endif
  (*machine.kernel)();
  machine.current->state = State::done;
  switch_to(machine.current->fiber, machine.scheduler, true);
  fail("a finished thread was resumed");
}

void prepare(Fiber& fiber) {
  if (!fiber.stack) {
    fiber.stack = static_cast<char*>(mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE,
                                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    if (fiber.stack == MAP_FAILED) fail("no memory for a thread's stack");
  }
#if defined(__x86_64__)
  // As if thread_main had been called: six saved registers, the address to return to, and a stack
  // aligned as a called function expects it.
  auto** top = reinterpret_cast<void**>(fiber.stack + kStackBytes - 64);
  *--top = nullptr;
  *--top = reinterpret_cast<void*>(&thread_main);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  fiber.sp = top;
#else
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack;
  fiber.context.uc_stack.ss_size = kStackBytes;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, thread_main, 0);
#endif
}

void order_threads(size_t n) {
  machine.order.resize(n);
  std::iota(machine.order.begin(), machine.order.end(), size_t{0});
  if (machine.mode == Order::backward) std::reverse(machine.order.begin(), machine.order.end());
  if (machine.mode == Order::scattered) {
    uint64_t state = 88172645463325252ull + n;
    for (size_t i = n; i > 1; --i) {
      state ^= state << 13, state ^= state >> 7, state ^= state << 17;
      std::swap(machine.order[i - 1], machine.order[state % i]);
    }
  }
}

// Lets waiting threads go whose partners have all arrived; true when one could.
bool release_waiting(size_t n) {
  bool any = false;
  size_t at_block = 0;
  for (size_t i = 0; i < n; ++i) at_block += machine.threads[i].state == State::at_block;
  if (machine.live > 0 && at_block == machine.live) {
    machine.count = 0;
    for (size_t i = 0; i < n; ++i) {
      Thread& t = machine.threads[i];
      if (t.state != State::at_block) continue;
      machine.count += t.predicate;
      t.state = State::ready;
    }
    return true;
  }
  for (size_t first = 0; first < n; first += 32) {
    for (size_t i = first; i < std::min(n, first + 32); ++i) {
      if (machine.threads[i].state != State::at_warp) continue;
      const unsigned mask = machine.threads[i].warp_mask;
      bool all = true;
      for (unsigned lane = 0; lane < 32; ++lane) {
        if (!(mask >> lane & 1)) continue;
        const size_t other = first + lane;
        all = all && other < n && machine.threads[other].state == State::at_warp &&
              machine.threads[other].warp_mask == mask;
      }
      if (!all) continue;
      for (unsigned lane = 0; lane < 32; ++lane)
        if (mask >> lane & 1) machine.threads[first + lane].state = State::ready;
      any = true;
    }
  }
  return any;
}

void run_block(size_t n) {
  machine.live = n;
  while (machine.live > 0) {
    bool ran = false;
    for (const size_t i : machine.order) {
      Thread& t = machine.threads[i];
      if (t.state != State::ready) continue;
      ran = true;
      machine.current = &t;
      here.thread = t.place;
      switch_to(machine.scheduler, t.fiber, false);
      if (!machine.fault.empty()) machine.live = 0;  // the other threads are abandoned
      if (machine.live == 0) break;
      if (t.state == State::done) --machine.live;
    }
    const bool released = release_waiting(n);
    if (!ran && !released && machine.fault.empty())
      fail(
          "threads wait for partners that never come: a barrier or warp collective that not every "
          "thread of its group reaches");
  }
  machine.current = nullptr;
}

}  // namespace
}  // namespace emulation

extern const emulation::Index &threadIdx, &blockIdx, &blockDim, &gridDim;
const emulation::Index &threadIdx = emulation::here.thread, &blockIdx = emulation::here.block,
                       &blockDim = emulation::here.block_size, &gridDim = emulation::here.grid_size;

namespace emulation {

void run_grid(const Index& grid, const Index& block, size_t shared_bytes,
              const std::function<void()>& kernel) {
  if (machine.current) fail("a kernel launched a kernel");
  const Unlock unlock;
  const size_t n = size_t{block.x} * block.y * block.z;
  if (machine.threads.size() < n) machine.threads.resize(n);
  machine.warps.resize((n + 31) / 32);
  order_threads(n);
  machine.kernel = &kernel;
  here.grid_size = grid;
  here.block_size = block;
  // Ends where the allocation ends, so that a sanitizer sees an overrun.
  machine.shared_storage.reset(static_cast<char*>(::operator new[](shared_bytes + 128)));
  machine.shared = machine.shared_storage.get();
  machine.shared += (128 - reinterpret_cast<uintptr_t>(machine.shared) % 128) % 128;
  for (unsigned z = 0; z < grid.z; ++z)
    for (unsigned y = 0; y < grid.y; ++y)
      for (unsigned x = 0; x < grid.x; ++x) {
        std::memset(machine.shared, 0xff, shared_bytes);
        for (size_t i = 0; i < n; ++i) {
          Thread& t = machine.threads[i];
          prepare(t.fiber);
          t.state = State::ready;
          t.parity = 0;
          const auto at = static_cast<unsigned>(i);
          t.place = {at % block.x, at / block.x % block.y, at / block.x / block.y};
        }
        here.block = {x, y, z};
        run_block(n);
        if (!machine.fault.empty()) return;
      }
}

void* shared() {
  return machine.shared;
}

void block_barrier() {
  machine.current->state = State::at_block;
  machine.current->predicate = false;
  yield();
}

int block_count(bool predicate) {
  machine.current->state = State::at_block;
  machine.current->predicate = predicate;
  yield();
  return machine.count;
}

const void* warp_exchange(unsigned mask, const void* value, size_t bytes) {
  Thread& t = *machine.current;
  const auto index = static_cast<size_t>(&t - machine.threads.data());
  if (bytes > kSlotBytes) fail("a warp exchanges at most 32 bytes a lane");
  if (!(mask >> (index % 32) & 1)) fail("a lane calls a warp collective without being in its mask");
  char* board = machine.warps[index / 32].board[t.parity];
  t.parity ^= 1;
  std::memcpy(board + index % 32 * bytes, value, bytes);
  t.warp_mask = mask;
  t.state = State::at_warp;
  yield();
  return board;
}

void fault(const std::string& what) {
  if (!machine.current) fail(what);  // host code
  machine.fault = what;
  machine.current->state = State::done;
  switch_to(machine.current->fiber, machine.scheduler, true);
  fail("a stopped thread was resumed");
}
std::string take_fault() {
  return std::exchange(machine.fault, {});
}

void set_order(Order order) {
  machine.mode = order;
}

uint64_t launches() {
  return machine.launches;
}
void count_launch() {
  ++machine.launches;
}

}  // namespace emulation
