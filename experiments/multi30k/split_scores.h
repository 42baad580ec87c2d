// Translating a split and scoring it: after epochs, and at the end of a run with the final model.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "macgrad/experiments/common/output_files.h"
#include "macgrad/experiments/multi30k/data.h"
#include "macgrad/experiments/multi30k/evaluation.h"
#include "macgrad/experiments/multi30k/training_state.h"

namespace macgrad::experiments {

struct SplitScore {
  std::vector<std::string> translations;
  double bleu = 0;
};
/// BLEU of the translations of `source`; nothing when stopped.
std::optional<SplitScore> score_translations(nn::Transformer& model, const TextCodecs& codecs,
                                             const std::vector<std::string>& source,
                                             const std::vector<std::string>& references,
                                             const Multi30kSettings& settings,
                                             const nn::SearchSettings& search, const Stop& stop);

/// The splits of --test by name, read before training so that a wrong name costs no run.
std::vector<std::pair<std::string, TranslationSplit>> load_tests(const Multi30kSettings& settings,
                                                                 const TranslationData& data);

/// Loss and scores of `model` on the validation set and on every test split, with their
/// translations (--beam) in translations-SPLIT.txt; nothing when stopped.
std::optional<Json> final_scores(nn::Transformer& model, const TranslationData& data,
                                 const std::vector<std::pair<std::string, TranslationSplit>>& tests,
                                 const Multi30kSettings& settings, const RunDirectory& out,
                                 const Stop& stop);

}  // namespace macgrad::experiments
