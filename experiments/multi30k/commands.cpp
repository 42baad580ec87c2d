#include "macgrad/experiments/multi30k/commands.h"

#include <fmt/ranges.h>

#include <filesystem>
#include <string>

#include "macgrad/experiments/common/progress.h"
#include "macgrad/experiments/multi30k/checkpoint.h"
#include "macgrad/experiments/multi30k/presets.h"
#include "macgrad/experiments/multi30k/resume.h"
#include "macgrad/experiments/multi30k/run.h"
#include "macgrad/experiments/multi30k/run_files.h"
#include "macgrad/experiments/multi30k/seeds.h"

namespace macgrad::experiments {
namespace {

// `multi30k train`, from the command line to the run.
class TrainCommand {
 public:
  TrainCommand(int argc, const char* const* argv) : argc_(argc), argv_(argv) {}

  void declare(Options& options) {
    start_settings();
    // First, because the checks of declare_options would blame --toy, which nobody typed.
    options.check([this, &options] {
      if (!options.given("--resume")) return;
      if (resume_.empty()) throw UsageError("--resume: empty; give the folder of a run");
      if (options.given("--preset"))
        throw UsageError("--preset has no effect with --resume, whose run has its settings");
    });
    declare_options(options, settings_);
    options.text("--resume", resume_, "Go on with the run in this folder", "RUN");
    options.integers("--seeds", seeds_,
                     "One run per seed in OUT/seed-1 ..., and their mean; finished runs are kept",
                     0);
    options.exclude("--seeds", "--resume");
    options.exclude("--seeds", "--seed");
  }

  int run() {
    if (resume_.empty())
      return seeds_.empty() ? run_multi30k(settings_) : run_seeds(settings_, seeds_);
    if (std::filesystem::is_regular_file(resume_)) resume_ = folder_of_run(resume_);
    require(settings_.common.out == saved_.common.out ||
                std::filesystem::weakly_canonical(settings_.common.out) ==
                    std::filesystem::weakly_canonical(resume_),
            "--resume {} goes on in that folder; leave --out {} out", resume_,
            settings_.common.out);
    settings_.common.out = resume_;
    return run_multi30k(settings_, Start::resume);
  }

 private:
  // Options given beside --resume, too, win over it.
  void start_settings() {
    std::string run = value_of("--resume", argc_, argv_);
    if (!run.empty()) {
      if (std::filesystem::is_regular_file(run)) run = folder_of_run(run);
      require(std::filesystem::exists(checkpoint_path(run)),
              "--resume {}: there is no {}; is it the folder of a run? One that had no checkpoint "
              "yet is started anew, with --out {}",
              run, checkpoint_path(run), run);
      settings_ = saved_ = checkpoint_settings(checkpoint_path(run));
      return;
    }
    start_from_preset(settings_, argc_, argv_);
  }

  int argc_;
  const char* const* argv_;
  Multi30kSettings settings_;
  Multi30kSettings saved_;  // of the run that --resume names
  std::string resume_;
  std::vector<int64_t> seeds_;
};

struct Command {
  std::string_view name;
  int (*run)(int argc, const char* const* argv);
};
constexpr Command kCommands[] = {
    {"train", train_command}, {"translate", translate_command}, {"score", score_command},
    {"plot", plot_command},   {"study", study_command},
};

std::string command_names() {
  std::vector<std::string_view> names;
  for (const Command& command : kCommands) names.push_back(command.name);
  return fmt::format("{}", fmt::join(names, ", "));
}

}  // namespace

int multi30k_command(int argc, const char* const* argv) {
  if (argc < 2 || argv[1][0] == '-') return train_command(argc, argv);
  for (const Command& command : kCommands)
    if (command.name == argv[1]) return command.run(argc - 1, argv + 1);
  say(stderr, "multi30k: error: unknown command \"{}\"; known: {}\n", argv[1], command_names());
  return 2;
}

int train_command(int argc, const char* const* argv) {
  TrainCommand command(argc, argv);
  return run_program(
      argc, argv, "multi30k", "Trains a Transformer to translate (Multi30K, or --toy).",
      [&](Options& options) {
        options.footer(fmt::format("Commands: {} (without one: train); multi30k COMMAND --help",
                                   command_names()));
        command.declare(options);
      },
      [&] { return command.run(); });
}

}  // namespace macgrad::experiments
