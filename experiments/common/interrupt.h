// Ctrl-C and SIGTERM without torn output: the first signal only sets a flag, which the training
// loop reads between steps (it then saves and leaves); a second one ends the process at once.
#pragma once

namespace macgrad::experiments {

/// Installs the handlers for SIGINT and SIGTERM; the destructor puts the earlier ones back and
/// clears the flag. One at a time.
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
};

}  // namespace macgrad::experiments
