// Timing by the median of repeated runs after a warm-up, with the fastest beside it, and the lines
// of the table, printed as soon as each is measured.
#include "experiments/bench/timing.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>

namespace macgrad::experiments {

Timing time_of(const std::function<void()>& f, double seconds, int least) {
  using Clock = std::chrono::steady_clock;
  const auto once = [&] {
    const auto start = Clock::now();
    f();
    return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
  };
  // Warm caches and allocators; work of a second or more needs one run for that, and fewer samples.
  if (once() < 1e3) {
    once();
  } else {
    least = std::min(least, 2);
  }
  std::vector<double> samples;
  double spent = 0;
  while (spent < seconds * 1e3 || static_cast<int>(samples.size()) < least) {
    samples.push_back(once());
    spent += samples.back();
  }
  std::sort(samples.begin(), samples.end());
  return {samples[samples.size() / 2], samples[0]};
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
