#include "macgrad/experiments/multi30k/seeds.h"

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <string_view>

#include "macgrad/experiments/common/confidence.h"
#include "macgrad/experiments/common/machine.h"
#include "macgrad/experiments/common/output_files.h"
#include "macgrad/experiments/common/progress.h"
#include "macgrad/experiments/multi30k/run_to_end.h"
#include "macgrad/experiments/multi30k/training.h"

namespace macgrad::experiments {
namespace {

constexpr std::string_view kFolder = "seed-";

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
    say("{} {}: {:.3f}{}\n", split, name, mean,
        values.size() > 1 ? fmt::format(" ± {:.3f}", deviation) : "");
  }
  json.update(provenance());
  write_json(out.file("summary.json"), json);
  CsvWriter(out.file("summary.csv"), {"split", "score", "seeds", "mean", "standard_deviation"},
            rows);
}

}  // namespace

// Seeds with a folder here.
std::set<int64_t> seeds_in(const RunDirectory& out) {
  std::set<int64_t> seeds;
  for (const auto& entry : std::filesystem::directory_iterator(out.path())) {
    const std::string name = entry.path().filename().string();
    int64_t seed = -1;
    if (!name.starts_with(kFolder)) continue;
    const char* end = name.data() + name.size();
    const auto parsed = std::from_chars(name.data() + kFolder.size(), end, seed);
    if (parsed.ec == std::errc() && parsed.ptr == end) seeds.insert(seed);
  }
  return seeds;
}

int run_seeds(const Multi30kSettings& settings, const std::vector<int64_t>& seeds) {
  require(!seeds.empty(), "--seeds is empty; give one or more, for instance --seeds 1,2,3");
  for (auto seed = seeds.begin(); seed != seeds.end(); ++seed)
    require(std::find(seeds.begin(), seed, *seed) == seed, "--seeds: {} is given twice", *seed);
  const RunDirectory out(settings.common.out, "multi30k", Holds::runs);
  if (settings.common.out.empty()) say("--out {} goes on with these runs\n", out.path());
  const auto with_seed = [&](int64_t seed) {
    Multi30kSettings one = settings;
    one.common.seed = static_cast<uint64_t>(seed);
    one.common.out = out.file(fmt::format("{}{}", kFolder, seed));
    return one;
  };
  const auto label = [](int64_t seed) { return fmt::format("seed {}", seed); };
  check_settings(settings);
  for (const int64_t seed : seeds) check_run_to_end(with_seed(seed), label(seed));
  for (const int64_t seed : seeds) {
    try {
      if (const int code = run_to_end(with_seed(seed), label(seed)); code != 0) return code;
    } catch (const NotFinite& error) {
      say(stderr, "seed {}: {}\n", seed, error.what());
    }
  }
  // Of all commands that wrote here, with these settings.
  Scores scores;
  Failures failures;
  std::vector<int64_t> measured;
  std::vector<std::pair<std::string, Json>> complete;
  for (const int64_t seed : seeds_in(out)) {
    if (const auto results = complete_results(with_seed(seed))) {
      measured.push_back(seed);
      complete.emplace_back(label(seed), *results);
      collect(*results, scores);
    } else if (const auto reason = failure_of(with_seed(seed))) {
      failures[seed] = *reason;
    }
  }
  check_same_data(complete);
  write_summary(out, measured, scores, failures);
  return std::any_of(seeds.begin(), seeds.end(), [&](int64_t s) { return !failures.contains(s); })
             ? 0
             : 1;
}

}  // namespace macgrad::experiments
