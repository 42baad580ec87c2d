// multi30k: a Transformer with softmax or random Maclaurin feature attention translates Multi30K.
// Figures that came out: README.md in this folder.

#include <string_view>

#include "experiments/multi30k/run.h"

int main(int argc, char** argv) {
  using namespace macgrad::experiments;
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
