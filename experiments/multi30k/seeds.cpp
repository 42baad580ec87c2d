#include "experiments/multi30k/seeds.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "experiments/common/machine.h"
#include "experiments/multi30k/run_to_end.h"

namespace macgrad::experiments {
namespace {

using Scores = std::map<std::pair<std::string, std::string>, std::vector<double>>;

// The numbers of a results.json by split and name: ("val", "bleu").
void collect(const Json& results, Scores& scores) {
  for (const auto& [split, values] : results.at("scores").items())
    for (const auto& [name, value] : values.items())
      if (value.is_number() && name != "sentences")
        scores[{split, name}].push_back(value.get<double>());
}

void write_summary(const RunDirectory& out, const std::vector<int64_t>& seeds,
                   const Scores& scores) {
  Json json{{"seeds", seeds}, {"scores", Json::object()}};
  std::vector<std::vector<CsvValue>> rows;
  for (const auto& [key, values] : scores) {
    const auto& [split, name] = key;
    const auto n = static_cast<double>(values.size());
    double mean = 0, squares = 0;
    for (const double value : values) mean += value / n;
    for (const double value : values) squares += (value - mean) * (value - mean);
    // One seed says nothing about the spread.
    const double deviation = values.size() > 1 ? std::sqrt(squares / (n - 1)) : NAN;
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
  const RunDirectory out(settings.common.out, "multi30k", /*goes_on=*/true);
  Scores scores;
  for (const int64_t seed : seeds) {
    Multi30kSettings one = settings;
    one.common.seed = static_cast<uint64_t>(seed);
    one.common.out = out.file(fmt::format("seed-{}", seed));
    if (const int code = run_to_end(one, fmt::format("seed {}", seed)); code != 0) return code;
    collect(read_json(results_path(one.common.out)), scores);
  }
  write_summary(out, seeds, scores);
  return 0;
}

}  // namespace macgrad::experiments
