// Feature draws (core/feature_draw.h): a block a map, many maps in one launch, so that the
// permutations of one map, which are drawn one number after the other, wait beside those of others.
// In a captured step the step number comes from device memory (step_values.h).
#include <vector>

#include "macgrad/core/feature_draw.h"
#include "macgrad/core/kernels/rmfa.h"
#include "macgrad/cuda/device_code.cuh"
#include "macgrad/cuda/launch.h"
#include "macgrad/cuda/step_values.h"
#include "macgrad/cuda/tensor_table.cuh"

namespace macgrad::cuda {
namespace {

constexpr int kThreads = 256;

struct Block {
  __device__ static int64_t rank() { return threadIdx.x; }
  __device__ static int64_t size() { return kThreads; }
  __device__ static void sync() { __syncthreads(); }
};

// Maps of one launch: what 4 KiB of arguments hold.
template <class T>
struct DrawTable {
  static constexpr size_t kCapacity = kSmallTable / sizeof(FeatureDrawOperands<T>);
  FeatureDrawOperands<T> maps[kCapacity];
};

// Shared memory: the groups, then the tail's degrees and an order of rows, then signs.
size_t shared_bytes(const FeatureDrawArgs& args) {
  const auto size = static_cast<size_t>(hadamard_size(args.head_dim));
  return 4 * kLawDegrees * sizeof(int64_t) +
         (static_cast<size_t>(args.tail_count) + size) * sizeof(int32_t) + size;
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    draw_maps(const MACGRAD_GRID_CONSTANT DrawTable<T> table, const StepValues* live) {
  FeatureDrawOperands<T> map = table.maps[blockIdx.x];
  if (map.args.key.step == kLiveStep) map.args.key = resolved(map.args.key, live);
  auto* const groups = shared_memory<int64_t>();
  auto* const tail = reinterpret_cast<int32_t*>(groups + 4 * kLawDegrees);
  int32_t* const order = tail + map.args.tail_count;
  auto* const signs = reinterpret_cast<int8_t*>(order + hadamard_size(map.args.head_dim));
  draw_law(map, {degree_groups(groups), {signs, order}, tail}, Block{});
}

template <class T>
void draw(InList laws, InOutList omegas, InOutList weights, InOutList layouts,
          const std::vector<FeatureDrawArgs>& args) {
  DrawTable<T> table{};
  uint32_t blocks = 0;
  size_t shared = 0;
  bool live = false;
  const auto run = [&] {
    launch(draw_maps<T>, {blocks, kThreads, shared}, table, live ? live_step_values() : nullptr);
    blocks = 0;
    shared = 0;
  };
  for (size_t i = 0; i < args.size(); ++i) {
    if (omegas.list[i].dtype() != dtype_of<T>()) continue;
    table.maps[blocks++] = feature_draw_operands<T>(laws.list[i], omegas.list[i], weights.list[i],
                                                    layouts.list[i], args[i]);
    shared = std::max(shared, shared_bytes(args[i]));
    live |= live_for(args[i].key) != nullptr;
    if (blocks == DrawTable<T>::kCapacity) run();
  }
  run();
}

}  // namespace

void draw_features(InList laws, InOutList omegas, InOutList weights, InOutList layouts,
                   const std::vector<FeatureDrawArgs>& args) {
  check_feature_draws(laws, omegas, weights, layouts, args);
  draw<float>(laws, omegas, weights, layouts, args);
  draw<double>(laws, omegas, weights, layouts, args);
  draw<bfloat16>(laws, omegas, weights, layouts, args);
}

}  // namespace macgrad::cuda
