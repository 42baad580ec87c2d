// What a long run says while it runs: one line a step in a log, one line that rewrites itself, with
// a bar, on a terminal.
//   step 12/1000 | loss 4.1 | norm 1.2 | lr 1e-3 | 345 ms | 12,345 tok/s | 0:12 left
#pragma once

#include <fmt/format.h>

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace macgrad::experiments {

/// Writes `text`. Unlike fmt::print it does not throw when that fails: a closed terminal or a full
/// disk under the log must not end a training run. run_program checks standard output when the
/// program ends.
void put(std::FILE* out, std::string_view text);

template <class... Args>
void say(std::FILE* out, fmt::format_string<Args...> format, Args&&... args) {
  put(out, fmt::format(format, std::forward<Args>(args)...));
}
template <class... Args>
void say(fmt::format_string<Args...> format, Args&&... args) {
  put(stdout, fmt::format(format, std::forward<Args>(args)...));
}

/// 12345678 -> "12,345,678"
std::string group_digits(std::int64_t value);

/// Seconds as "0:07", "12:34", "1:02:03".
std::string format_duration(double seconds);

/// Four significant digits, without superfluous zeros and in the shorter of both notations
/// ("1e-3", "4.103", "0.0125"); "nan", "inf".
std::string format_short(double value);

/// One step of work. Fields are printed in order, as "name value".
struct StepReport {
  std::int64_t step = 0;  // steps done, 1-based
  std::vector<std::pair<std::string, double>> fields;
  std::int64_t tokens = 0;  // processed in this step; 0: no rate is printed
};

class Progress {
 public:
  using Clock = std::chrono::steady_clock;

  /// `total` steps; `unit` is the first word of the line. Lines go to `out`; a bar is drawn when
  /// `out` is a terminal. In a log, a line is printed at most every `log_seconds` (the first and
  /// the last step always).
  Progress(std::int64_t total, std::string unit = "step", std::FILE* out = stderr,
           double log_seconds = 10);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  /// Reports a finished step. The time since the last report (or resume(), or construction) is its
  /// duration; rate and time left follow a moving average of about the last 20 steps.
  void step(const StepReport& report);

  /// Prints a line of its own without disturbing the bar.
  void note(const std::string& line);

  /// Leaves time out of the average: call after validation, saving and the like.
  void resume();

  /// Ends the self-rewriting line, if any; done by the destructor too.
  void finish();

  /// The line for a report, given a step's duration and the averages. Pure; used by step().
  static std::string line(const StepReport& report, std::int64_t total, const std::string& unit,
                          double step_seconds, double mean_seconds, double tokens_per_second);

  /// Averages so far; 0 before the first step.
  double mean_seconds() const { return mean_seconds_; }
  double tokens_per_second() const;

 private:
  void print(const std::string& text);
  void rewrite(const std::string& text);
  void clear();

  std::int64_t total_;
  std::string unit_;
  std::FILE* out_;
  double log_seconds_;
  bool terminal_;
  bool drawn_ = false;  // a self-rewriting line is on the screen
  bool logged_ = false;
  Clock::time_point last_step_;
  Clock::time_point last_line_;
  std::int64_t steps_ = 0;
  double mean_seconds_ = 0;
  double mean_tokens_ = 0;
};

}  // namespace macgrad::experiments
