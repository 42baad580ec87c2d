// nmse: how close linear attention with random features comes to exact attention, and how fast.
// Figure 4 of Macformer (arXiv 2408.11656), with two baselines that need no random feature.
// What came out: README.md in this folder.
#include "macgrad/experiments/common/interrupt.h"
#include "macgrad/experiments/nmse/command.h"

int main(int argc, char** argv) {
  using namespace macgrad::experiments;
  return end_program(nmse_command(argc, argv));
}
