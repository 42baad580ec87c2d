// Ctrl-C and SIGTERM without torn output: the first signal only sets a flag, which the training
// loop reads between steps (it then saves and leaves); a second one ends the process at once.
#pragma once

#include <cstddef>
#include <vector>

namespace macgrad::experiments {

/// Installs the handlers for SIGINT and SIGTERM, and a stack for them where the thread has none
/// yet; the destructor puts back what was there and clears the flag. One at a time, on the main
/// thread: the kernel delivers the signals of a process there.
class InterruptGuard {
 public:
  InterruptGuard();
  ~InterruptGuard();
  InterruptGuard(const InterruptGuard&) = delete;
  InterruptGuard& operator=(const InterruptGuard&) = delete;

  /// Whether a signal has come.
  bool interrupted() const;

  /// What a shell expects of a program ended by that signal (128 + number: 130 for Ctrl-C); 0
  /// without.
  int exit_code() const;

 private:
  std::vector<std::byte> stack_;  // empty: the thread had its own
};

}  // namespace macgrad::experiments
