// Statistics of denominators: one block adds up the numbers of all.
#include "macgrad/cuda/denominators.cuh"

#include "macgrad/cuda/launch.h"

namespace macgrad::cuda {
namespace {

constexpr int kJoinThreads = 256;

__global__ void __launch_bounds__(kJoinThreads)
    join_blocks(const double* seen, int64_t blocks, double* stats) {
  Denominators all;
  for (int64_t i = threadIdx.x; i < blocks; i += kJoinThreads) {
    const double* x = seen + Denominators::kNumbers * i;
    all.add(x[0], x[1], x[2], x[3]);
  }
  all.write<kJoinThreads>(stats, shared_memory<double>());
}

}  // namespace

void join_denominators(const double* seen, int64_t blocks, double* stats) {
  launch(join_blocks, {1, kJoinThreads, kJoinThreads / kWarp * sizeof(double)}, seen, blocks,
         stats);
}

}  // namespace macgrad::cuda
