// Timing by the median of repeated runs after a warm-up, with the fastest beside it, and the lines
// of the table, printed as soon as each is measured.
#include "macgrad/experiments/bench/timing.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <string_view>

#include "macgrad/core/allocator.h"
#include "macgrad/core/error.h"
#include "macgrad/experiments/common/progress.h"

namespace macgrad::experiments {

namespace {

// A queue's wait costs some microseconds: samples are this long at least.
constexpr double kShortestSample = 1.0;  // ms
constexpr int kMostRuns = 1000;

}  // namespace

std::vector<Timing> times_in_turns(Device device, const std::vector<std::function<void()>>& work,
                                   double seconds, int least) {
  using Clock = std::chrono::steady_clock;
  const auto timed = [&](const std::function<void()>& f, int runs) {
    const auto start = Clock::now();
    for (int i = 0; i < runs; ++i) f();
    wait_for(device);
    return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
  };
  wait_for(device);
  // Warm caches and allocators; work of a second or more needs one run for that, and fewer samples.
  bool slow = false;
  std::vector<int> runs(work.size(), 1);
  for (size_t i = 0; i < work.size(); ++i) {
    if (timed(work[i], 1) < 1e3) {
      const double once = timed(work[i], 1);
      // Twice, because the first figure holds a whole wait.
      if (device.type != DeviceType::cpu && once < kShortestSample) {
        const double each = timed(work[i], 10) / 10;
        runs[i] = std::clamp(static_cast<int>(kShortestSample / each) + 1, 1, kMostRuns);
      }
    } else {
      slow = true;
    }
  }
  if (slow) least = std::min(least, 2);
  std::vector<std::vector<double>> samples(work.size());
  double spent = 0;
  const double budget = seconds * 1e3 * static_cast<double>(work.size());
  for (int turn = 0; turn < least || spent < budget; ++turn) {
    for (size_t i = 0; i < work.size(); ++i) {
      const double ms = timed(work[i], runs[i]);
      samples[i].push_back(ms / runs[i]);
      spent += ms;
    }
  }
  std::vector<Timing> timings;
  for (auto& s : samples) {
    std::sort(s.begin(), s.end());
    timings.push_back({s[s.size() / 2], s[0]});
  }
  return timings;
}

Timing time_of(Device device, const std::function<void()>& f, double seconds, int least) {
  return times_in_turns(device, {f}, seconds, least).front();
}

bool BenchTable::wants(const std::string& name) const {
  return filter_.empty() || std::any_of(filter_.begin(), filter_.end(), [&](const auto& part) {
           return name.find(part) != std::string::npos;
         });
}

const BenchRow* BenchTable::run(BenchRow row, const std::function<void()>& f, double seconds) {
  if (!wants(row.name)) return nullptr;
  const Timing t = time_of(place_.device, f, seconds * place_.seconds);
  row.ms = t.median;
  row.ms_min = t.min;
  return add(std::move(row));
}

void BenchTable::run_against(BenchRow limit, const std::function<void()>& limit_work, BenchRow row,
                             const std::function<void()>& work, double seconds) {
  if (!wants(limit.name) && !wants(row.name)) return;
  const auto times = times_in_turns(place_.device, {limit_work, work}, seconds * place_.seconds);
  limit.ms = times[0].median;
  limit.ms_min = times[0].min;
  row.ms = times[1].median;
  row.ms_min = times[1].min;
  const std::string name = row.name, against = limit.name;
  add(std::move(limit));
  add(std::move(row));
  compare(name, against);
}

void BenchTable::attempt(const std::string& what, const std::function<void()>& f) {
  try {
    f();
  } catch (const Error& error) {
    failures_.push_back(fmt::format("{}: {}", what, error.what()));
    say(stderr, "{}\n", failures_.back());
  }
}

const BenchRow* BenchTable::add(BenchRow row) {
  if (!wants(row.name)) return nullptr;
  rows_.push_back(std::move(row));
  const BenchRow& r = rows_.back();
  if (!place_.print) return &r;
  std::string rate;
  if (r.gflop > 0) rate = fmt::format("{:8.1f} GFLOP/s", r.gflop / r.ms * 1e3);
  if (r.gflop == 0 && r.gbyte > 0) rate = fmt::format("{:8.1f} GB/s", r.gbyte / r.ms * 1e3);
  say("{:<46} {:>10.3f} ms (min {:>9.3f}) {:>16} {}\n", r.name, r.ms, r.ms_min, rate, r.note);
  std::fflush(stdout);
  return &rows_.back();
}

BenchRow* BenchTable::get(const std::string& name) {
  for (BenchRow& r : rows_)
    if (r.name == name) return &r;
  return nullptr;
}

const BenchRow* BenchTable::find(const std::string& name) const {
  for (const BenchRow& r : rows_)
    if (r.name == name) return &r;
  return nullptr;
}

void BenchTable::set_ratio(const std::string& name, const std::string& against, bool rates) {
  BenchRow* row = get(name);
  const BenchRow* other = find(against);
  if (!row || !other) return;
  row->against = against;
  row->ratio = other->ms / row->ms;
  if (rates) row->ratio *= row->gbyte / other->gbyte;
  if (place_.print)
    say("    {:<42} {:.2f} x the {} of {}\n", name, row->ratio, rates ? "GB/s" : "speed", against);
}

void BenchTable::compare(const std::string& name, const std::string& against) {
  set_ratio(name, against, false);
}

void BenchTable::compare_rates(const std::string& name, const std::string& against) {
  set_ratio(name, against, true);
}

void BenchTable::note(const std::string& name, const std::string& text) {
  if (BenchRow* row = get(name)) {
    row->note = text;
    if (place_.print) say("    {:<42} {}\n", name, text);
  }
}

void BenchTable::set_extra_bytes(const std::string& name, double bytes) {
  if (BenchRow* row = get(name)) row->extra_bytes = bytes;
}

std::string BenchTable::copy_limit() const {
  return "limit/copy " + size_text(4.0 * static_cast<double>(place_.sizes.copy));
}

std::string BenchTable::gemm_limit(const Precision& precision) const {
  return row_name(fmt::format("limit/sgemm {0}x{0}x{0}", place_.sizes.square), precision);
}

}  // namespace macgrad::experiments
