// `multi30k score`: BLEU, chrF and chrF++ of a file of translations, as sacreBLEU computes them.
#pragma once

#include <string>
#include <vector>

#include "macgrad/experiments/common/json_fwd.h"

namespace macgrad::experiments {

struct ScoreSettings {
  std::string hypotheses;
  std::vector<std::string> references;
  std::string baseline;  // translations by another system, for a paired test; "": none
  std::string tokenize = "13a";
  std::vector<std::string> metrics = {"bleu", "chrf"};
  bool lowercase = false;
  bool sentences = false;      // also of every sentence
  std::int64_t resamples = 0;  // of the bootstrap; 0: no intervals
  std::uint64_t seed = 1;
};

/// Scores with their signatures and parts. Throws as read_lines does, and for files of unequal
/// length or without a line.
Json score_files(const ScoreSettings& settings);

/// The same as lines: "SIGNATURE = SCORE DETAILS".
std::string score_text(const Json& scores);

}  // namespace macgrad::experiments
