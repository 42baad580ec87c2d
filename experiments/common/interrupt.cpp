// The handler touches one sig_atomic_t and resets the dispositions, both async-signal-safe. Blocked
// system calls are restarted (SA_RESTART), so no write is cut short by the first signal.
#include "experiments/common/interrupt.h"

#include <csignal>

namespace macgrad::experiments {
namespace {

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
  struct sigaction action = {};
  action.sa_handler = remember_signal;
  action.sa_flags = SA_RESTART;
  sigemptyset(&action.sa_mask);
  sigaction(SIGINT, &action, &earlier_interrupt);
  sigaction(SIGTERM, &action, &earlier_terminate);
}

InterruptGuard::~InterruptGuard() {
  sigaction(SIGINT, &earlier_interrupt, nullptr);
  sigaction(SIGTERM, &earlier_terminate, nullptr);
  received_signal = 0;
}

bool InterruptGuard::interrupted() const {
  return received_signal != 0;
}

int InterruptGuard::exit_code() const {
  return received_signal == 0 ? 0 : 128 + static_cast<int>(received_signal);
}

}  // namespace macgrad::experiments
