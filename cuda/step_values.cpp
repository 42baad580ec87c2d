#include "cuda/step_values.h"

#include <array>
#include <new>

#include "cuda/runtime.h"

namespace macgrad::cuda {
namespace {

constexpr size_t kSlots = 64;

// A copy reads its slot when the device reaches it, so a slot is written again only after its copy.
struct StepRing {
  StepValues* device = nullptr;
  StepValues* pinned = nullptr;
  std::array<cudaEvent_t, kSlots> copied{};
  size_t next = 0;
};

// Lives as long as the process: graphs keep the address.
StepRing& ring() {
  static StepRing* const the_ring = [] {
    require(!capturing(), "step values must be set before a step that reads them is captured");
    auto* r = new StepRing;
    void* block = nullptr;
    CUDA_CHECK(cudaMalloc(&block, sizeof(StepValues)));
    r->device = static_cast<StepValues*>(block);
    CUDA_CHECK(cudaMallocHost(&block, sizeof(StepValues) * kSlots));
    r->pinned = static_cast<StepValues*>(block);
    for (cudaEvent_t& event : r->copied) CUDA_CHECK(cudaEventCreate(&event));
    CUDA_CHECK(cudaMemsetAsync(r->device, 0, sizeof(StepValues), stream()));
    return r;
  }();
  return *the_ring;
}

}  // namespace

const StepValues* live_step_values() {
  return ring().device;
}

void set_step_values(const StepValues& values) {
  require(!capturing(), "step values are set outside of a captured step, or it would keep them");
  StepRing& r = ring();
  const size_t slot = r.next++ % kSlots;
  CUDA_CHECK(cudaEventSynchronize(r.copied[slot]));
  new (r.pinned + slot) StepValues(values);
  CUDA_CHECK(cudaMemcpyAsync(r.device, r.pinned + slot, sizeof(StepValues), cudaMemcpyHostToDevice,
                             stream()));
  CUDA_CHECK(cudaEventRecord(r.copied[slot], stream()));
}

}  // namespace macgrad::cuda
