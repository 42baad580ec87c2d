// multi30k: a Transformer with softmax or random Maclaurin feature attention translates Multi30K.
// Without the name of a command it trains. Figures that came out: README.md in this folder.
#include "macgrad/experiments/common/interrupt.h"
#include "macgrad/experiments/multi30k/commands.h"

int main(int argc, char** argv) {
  using namespace macgrad::experiments;
  return end_program(multi30k_command(argc, argv));
}
