// The step values in device memory, and the kernel that writes them.
#include "macgrad/cuda/step_values.h"

#include "macgrad/cuda/launch.h"

namespace macgrad::cuda {
namespace {

__global__ void write_step_values(StepValues* live, StepValues values) {
  *live = values;
}

// Lives as long as the process: graphs keep the address.
StepValues* live_values() {
  static StepValues* const the_values = [] {
    require(!capturing(), "step values must be set before a step that reads them is captured");
    StepValues* values = nullptr;
    CUDA_CHECK(cudaMalloc(&values, sizeof(StepValues)));
    launch(write_step_values, {1, 1}, values, StepValues{});
    return values;
  }();
  return the_values;
}

}  // namespace

const StepValues* live_step_values() {
  return live_values();
}

const StepValues* live_for(const DrawKey& key) {
  if (key.step == kLiveStep) return live_step_values();
  require(!capturing(),
          "a captured step draws random numbers for step {} alone (stream {:#x}); replays would "
          "repeat them: take the step from Module::on_micro_batch, or train without captured steps",
          key.step, key.stream);
  return nullptr;
}

void set_step_values(const StepValues& values) {
  require(!capturing(), "step values are set outside of a captured step, or it would keep them");
  launch(write_step_values, {1, 1}, live_values(), values);
}

}  // namespace macgrad::cuda
