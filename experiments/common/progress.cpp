// Every line leaves in one write, so that a log with several writers and Ctrl-C stay readable.
#include "macgrad/experiments/common/progress.h"

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>

namespace macgrad::experiments {
namespace {

double seconds_between(Progress::Clock::time_point from, Progress::Clock::time_point to) {
  return std::chrono::duration<double>(to - from).count();
}

std::size_t terminal_width(std::FILE* out) {
  winsize size{};
  if (ioctl(fileno(out), TIOCGWINSZ, &size) == 0 && size.ws_col > 0) return size.ws_col;
  return 80;
}

}  // namespace

void put(std::FILE* out, std::string_view text) {
  std::fwrite(text.data(), 1, text.size(), out);
}

std::string group_digits(std::int64_t value) {
  std::string digits = fmt::format("{}", value);
  const std::size_t first = digits[0] == '-' ? 1 : 0;
  for (std::size_t at = digits.size(); at > first + 3;) {
    at -= 3;
    digits.insert(at, 1, ',');
  }
  return digits;
}

std::string format_duration(double seconds) {
  if (!std::isfinite(seconds) || seconds < 0 || seconds > 1e9) return "?";
  const auto whole = static_cast<std::int64_t>(std::llround(seconds));
  const std::int64_t hours = whole / 3600;
  const std::int64_t minutes = whole / 60 % 60;
  if (hours > 0) return fmt::format("{}:{:02}:{:02}", hours, minutes, whole % 60);
  return fmt::format("{}:{:02}", minutes, whole % 60);
}

std::string format_short(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value > 0 ? "inf" : "-inf";
  const std::string plain = fmt::format("{:.4g}", value);
  std::string scientific = fmt::format("{:.3e}", value);
  std::size_t e = scientific.find('e');
  std::string mantissa = scientific.substr(0, e);
  if (mantissa.find('.') != std::string::npos) {
    mantissa.erase(mantissa.find_last_not_of('0') + 1);
    if (mantissa.ends_with('.')) mantissa.pop_back();
  }
  scientific = fmt::format("{}e{}", mantissa, std::stoi(scientific.substr(e + 1)));
  return plain.find('e') != std::string::npos || scientific.size() < plain.size() ? scientific
                                                                                  : plain;
}

Progress::Progress(std::int64_t total, std::string unit, std::FILE* out, double log_seconds)
    : total_(total),
      unit_(std::move(unit)),
      out_(out),
      log_seconds_(log_seconds),
      terminal_(isatty(fileno(out)) == 1),
      last_step_(Clock::now()),
      last_line_(last_step_) {}

Progress::~Progress() {
  finish();
}

std::string Progress::line(const StepReport& report, std::int64_t total, const std::string& unit,
                           double step_seconds, double mean_seconds, double tokens_per_second) {
  std::string text = fmt::format("{} {}/{}", unit, report.step, total);
  for (const auto& [name, value] : report.fields) {
    text += fmt::format(" | {} {}", name, format_short(value));
  }
  if (step_seconds < 10) {
    text += fmt::format(" | {:.{}f} ms", step_seconds * 1000, step_seconds < 0.01 ? 1 : 0);
  } else {
    text += fmt::format(" | {:.1f} s", step_seconds);
  }
  if (tokens_per_second > 0) {
    text += fmt::format(" | {} tok/s", group_digits(std::llround(tokens_per_second)));
  }
  const auto left = static_cast<double>(std::max<std::int64_t>(0, total - report.step));
  return text + fmt::format(" | {} left", format_duration(left * mean_seconds));
}

double Progress::tokens_per_second() const {
  return mean_seconds_ > 0 ? mean_tokens_ / mean_seconds_ : 0;
}

void Progress::step(const StepReport& report) {
  const Clock::time_point now = Clock::now();
  const double seconds = seconds_between(last_step_, now);
  last_step_ = now;
  ++steps_;
  const double weight = std::max(1.0 / static_cast<double>(steps_), 0.05);
  mean_seconds_ += weight * (seconds - mean_seconds_);
  mean_tokens_ += weight * (static_cast<double>(report.tokens) - mean_tokens_);

  const std::string text = line(report, total_, unit_, seconds, mean_seconds_, tokens_per_second());
  const double since_line = seconds_between(last_line_, now);
  const bool last = report.step >= total_;
  if (terminal_) {
    if (drawn_ && since_line < 0.1 && !last) return;
    last_line_ = now;
    const std::size_t width = terminal_width(out_);
    constexpr std::size_t kBar = 20;
    if (text.size() + kBar + 3 < width) {
      const double share =
          total_ > 0 ? static_cast<double>(report.step) / static_cast<double>(total_) : 1;
      const auto full = static_cast<std::size_t>(std::clamp(share, 0.0, 1.0) * kBar);
      rewrite(
          fmt::format("[{}{}] {}", std::string(full, '#'), std::string(kBar - full, '-'), text));
    } else {
      // A line that wraps could not be rewritten.
      rewrite(text.substr(0, width > 0 ? width - 1 : 0));
    }
  } else if (!logged_ || since_line >= log_seconds_ || last) {
    last_line_ = now;
    logged_ = true;
    print(text + "\n");
  }
}

void Progress::note(const std::string& text) {
  clear();
  print(text + "\n");
}

void Progress::resume() {
  last_step_ = Clock::now();
}

void Progress::finish() {
  if (drawn_) print("\n");
  drawn_ = false;
}

void Progress::print(const std::string& text) {
  put(out_, text);
  std::fflush(out_);
}

void Progress::rewrite(const std::string& text) {
  print("\r\x1b[2K" + text);
  drawn_ = true;
}

void Progress::clear() {
  if (drawn_) print("\r\x1b[2K");
  drawn_ = false;
}

}  // namespace macgrad::experiments
