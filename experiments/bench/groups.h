// The groups of rows. Each prints as it measures and compares within the run, because the machines
// are noisy: a figure of another run proves nothing.
#pragma once

#include "macgrad/experiments/bench/timing.h"

namespace macgrad::experiments {

/// Copies and matrix products: the measured limits, and our ops against them.
void bench_limits(BenchTable& table);
/// exp, softmax, layer norm, cross entropy on 64 MiB, on a GPU 512 MiB; there also their backward
/// kernels and Adam.
void bench_rows(BenchTable& table);
/// Softmax attention, RMFA and linear attention over lengths, forward and backward, with peak
/// memory.
void bench_attention(BenchTable& table);
/// A whole training step of a Transformer, and how much of it is GEMM.
void bench_training(BenchTable& table);
/// The training step with its gradients recorded, against the step alone.
void bench_recording(BenchTable& table);
/// Time a token of short and of long translations, decoded token by token.
void bench_decoding(BenchTable& table);
/// Updates on padded batches of sentences of unequal length, as `multi30k` trains (CPU).
void bench_translation(BenchTable& table);

}  // namespace macgrad::experiments
