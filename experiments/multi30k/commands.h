// What the program multi30k can do: `multi30k [train]`, `multi30k COMMAND …`. Each function parses
// its own arguments (argv[0] is the command's name) and returns the program's exit code.
#pragma once

#include <span>
#include <string_view>

namespace macgrad::experiments {

int train_command(int argc, const char* const* argv);
int translate_command(int argc, const char* const* argv);
int score_command(int argc, const char* const* argv);
int plot_command(int argc, const char* const* argv);
int study_command(int argc, const char* const* argv);

struct Command {
  std::string_view name;
  int (*run)(int argc, const char* const* argv);
};
std::span<const Command> multi30k_commands();

}  // namespace macgrad::experiments
