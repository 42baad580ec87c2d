// Signals that ask a program to end, without torn output: the first one only sets a flag, which
// loops read between steps (they then save and leave); a second one ends the process at once.
#pragma once

#include <cstddef>
#include <vector>

namespace macgrad::experiments {

/// Installs handlers for SIGINT, SIGTERM, SIGHUP and SIGPIPE, and a stack for them where the thread
/// has none yet; the destructor restores what was there and clears the flag. A signal that is
/// ignored when the guard is made (SIGHUP under nohup, SIGINT of a background job of a script)
/// stays ignored. One guard at a time, on the main thread: the kernel delivers the signals of a
/// process there.
///
/// What a second signal does depends on what it can mean. After a closed terminal (SIGHUP) or
/// reader (SIGPIPE), more of these follow by themselves and change nothing; the same signal within
/// a tenth of a second is the same request, sent to the process and to its group (timeout, shells).
/// Any other second signal has its default effect.
class InterruptGuard {
 public:
  InterruptGuard();
  ~InterruptGuard();
  InterruptGuard(const InterruptGuard&) = delete;
  InterruptGuard& operator=(const InterruptGuard&) = delete;

  /// Whether a signal has come.
  bool interrupted() const;

  /// 128 + number (130 for Ctrl-C), for end_program; 0 without a signal.
  int exit_code() const;

 private:
  std::vector<std::byte> stack_;  // empty: the thread had its own
};

/// Ends the process as its parent expects. With the exit code of a guard the process ends by that
/// very signal, so that a script which runs it in a loop ends as well; otherwise returns `code`.
/// For main().
int end_program(int code);

}  // namespace macgrad::experiments
