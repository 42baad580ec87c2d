// Sentence pairs ready for training and translation: Multi30K or the toy corpus, what codes its
// text, and what translations are compared with.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "macgrad/experiments/common/batches.h"
#include "macgrad/experiments/multi30k/settings.h"

namespace macgrad::experiments {

struct TextCodecs {
  TextCodec source, target;  // the same when shared
};

/// CRC-32 of the lines of two files.
struct Checksums {
  std::string source, target;
};

struct TranslationData {
  std::string name;  // "Multi30K de-en (tok)"
  TextCodec source, target;
  bool shared_vocabulary = false;
  EncodedPairs train, valid;
  std::vector<std::string> valid_source;      // as read
  std::vector<std::string> references;        // validation targets, as read
  size_t train_dropped = 0, valid_empty = 0;  // pairs with an empty side
  Checksums train_crc32, valid_crc32;

  TextCodecs codecs() const { return {source, target}; }
  /// Checksums by file, which must be the same when training goes on.
  Json crc32() const;
  /// Those, pairs, vocabulary sizes, tokens and unknown words, for a run's files.
  Json facts() const;
};

/// Reads the splits train and val and encodes them, with codecs learnt from the training pairs or,
/// if `codecs_folder` is given, those that save_codecs left there. A training pair with an empty
/// side is dropped, a validation pair kept; both are counted, and told on stderr. Throws as
/// find_multi30k, load_multi30k and Subwords::train do.
TranslationData load_translation_data(const Multi30kSettings& settings,
                                      const std::string& codecs_folder = "");

/// Writes `subwords.model` or `words.vocab` when shared, else `source.*` and `target.*`, beside a
/// checkpoint; load_codecs reads them for the same settings.
void save_codecs(const Multi30kSettings& settings, const TextCodecs& codecs,
                 const std::string& folder);
TextCodecs load_codecs(const Multi30kSettings& settings, const std::string& folder);

/// A split to translate and score, with every pair that the files hold.
struct TranslationSplit {
  ParallelText text;  // as read
  EncodedPairs pairs;
  size_t empty = 0;  // pairs with an empty side
  Checksums crc32;
};

/// "val", "test_2016_flickr", "test_2017_flickr", "test_2017_mscoco", ..., in the languages and
/// form of the settings; the toy corpus has "val" alone.
TranslationSplit load_split(const Multi30kSettings& settings, const TextCodecs& codecs,
                            std::string_view split);

}  // namespace macgrad::experiments
