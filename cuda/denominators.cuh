// Statistics of the denominators that a kernel of attention divides by: per thread, per block, then
// of the call, always in the same order.
#pragma once

#include "macgrad/cuda/device_code.cuh"

namespace macgrad::cuda {

/// What a thread has seen: denominators, of them unsafe ones and ones that were summed again, and
/// the smallest denominator over its number of keys.
struct Denominators {
  static constexpr int kNumbers = 4;
  double rows = 0.0, unsafe = 0.0, again = 0.0, smallest = INFINITY;

  __device__ void add(double count, double floored, double recomputed, double ratio) {
    rows += count;
    unsafe += floored;
    again += recomputed;
    if (ratio < smallest) smallest = ratio;
  }
  /// Writes the kNumbers of a block of `threads`. `scratch`: threads/32 doubles of shared memory.
  template <int threads>
  __device__ void write(double* to, double* scratch) const {
    const double sums[] = {block_sum<threads>(rows, scratch), block_sum<threads>(unsafe, scratch),
                           block_sum<threads>(again, scratch)};
    const double least =
        block_reduce<threads>(smallest, scratch, [](double a, double b) { return b < a ? b : a; });
    if (threadIdx.x != 0) return;
    for (int i = 0; i < 3; ++i) to[i] = sums[i];
    to[3] = least;
  }
};

/// stats (4) float64 from the numbers of `blocks` blocks.
void join_denominators(const double* seen, int64_t blocks, double* stats);

}  // namespace macgrad::cuda
