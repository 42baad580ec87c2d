// The handler touches sig_atomic_t flags, reads the clock and sets dispositions, all of which are
// async-signal-safe. Blocked system calls are restarted (SA_RESTART), so no write is cut short by
// the first signal. It has a stack of its own (SA_ONSTACK): oneDNN up to 3.11.1 points the stack
// register into the heap while it multiplies, and what a handler writes below it lands in other
// blocks (uxlfoundation/oneDNN, issue 4845).
#include "macgrad/experiments/common/interrupt.h"

#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <ctime>

#include "macgrad/core/error.h"

namespace macgrad::experiments {
namespace {

constexpr long kLeastStack = 64 << 10;      // bytes
constexpr long kSameRequest = 100'000'000;  // nanoseconds

struct Signal {
  int number;
  bool repeats;  // comes again by itself
  bool handled = false;
  struct sigaction earlier = {};
};
std::array<Signal, 4> signals{{{SIGINT, false}, {SIGTERM, false}, {SIGHUP, true}, {SIGPIPE, true}}};

volatile sig_atomic_t received_signal = 0;
timespec received_at;  // written before received_signal is set, read after

long nanoseconds_since(const timespec& start) {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  if (now.tv_sec - start.tv_sec > 1) return 2 * kSameRequest;
  return (now.tv_sec - start.tv_sec) * 1'000'000'000 + now.tv_nsec - start.tv_nsec;
}

void by_default(int number) {
  struct sigaction action = {};
  action.sa_handler = SIG_DFL;
  sigaction(number, &action, nullptr);
}

// One handler at a time: every handled signal is blocked while it runs.
extern "C" void remember_signal(int number) {
  const int error = errno;
  if (received_signal == 0) {
    clock_gettime(CLOCK_MONOTONIC, &received_at);
    received_signal = number;
  } else {
    bool repeats = false;
    for (const Signal& signal : signals) repeats |= signal.number == number && signal.repeats;
    const bool same = number == received_signal && nanoseconds_since(received_at) < kSameRequest;
    if (!repeats && !same) {
      // Delivered when the handler returns and the signal is no longer blocked.
      by_default(number);
      raise(number);
    }
  }
  errno = error;
}

}  // namespace

InterruptGuard::InterruptGuard() {
  received_signal = 0;
  stack_t stack = {};
  sigaltstack(nullptr, &stack);
  if ((stack.ss_flags & SS_DISABLE) != 0) {
    // The frame of a signal holds every vector register; how large that is, the kernel says.
    stack_.resize(static_cast<std::size_t>(std::max(sysconf(_SC_SIGSTKSZ), kLeastStack)));
    stack = {};
    stack.ss_sp = stack_.data();
    stack.ss_size = stack_.size();
    require(sigaltstack(&stack, nullptr) == 0,
            "no stack of {} bytes for signal handlers (sigaltstack)", stack_.size());
  }
  struct sigaction action = {};
  action.sa_handler = remember_signal;
  action.sa_flags = SA_RESTART | SA_ONSTACK;
  sigemptyset(&action.sa_mask);
  for (const Signal& signal : signals) sigaddset(&action.sa_mask, signal.number);
  for (Signal& signal : signals) {
    sigaction(signal.number, nullptr, &signal.earlier);
    signal.handled = signal.earlier.sa_handler != SIG_IGN;
    if (signal.handled) sigaction(signal.number, &action, nullptr);
  }
}

InterruptGuard::~InterruptGuard() {
  for (Signal& signal : signals)
    if (signal.handled) sigaction(signal.number, &signal.earlier, nullptr);
  if (!stack_.empty()) {
    stack_t none = {};
    none.ss_flags = SS_DISABLE;
    sigaltstack(&none, nullptr);
  }
  received_signal = 0;
}

bool InterruptGuard::interrupted() const {
  return received_signal != 0;
}

int InterruptGuard::exit_code() const {
  return received_signal == 0 ? 0 : 128 + static_cast<int>(received_signal);
}

int end_program(int code) {
  for (const Signal& signal : signals) {
    if (code != 128 + signal.number) continue;
    std::fflush(nullptr);
    by_default(signal.number);
    raise(signal.number);
  }
  return code;
}

}  // namespace macgrad::experiments
