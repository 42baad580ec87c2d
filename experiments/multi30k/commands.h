// What the program multi30k can do: `multi30k [train]`, `multi30k COMMAND …`. Each function parses
// its own arguments (argv[0] is the command's name) and returns the program's exit code.
#pragma once

namespace macgrad::experiments {

int train_command(int argc, const char* const* argv);
int translate_command(int argc, const char* const* argv);
int score_command(int argc, const char* const* argv);
int plot_command(int argc, const char* const* argv);
int study_command(int argc, const char* const* argv);

/// The command that argv[1] names, or training; an unknown name is an error that lists them.
int multi30k_command(int argc, const char* const* argv);

}  // namespace macgrad::experiments
