// inspect: questions to attention and its gradients.
#include <fmt/format.h>

#include <string_view>

#include "experiments/inspect/bias.h"

int main(int argc, char** argv) {
  using namespace macgrad::experiments;
  const std::string_view command = argc > 1 ? argv[1] : "";
  if (command == "bias") return bias_command(argc - 1, argv + 1);
  fmt::print(stderr, "Usage: inspect bias [OPTIONS]; inspect bias --help\n");
  return command == "--help" || command == "-h" ? 0 : 2;
}
