// Timing one piece of work, and the row that a table shows of it.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "macgrad/experiments/bench/place.h"

namespace macgrad::experiments {

/// A padded batch of sentence pairs: the tokens of each row.
struct BatchLengths {
  std::vector<int64_t> source, target;
};

struct BenchRow {
  std::string name = {};
  std::string precision = "exact";
  double ms = 0;  // median
  double ms_min = 0;
  double gflop = 0;          // arithmetic of one run; 0: not counted
  double gbyte = 0;          // bytes one run must move; 0: not counted
  double extra_bytes = -1;   // memory besides operands and results while it runs; -1: not measured
  std::string against = {};  // row or limit that `ratio` is relative to; empty: none
  double ratio = 0;          // speed of this row over speed of `against` (1 = equal, more = faster)
  std::string note = {};
  std::vector<BatchLengths> batches = {};  // that one run trains on, for a peer to train on as well
};

struct Timing {
  double median = 0;  // milliseconds
  double min = 0;
};

/// Runs f until `seconds` and at least `least` samples are spent, after two warm-up runs (one, and
/// at least 2 samples, when a run takes more than a second). A sample ends when the device has
/// finished; where work is queued, one holds enough runs for a millisecond.
Timing time_of(Device device, const std::function<void()>& f, double seconds = 0.6, int least = 5);

/// The same for several pieces of work run in turns, so that a machine whose speed drifts slows
/// them all alike: for ratios. Each gets the same number of samples.
std::vector<Timing> times_in_turns(Device device, const std::vector<std::function<void()>>& work,
                                   double seconds = 0.6, int least = 5);

/// Collects rows whose name contains one part of the filter (all rows without parts), and prints
/// each when it is there.
class BenchTable {
 public:
  explicit BenchTable(std::vector<std::string> filter, BenchPlace place = {})
      : filter_(std::move(filter)), place_(std::move(place)) {}

  const BenchPlace& place() const { return place_; }
  bool wants(const std::string& name) const;
  /// Times f under `row.name`; a row that the filter leaves out is not run (returns nullptr).
  const BenchRow* run(BenchRow row, const std::function<void()>& f, double seconds = 0.6);
  /// Times a limit and the work that should reach it in turns, and compares them. Both are run when
  /// the filter keeps either.
  void run_against(BenchRow limit, const std::function<void()>& limit_work, BenchRow row,
                   const std::function<void()>& work, double seconds = 0.6);
  /// Runs f; an Error in it (no memory, a kernel that is missing) is printed and kept, so that the
  /// other rows are measured all the same.
  void attempt(const std::string& what, const std::function<void()>& f);
  const std::vector<std::string>& failures() const { return failures_; }
  /// Adds a row that was measured elsewhere.
  const BenchRow* add(BenchRow row);
  /// Sets ratio of `name` to time(against)/time(name), when both were run.
  void compare(const std::string& name, const std::string& against);
  /// The same by bytes moved a second, for rows of unequal size.
  void compare_rates(const std::string& name, const std::string& against);
  void note(const std::string& name, const std::string& text);
  void set_extra_bytes(const std::string& name, double bytes);
  const BenchRow* find(const std::string& name) const;
  const std::vector<BenchRow>& rows() const { return rows_; }

  /// Name of the row that copies.
  std::string copy_limit() const;
  /// Name of the row that holds the rate of the GEMM library called directly on a square product.
  std::string gemm_limit(const Precision& precision = {}) const;

 private:
  BenchRow* get(const std::string& name);
  void set_ratio(const std::string& name, const std::string& against, bool rates);

  std::vector<std::string> filter_;
  BenchPlace place_;
  std::vector<BenchRow> rows_;
  std::vector<std::string> failures_;
};

}  // namespace macgrad::experiments
