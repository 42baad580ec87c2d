#include "macgrad/experiments/common/confidence.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "macgrad/core/error.h"
#include "macgrad/core/generator.h"

namespace macgrad::experiments {
namespace {

constexpr std::uint32_t kStream = 0x626F6F74;  // "boot"

}  // namespace

double mean_of(const std::vector<double>& values) {
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

double sample_deviation(const std::vector<double>& values) {
  if (values.size() < 2) return NAN;
  const double mean = mean_of(values);
  double squares = 0;
  for (const double value : values) squares += (value - mean) * (value - mean);
  return std::sqrt(squares / static_cast<double>(values.size() - 1));
}

std::vector<double> bootstrap_scores(std::size_t sentences, const ResampledScore& score,
                                     std::int64_t samples, std::uint64_t seed) {
  require(sentences > 0 && samples > 0, "bootstrap: {} sentences, {} resamples", sentences,
          samples);
  std::vector<double> scores;
  std::vector<std::size_t> drawn(sentences);
  for (std::int64_t sample = 0; sample < samples; ++sample) {
    DrawReader reader(DrawKey{seed, kStream, static_cast<std::uint32_t>(sample), 0});
    for (std::size_t& sentence : drawn) sentence = reader.below(sentences);
    scores.push_back(score(drawn));
  }
  return scores;
}

Confidence confidence_of(std::vector<double> scores) {
  require(!scores.empty(), "bootstrap: no resamples");
  std::sort(scores.begin(), scores.end());
  const std::size_t cut = scores.size() / 40;  // 2.5 % at each end
  return {mean_of(scores), 0.5 * (scores[scores.size() - 1 - cut] - scores[cut])};
}

double paired_p_value(const std::vector<double>& scores, const std::vector<double>& baseline,
                      double difference) {
  require(!scores.empty() && scores.size() == baseline.size(),
          "bootstrap: {} resamples beside {} of the baseline", scores.size(), baseline.size());
  std::vector<double> differences;
  for (std::size_t i = 0; i < scores.size(); ++i) differences.push_back(scores[i] - baseline[i]);
  const double mean = mean_of(differences);
  const auto beyond = std::count_if(differences.begin(), differences.end(), [&](double d) {
    return std::abs(d - mean) >= std::abs(difference);
  });
  return static_cast<double>(beyond + 1) / static_cast<double>(scores.size() + 1);
}

}  // namespace macgrad::experiments
