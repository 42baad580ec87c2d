// One whole run: data, model, epochs of training with validation, the final scores, and the files
// it leaves in --out (README.md lists them).
#pragma once

#include "macgrad/experiments/multi30k/settings.h"

namespace macgrad::experiments {

enum class Start {
  fresh,  // an Error when --out holds a checkpoint
  resume  // goes on from OUT/checkpoint.safetensors as if it had never stopped (resume.h)
};

/// Returns the exit code: 0, or 128 + signal when one ended it early (the checkpoint is saved then
/// too; interrupt.h).
int run_multi30k(Multi30kSettings& settings, Start start = Start::fresh);

}  // namespace macgrad::experiments
