#include "macgrad/experiments/inspect/statistics.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "macgrad/experiments/common/machine.h"
#include "macgrad/experiments/common/output_files.h"
#include "macgrad/experiments/common/progress.h"
#include "macgrad/experiments/multi30k/evaluation.h"

namespace macgrad::experiments {
namespace {

// Of all batches, a token.
StatisticsCost together(const std::vector<StatisticsCost>& costs) {
  StatisticsCost all;
  for (const StatisticsCost& c : costs) {
    const auto tokens = static_cast<double>(c.tokens);
    all.sentences += c.sentences;
    all.longest = std::max(all.longest, c.longest);
    all.tokens += c.tokens;
    all.running += c.running * tokens;
    all.own += c.own * tokens;
  }
  all.running /= static_cast<double>(std::max<int64_t>(all.tokens, 1));
  all.own /= static_cast<double>(std::max<int64_t>(all.tokens, 1));
  return all;
}

void print(const std::string& name, const StatisticsCost& c) {
  say("{:<10} {:>9} {:>8} {:>8} {:>9.4f} {:>9.4f} {:>9.4f}\n", name, c.sentences, c.longest,
      c.tokens, c.running, c.own, c.running - c.own);
}

int run_statistics(StepSettings& s) {
  apply_common_options(s.model.common);
  check_settings(s.model);
  ModelStep model(s);
  const std::vector<StatisticsCost> costs = statistics_cost(model);
  const RunDirectory out(s.model.common.out, "inspect-statistics");
  std::vector<std::vector<CsvValue>> cells;
  say("{:<10} {:>9} {:>8} {:>8} {:>9} {:>9} {:>9}\n", "batch", "sentences", "longest", "tokens",
      "running", "own", "cost");
  for (size_t i = 0; i < costs.size(); ++i) {
    const StatisticsCost& c = costs[i];
    cells.push_back(
        {static_cast<int64_t>(i + 1), c.sentences, c.longest, c.tokens, c.running, c.own});
    print(fmt::format("{}", i + 1), c);
  }
  print("all", together(costs));
  CsvWriter(out.file("statistics.csv"),
            {"batch", "sentences", "longest", "tokens", "loss_running", "loss_own"}, cells);
  Json settings{{"settings", to_json(s.model)}, {"checkpoint", s.checkpoint}};
  settings.update(provenance());
  write_json(out.file("statistics.json"), settings);
  say("Loss per target token of the validation set.\nResults: {}\n", out.path());
  return 0;
}

}  // namespace

std::vector<StatisticsCost> statistics_cost(ModelStep& model) {
  const Multi30kSettings& s = model.settings();
  require(
      nn::OwnStatisticsScope(model.model()).modules() > 0,
      "the model has no preSBN with batch statistics, so that training and evaluation normalise "
      "alike; take a model with --ppsbn and --presbn auto or batch");
  std::vector<StatisticsCost> costs;
  for (const Batch& batch : ordered_batches(model.valid(), s.batch_tokens)) {
    const auto loss = [&](bool own) {
      return *validation_loss(model.model(), {batch}, s.device(), {}, own);
    };
    costs.push_back(
        {batch.source.rows, batch.source.width, batch.target_tokens, loss(false), loss(true)});
  }
  return costs;
}

int statistics_command(int argc, const char* const* argv) {
  StepSettings s;
  return run_program(
      argc, argv, "inspect statistics",
      "What preSBN's running statistics cost in evaluation, by the length of sentences.",
      [&](Options& options) {
        s = step_settings(argc, argv);
        declare_step_options(options, s, {.gradients = false});
      },
      [&] { return run_statistics(s); });
}

}  // namespace macgrad::experiments
