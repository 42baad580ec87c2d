#include "experiments/multi30k/seeds.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "experiments/common/confidence.h"
#include "experiments/common/machine.h"
#include "experiments/multi30k/run_to_end.h"
#include "experiments/multi30k/training.h"

namespace macgrad::experiments {
namespace {

using Failures = std::map<int64_t, std::string>;  // by seed
using Scores = std::map<std::pair<std::string, std::string>, std::vector<double>>;

// The numbers of a results.json by split and name: ("val", "bleu").
void collect(const Json& results, Scores& scores) {
  for (const auto& [split, values] : results.at("scores").items())
    for (const auto& [name, value] : values.items())
      if (value.is_number() && name != "sentences")
        scores[{split, name}].push_back(value.get<double>());
}

void write_summary(const RunDirectory& out, const std::vector<int64_t>& seeds, const Scores& scores,
                   const Failures& failures) {
  Json json{{"seeds", seeds}, {"failed", Json::array()}, {"scores", Json::object()}};
  for (const auto& [seed, reason] : failures)
    json["failed"].push_back({{"seed", seed}, {"reason", reason}});
  std::vector<std::vector<CsvValue>> rows;
  for (const auto& [key, values] : scores) {
    const auto& [split, name] = key;
    const double mean = mean_of(values), deviation = sample_deviation(values);
    json["scores"][split][name] = {
        {"mean", mean}, {"standard_deviation", deviation}, {"values", values}};
    CsvValue spread;
    if (values.size() > 1) spread = deviation;
    rows.push_back({split, name, static_cast<int64_t>(values.size()), mean, spread});
    fmt::print("{} {}: {:.3f}{}\n", split, name, mean,
               values.size() > 1 ? fmt::format(" ± {:.3f}", deviation) : "");
  }
  json.update(provenance());
  write_json(out.file("summary.json"), json);
  CsvWriter(out.file("summary.csv"), {"split", "score", "seeds", "mean", "standard_deviation"},
            rows);
}

}  // namespace

int run_seeds(const Multi30kSettings& settings, const std::vector<int64_t>& seeds) {
  require(!seeds.empty(), "--seeds is empty; give one or more, for instance --seeds 1,2,3");
  for (auto seed = seeds.begin(); seed != seeds.end(); ++seed)
    require(std::find(seeds.begin(), seed, *seed) == seed, "--seeds: {} is given twice", *seed);
  const RunDirectory out(settings.common.out, "multi30k", Holds::runs);
  Scores scores;
  Failures failures;
  for (const int64_t seed : seeds) {
    Multi30kSettings one = settings;
    one.common.seed = static_cast<uint64_t>(seed);
    one.common.out = out.file(fmt::format("seed-{}", seed));
    try {
      if (const int code = run_to_end(one, fmt::format("seed {}", seed)); code != 0) return code;
      collect(complete_results(one).value(), scores);
    } catch (const NotFinite& error) {
      failures[seed] = error.what();
      fmt::print(stderr, "seed {}: {}\n", seed, error.what());
    }
  }
  write_summary(out, seeds, scores, failures);
  return failures.size() < seeds.size() ? 0 : 1;
}

}  // namespace macgrad::experiments
