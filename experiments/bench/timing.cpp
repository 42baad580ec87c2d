// Timing by the median of repeated runs after a warm-up, with the fastest beside it, and the lines
// of the table, printed as soon as each is measured.
#include "experiments/bench/timing.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>

namespace macgrad::experiments {

std::vector<Timing> times_in_turns(const std::vector<std::function<void()>>& work, double seconds,
                                   int least) {
  using Clock = std::chrono::steady_clock;
  const auto once = [](const std::function<void()>& f) {
    const auto start = Clock::now();
    f();
    return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
  };
  // Warm caches and allocators; work of a second or more needs one run for that, and fewer samples.
  bool slow = false;
  for (const auto& f : work) {
    if (once(f) < 1e3) {
      once(f);
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
      samples[i].push_back(once(work[i]));
      spent += samples[i].back();
    }
  }
  std::vector<Timing> timings;
  for (auto& s : samples) {
    std::sort(s.begin(), s.end());
    timings.push_back({s[s.size() / 2], s[0]});
  }
  return timings;
}

Timing time_of(const std::function<void()>& f, double seconds, int least) {
  return times_in_turns({f}, seconds, least).front();
}

bool BenchTable::wants(const std::string& name) const {
  return filter_.empty() || name.find(filter_) != std::string::npos;
}

const BenchRow* BenchTable::run(BenchRow row, const std::function<void()>& f, double seconds) {
  if (!wants(row.name)) return nullptr;
  const Timing t = time_of(f, seconds);
  row.ms = t.median;
  row.ms_min = t.min;
  return add(std::move(row));
}

void BenchTable::run_against(BenchRow limit, const std::function<void()>& limit_work, BenchRow row,
                             const std::function<void()>& work, double seconds) {
  if (!wants(limit.name) && !wants(row.name)) return;
  const auto times = times_in_turns({limit_work, work}, seconds);
  limit.ms = times[0].median;
  limit.ms_min = times[0].min;
  row.ms = times[1].median;
  row.ms_min = times[1].min;
  const std::string name = row.name, against = limit.name;
  add(std::move(limit));
  add(std::move(row));
  compare(name, against);
}

const BenchRow* BenchTable::add(BenchRow row) {
  if (!wants(row.name)) return nullptr;
  rows_.push_back(std::move(row));
  const BenchRow& r = rows_.back();
  std::string rate;
  if (r.gflop > 0) rate = fmt::format("{:8.1f} GFLOP/s", r.gflop / r.ms * 1e3);
  if (r.gflop == 0 && r.gbyte > 0) rate = fmt::format("{:8.1f} GB/s", r.gbyte / r.ms * 1e3);
  fmt::print("{:<46} {:>10.3f} ms (min {:>9.3f}) {:>16} {}\n", r.name, r.ms, r.ms_min, rate,
             r.note);
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

void BenchTable::compare(const std::string& name, const std::string& against) {
  BenchRow* row = get(name);
  const BenchRow* other = find(against);
  if (!row || !other) return;
  row->against = against;
  row->ratio = other->ms / row->ms;
  fmt::print("    {:<42} {:.2f} x the speed of {}\n", name, row->ratio, against);
}

void BenchTable::note(const std::string& name, const std::string& text) {
  if (BenchRow* row = get(name)) {
    row->note = text;
    fmt::print("    {:<42} {}\n", name, text);
  }
}

}  // namespace macgrad::experiments
