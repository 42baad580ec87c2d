// A small parallel corpus from a grammar, so that translation trains and is tested with no data at
// all. The source is simple English; the target is an invented language with a fixed lexicon, in
// which adjectives follow their noun, the verb ends its clause, the adverb opens the sentence and
// the article agrees with the noun's gender. A translation is therefore a function of its source,
// but needs attention across the sentence.
#pragma once

#include <cstddef>
#include <cstdint>

#include "macgrad/experiments/common/text_files.h"

namespace macgrad::experiments {

struct ToyCorpus {
  ParallelText train;
  ParallelText valid;
};

/// All source sentences differ, so no validation sentence is seen in training. The same (seed,
/// sizes) give the same corpus everywhere. Throws if more than 100,000 sentences are asked for.
ToyCorpus make_toy_corpus(std::uint64_t seed, std::size_t train_pairs = 2000,
                          std::size_t valid_pairs = 200);

}  // namespace macgrad::experiments
