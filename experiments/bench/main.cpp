// bench: speed and memory, each figure as a ratio to a limit or a peer measured in the same run.
// compare_pytorch.py runs it beside PyTorch; RESULTS.md holds what came out.
#include <cstdlib>

#include "macgrad/experiments/bench/command.h"
#include "macgrad/experiments/common/interrupt.h"

int main(int argc, char** argv) {
  using namespace macgrad::experiments;
  // A composite in place of a kernel must not pass for the kernel's speed.
  setenv("MACGRAD_FUSED", "strict", /*overwrite=*/0);
  return end_program(bench_command(argc, argv));
}
