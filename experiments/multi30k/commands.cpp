#include "experiments/multi30k/commands.h"

#include "experiments/multi30k/run.h"

namespace macgrad::experiments {

std::span<const Command> multi30k_commands() {
  static constexpr Command commands[] = {
      {"train", train_command},
      {"translate", translate_command},
  };
  return commands;
}

int train_command(int argc, const char* const* argv) {
  Multi30kSettings settings;
  // Before the options are declared, so that --help shows the defaults in force and options given
  // beside --toy win over them.
  for (int i = 1; i < argc; ++i)
    if (std::string_view(argv[i]) == "--toy") make_toy(settings);
  return run_program(
      argc, argv, "multi30k", "Trains a Transformer to translate (Multi30K, or --toy).",
      [&](CLI::App& app) { declare_options(app, settings); },
      [&] { return run_multi30k(settings); });
}

}  // namespace macgrad::experiments
