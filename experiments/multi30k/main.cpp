// multi30k: a Transformer with softmax or random Maclaurin feature attention translates Multi30K.
// Without the name of a command it trains. Figures that came out: README.md in this folder.
#include <string_view>

#include "experiments/multi30k/commands.h"

int main(int argc, char** argv) {
  using namespace macgrad::experiments;
  if (argc > 1) {
    for (const Command& command : multi30k_commands())
      if (command.name == std::string_view(argv[1])) return command.run(argc - 1, argv + 1);
  }
  return train_command(argc, argv);
}
