// What differs between two training steps and is read by kernels from device memory, so that a step
// captured as a CUDA graph replays truly: the step number of random draws, the learning rate, the
// scale of the gradients. The host queues a new set before each step; nothing waits.
#pragma once

#include <cstdint>

#include "macgrad/core/generator.h"
#include "macgrad/core/tensor.h"

namespace macgrad::cuda {

struct StepValues {
  uint32_t step = 0;           // of draws whose key says kLiveStep
  uint32_t skip = 0;           // 1: optimizers change nothing, the gradients are not finite
  int64_t update = 1;          // counted from 1, for arguments whose step is kLiveUpdate
  double lr = 0.0;             // multiplied by that of the arguments there
  double grad_scale = 1.0;     // multiplied by that of the arguments there
  double momentum = 0.9;       // AdamArgs::beta1 or SgdArgs::momentum there
  double gradient_norm = 0.0;  // of the scaled gradients, written by clip_live_gradients
};

/// The values in device memory: always the same address, so that a captured kernel may keep it. The
/// first call (or set_step_values) must not be made while capturing.
const StepValues* live_step_values();

/// Queues one small kernel on stream() that writes `values`: kernels queued before see the old
/// ones, kernels queued after the new ones. Throws while capturing.
void set_step_values(const StepValues& values);

/// On the device, from total (1) float64, the sum of squares of all gradients (the slot
/// sum_of_squares): writes gradient_norm = grad_scale·sqrt(total); shrinks grad_scale by
/// clip_norm/norm where that is below 1 (clip_norm 0: never); sets skip where the norm or `loss`
/// (one floating number, or undefined) is not finite, else clears it. A loss that is not finite
/// makes gradient_norm NaN. To be queued between sum_of_squares and the optimizer's kernel, once
/// per step.
void clip_live_gradients(const Tensor& total, double clip_norm, const Tensor& loss = {});

/// What a random kernel gets next to its key: nullptr unless the key's step is live. Throws for
/// another key while capturing: each replay would repeat its draw.
const StepValues* live_for(const DrawKey& key);
/// The key with its true step, inside a kernel.
MACGRAD_HD inline DrawKey resolved(DrawKey key, const StepValues* live) {
  if (live) key.step = live->step;
  return key;
}

}  // namespace macgrad::cuda
