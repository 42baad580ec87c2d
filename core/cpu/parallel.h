// Threads of the CPU kernels. Work is cut into blocks whose size depends on shapes only, never on
// the number of threads, so that results do not change with it. Grain thresholds live here.
#pragma once

#include <omp.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>

namespace macgrad::cpu {

/// Elements of a streaming loop that are worth a block of their own.
inline constexpr int64_t kElementGrain = 1 << 14;

/// An exception may not leave a parallel region: the first one of its threads is kept and rethrown
/// after the region. Blocks that have not started are skipped.
class FirstFailure {
 public:
  template <class F>
  void run(F&& f) noexcept {
    if (failed_.load(std::memory_order_relaxed)) return;
    try {
      f();
    } catch (...) {
      if (!failed_.exchange(true)) failure_ = std::current_exception();
    }
  }
  void rethrow() const {
    if (failure_) std::rethrow_exception(failure_);
  }

 private:
  std::atomic<bool> failed_{false};
  std::exception_ptr failure_;
};

/// Calls f(begin, end) on blocks of `grain` of [0, n), blocks spread over the threads. Inside a
/// parallel region the blocks run one after the other.
template <class F>
void parallel_blocks(int64_t n, int64_t grain, F&& f) {
  if (n <= 0) return;
  const int64_t blocks = (n + grain - 1) / grain;
  if (blocks == 1 || omp_in_parallel() || omp_get_max_threads() == 1) {
    for (int64_t b = 0; b < blocks; ++b) f(b * grain, std::min(n, (b + 1) * grain));
    return;
  }
  FirstFailure failure;
#pragma omp parallel for schedule(static)
  for (int64_t b = 0; b < blocks; ++b)
    failure.run([&] { f(b * grain, std::min(n, (b + 1) * grain)); });
  failure.rethrow();
}

/// Calls f(i) for i in [0, n), unequal work: threads take the next index when they are free.
template <class F>
void parallel_tasks(int64_t n, F&& f) {
  if (n <= 1 || omp_in_parallel() || omp_get_max_threads() == 1) {
    for (int64_t i = 0; i < n; ++i) f(i);
    return;
  }
  FirstFailure failure;
#pragma omp parallel for schedule(dynamic, 1)
  for (int64_t i = 0; i < n; ++i) failure.run([&] { f(i); });
  failure.rethrow();
}

}  // namespace macgrad::cpu
