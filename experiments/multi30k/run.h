// One whole run: data, model, epochs of training with validation, and the files it leaves in --out.
#pragma once

#include "experiments/multi30k/settings.h"

namespace macgrad::experiments {

/// Returns the exit code: 0, or 128 + signal when Ctrl-C or SIGTERM ended it early (checkpoint and
/// metrics are saved then too). Files: settings.json, metrics.csv, checkpoint.safetensors,
/// source.vocab, target.vocab, translations.txt (validation, last epoch), loss and bleu as .svg,
/// .png and .gp.
int run_multi30k(Multi30kSettings& settings);

}  // namespace macgrad::experiments
