// The table of what backends bring for recorded steps, and recording and replay on top of it.
#include "macgrad/core/step_graph.h"

#include <array>

#include "macgrad/core/allocator.h"
#include "macgrad/core/generator.h"

namespace macgrad {
namespace {

std::array<GraphFunctions, kDeviceTypes>& all_functions() {
  static std::array<GraphFunctions, kDeviceTypes> functions;
  return functions;
}

const GraphFunctions& functions_of(Device device) {
  const GraphFunctions& f = all_functions()[static_cast<size_t>(device.type)];
  require(f.begin != nullptr, "steps cannot be recorded on {}", text(device));
  return f;
}

thread_local bool recording_now = false;

class Recording {
 public:
  Recording() { recording_now = true; }
  ~Recording() { recording_now = false; }
  Recording(const Recording&) = delete;
  Recording& operator=(const Recording&) = delete;
};

// Serves the device's memory from its private part while alive.
class PrivateMemory {
 public:
  explicit PrivateMemory(Device device) : device_(device) { use_private_memory(device_, true); }
  ~PrivateMemory() { use_private_memory(device_, false); }
  PrivateMemory(const PrivateMemory&) = delete;
  PrivateMemory& operator=(const PrivateMemory&) = delete;

 private:
  Device device_;
};

}  // namespace

void set_graph_functions(DeviceType type, const GraphFunctions& functions) {
  all_functions()[static_cast<size_t>(type)] = functions;
}

bool StepGraph::available(Device device) {
  return all_functions()[static_cast<size_t>(device.type)].begin != nullptr;
}

bool StepGraph::recording() {
  return recording_now;
}

StepGraph::StepGraph(Device device, const std::function<void()>& step) : device_(device) {
  const GraphFunctions& f = functions_of(device);
  const PrivateMemory memory(device);
  f.begin(device);
  try {
    const Recording recording;
    step();
  } catch (...) {
    try {
      f.destroy(f.end(device));
    } catch (const std::exception&) {
      // What broke the step broke the capture; the first error counts.
    }
    throw;
  }
  graph_ = f.end(device);
}

StepGraph::~StepGraph() {
  functions_of(device_).destroy(graph_);
}

void StepGraph::replay(const ReplayValues& values) const {
  functions_of(device_).launch(graph_, values, device_);
}

void clip_recorded_gradients(const Tensor& total, double clip_norm, const Tensor& loss) {
  functions_of(total.device()).clip(total, clip_norm, loss);
}

void detail::throw_live_key() {
  throw Error(
      "random numbers of a captured step were read on the host; replays would repeat them: draw "
      "them with kernels::random_uniform or another slot, or train without captured steps");
}

double recorded_gradient_norm(Device device) {
  return functions_of(device).gradient_norm(device);
}

}  // namespace macgrad
