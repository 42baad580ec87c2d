// Steps recorded as CUDA graphs (core/step_graph.h). The step values are written to device memory
// before each launch, in stream order.
#include "macgrad/core/step_graph.h"
#include "macgrad/cuda/memory.h"
#include "macgrad/cuda/runtime.h"
#include "macgrad/cuda/step_values.h"

namespace macgrad::cuda {
namespace {

void begin_recording(Device) {
  // What must not be made while recording: the step values and the cuBLAS handle.
  (void)live_step_values();
  (void)cublas();
  (void)card();
  CUDA_CHECK(cudaStreamSynchronize(stream()));
  // Relaxed mode: memory may be allocated and a kernel that first runs here loaded while recording.
  // Copies between host and device, which would have to wait, are errors in copy_device.
  CUDA_CHECK(cudaStreamBeginCapture(stream(), cudaStreamCaptureModeRelaxed));
}

void* end_recording(Device) {
  cudaGraph_t graph = nullptr;
  CUDA_CHECK(cudaStreamEndCapture(stream(), &graph));
  cudaGraphExec_t step = nullptr;
  const cudaError_t status = cudaGraphInstantiate(&step, graph, 0);
  CUDA_CHECK(cudaGraphDestroy(graph));
  CUDA_CHECK(status);
  return step;
}

void launch_recorded(void* step, const ReplayValues& values, Device) {
  StepValues now;
  now.step = values.step;
  now.update = values.update;
  now.lr = values.lr;
  now.grad_scale = values.grad_scale;
  now.momentum = values.momentum;
  set_step_values(now);
  CUDA_CHECK(cudaGraphLaunch(static_cast<cudaGraphExec_t>(step), stream()));
}

void destroy_recorded(void* step) {
  // Called by a destructor: a failure here would only hide the one that led to it.
  if (step) (void)cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(step));
}

double gradient_norm(Device) {
  StepValues values;
  CUDA_CHECK(cudaMemcpyAsync(&values, live_step_values(), sizeof(values), cudaMemcpyDeviceToHost,
                             stream()));
  CUDA_CHECK(cudaStreamSynchronize(stream()));
  return values.gradient_norm;
}

}  // namespace

void register_graphs() {
  set_graph_functions(DeviceType::cuda, {begin_recording, end_recording, launch_recorded,
                                         destroy_recorded, clip_live_gradients, gradient_norm});
}

}  // namespace macgrad::cuda
