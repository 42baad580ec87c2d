// The handler touches one sig_atomic_t and resets the dispositions, both async-signal-safe. Blocked
// system calls are restarted (SA_RESTART), so no write is cut short by the first signal. It has a
// stack of its own (SA_ONSTACK): oneDNN up to 3.11.1 points the stack register into the heap while
// it multiplies, and what a handler writes below it lands in other blocks (uxlfoundation/oneDNN,
// issue 4845).
#include "experiments/common/interrupt.h"

#include <unistd.h>

#include <algorithm>
#include <csignal>

#include "core/error.h"

namespace macgrad::experiments {
namespace {

constexpr long kLeastStack = 64 << 10;  // bytes

volatile std::sig_atomic_t received_signal = 0;
struct sigaction earlier_interrupt;
struct sigaction earlier_terminate;

extern "C" void remember_signal(int signal) {
  received_signal = signal;
  std::signal(SIGINT, SIG_DFL);
  std::signal(SIGTERM, SIG_DFL);
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
  sigaction(SIGINT, &action, &earlier_interrupt);
  sigaction(SIGTERM, &action, &earlier_terminate);
}

InterruptGuard::~InterruptGuard() {
  sigaction(SIGINT, &earlier_interrupt, nullptr);
  sigaction(SIGTERM, &earlier_terminate, nullptr);
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

}  // namespace macgrad::experiments
