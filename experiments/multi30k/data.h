// Sentence pairs ready for training: Multi30K or the toy corpus, its vocabularies, and what
// validation translations are compared with.
#pragma once

#include <string>
#include <vector>

#include "experiments/common/batches.h"
#include "experiments/multi30k/settings.h"

namespace macgrad::experiments {

struct TranslationData {
  std::string name;  // "Multi30K de-en (tok)"
  Vocabulary source, target;
  EncodedPairs train, valid;
  std::vector<std::string> valid_source;  // as read
  std::vector<std::string> references;    // validation targets, as read
  Json facts;  // pairs, vocabulary sizes, unknown words, CRC-32 of the lines of each file
};

/// Reads, splits into words (raw text by 13a tokenisation), builds the vocabularies from the
/// training pairs and encodes. Throws as find_multi30k and load_multi30k do.
TranslationData load_translation_data(const Multi30kSettings& settings);

/// One more split of Multi30K ("test_2016_flickr"), encoded with the vocabularies of `data`.
struct TranslationSplit {
  EncodedPairs pairs;
  std::vector<std::string> references;  // as read
};
TranslationSplit load_split(const Multi30kSettings& settings, const TranslationData& data,
                            const std::string& split);

}  // namespace macgrad::experiments
