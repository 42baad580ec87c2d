// A training step recorded once on a device and replayed: a whole step then costs the host one
// launch. Backends that can do it bring their functions (set_graph_functions); the CPU has none.
//
// While a step is recorded its kernels are queued, not run, so nothing may read a value. Memory
// comes from a private part of the device's allocator, which takes cached blocks of earlier eager
// runs or new ones, and which later eager work never touches; all recorded steps of a device share
// it, because only one runs at a time and none leaves anything there that outlives its values being
// read. What differs from step to step is read by kernels from device memory: ReplayValues.
#pragma once

#include <cstdint>
#include <functional>

#include "macgrad/core/tensor.h"

namespace macgrad {

/// Values of one replay. Kernels see them through kLiveStep (core/generator.h) and kLiveUpdate
/// (core/kernels.h).
struct ReplayValues {
  uint32_t step = 0;        // of random draws
  int64_t update = 1;       // AdamArgs::step: counted from 1, for the bias correction
  double lr = 0.0;          // multiplies that of the arguments
  double grad_scale = 1.0;  // multiplies that of the arguments
  double momentum = 0.9;    // AdamArgs::beta1 or SgdArgs::momentum
};

/// What a backend brings. Functions throw Error.
struct GraphFunctions {
  void (*begin)(Device device) = nullptr;  // starts recording
  void* (*end)(Device device) = nullptr;   // ends it; the recorded step, or an Error
  void (*launch)(void* graph, const ReplayValues& values, Device device) = nullptr;
  void (*destroy)(void* graph) = nullptr;
  // Queued between sum_of_squares and the optimizer's kernel; see clip_recorded_gradients.
  void (*clip)(const Tensor& total, double clip_norm, const Tensor& loss) = nullptr;
  double (*gradient_norm)(Device device) = nullptr;  // of the last replay; waits
};
void set_graph_functions(DeviceType type, const GraphFunctions& functions);

class StepGraph {
 public:
  /// Whether steps can be recorded on `device`.
  static bool available(Device device);
  /// Whether this thread is recording a step: what it reads on the host now, replays will not see.
  static bool recording();
  /// Records step(). Nothing runs yet. An Error (a value is read, no memory is left) leaves the
  /// device as it was.
  StepGraph(Device device, const std::function<void()>& step);
  ~StepGraph();
  StepGraph(const StepGraph&) = delete;
  StepGraph& operator=(const StepGraph&) = delete;

  void replay(const ReplayValues& values) const;

 private:
  Device device_;
  void* graph_ = nullptr;
};

/// In a recorded step, from total (1) float64, the sum of squares of the gradients: scales them by
/// ReplayValues::grad_scale, shrinks that so that their norm is at most clip_norm (0: any), and
/// makes optimizer kernels change nothing where the norm is not finite, or the loss (one floating
/// number, or undefined).
void clip_recorded_gradients(const Tensor& total, double clip_norm, const Tensor& loss);
/// The norm of the scaled gradients before clipping, of the last replay; NaN where its loss was not
/// finite. Waits for it.
double recorded_gradient_norm(Device device);

}  // namespace macgrad
