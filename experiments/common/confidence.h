// How sure a score is: the spread of several, and of a corpus score the bootstrap over sentences
// (Koehn 2004), as sacreBLEU reports it. Sentences are drawn with replacement by Philox, so the
// same seed gives the same interval on every machine, but not the resamples of numpy.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

namespace macgrad::experiments {

/// NaN without values.
double mean_of(const std::vector<double>& values);
/// Standard deviation of a sample (n - 1); NaN of fewer than two values.
double sample_deviation(const std::vector<double>& values);

/// The score of a corpus made of these sentences, which may repeat.
using ResampledScore = std::function<double(std::span<const std::size_t> sentences)>;

/// Scores of `samples` resamples of a corpus. Systems with equal numbers of sentences get the same
/// resamples from the same seed, as paired tests need.
std::vector<double> bootstrap_scores(std::size_t sentences, const ResampledScore& score,
                                     std::int64_t samples, std::uint64_t seed);

struct Confidence {
  double mean = 0;
  double half_width = 0;  // of the interval that holds 95 % of the resamples
};
Confidence confidence_of(std::vector<double> scores);

/// Two-sided p value of the difference of two systems' scores, from their paired resamples: how
/// often resampling alone moves the difference by as much as was observed.
double paired_p_value(const std::vector<double>& scores, const std::vector<double>& baseline,
                      double difference);

}  // namespace macgrad::experiments
