// inspect: inspects a training step op by op and checks its gradients.
// Without the name of a command it records. What the commands do: README.md in this folder.
#include <fmt/format.h>

#include <string_view>

#include "macgrad/experiments/common/interrupt.h"
#include "macgrad/experiments/common/progress.h"
#include "macgrad/experiments/inspect/attention_sharpness.h"
#include "macgrad/experiments/inspect/bias.h"
#include "macgrad/experiments/inspect/check.h"
#include "macgrad/experiments/inspect/compare.h"
#include "macgrad/experiments/inspect/explode.h"
#include "macgrad/experiments/inspect/page.h"
#include "macgrad/experiments/inspect/record.h"
#include "macgrad/experiments/inspect/statistics.h"

namespace {

using namespace macgrad::experiments;

struct Command {
  std::string_view name;
  int (*run)(int argc, const char* const* argv);
};
constexpr Command kCommands[] = {{"page", page_command},
                                 {"check", check_command},
                                 {"compare", compare_command},
                                 {"explode", explode_command},
                                 {"attention", attention_command},
                                 {"statistics", statistics_command},
                                 {"bias", bias_command}};

int inspect_command(int argc, const char* const* argv) {
  if (argc < 2 || argv[1][0] == '-') return record_command(argc, argv);
  for (const Command& command : kCommands)
    if (command.name == argv[1]) return command.run(argc - 1, argv + 1);
  say(stderr,
      "inspect: error: unknown command \"{}\"; known: page, check, compare, explode, attention, "
      "statistics, bias\n",
      argv[1]);
  return 2;
}

}  // namespace

int main(int argc, char** argv) {
  return end_program(inspect_command(argc, argv));
}
