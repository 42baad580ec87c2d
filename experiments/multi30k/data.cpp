// From files (or the toy grammar) to numbered pairs, with the counts and checksums that a run logs
// so that two runs can be seen to have used the same text.
#include "experiments/multi30k/data.h"

#include <zlib.h>

#include "experiments/common/text_files.h"
#include "experiments/common/toy_corpus.h"

namespace macgrad::experiments {
namespace {

// CRC-32 of the lines, each with a line feed: that of the file, decompressed.
std::string checksum(const std::vector<std::string>& lines) {
  uLong crc = crc32(0, nullptr, 0);
  for (const std::string& line : lines) {
    const std::string whole = line + "\n";
    crc = crc32(crc, reinterpret_cast<const Bytef*>(whole.data()), static_cast<uInt>(whole.size()));
  }
  return fmt::format("{:08x}", crc);
}

// The same sentences with words separated by spaces.
ParallelText words_of(const ParallelText& text, bool raw) {
  if (!raw) return text;
  ParallelText words = text;
  for (auto* side : {&words.source, &words.target})
    for (std::string& line : *side) line = tokenize_13a(line);
  return words;
}

// Share of words that the vocabulary does not know.
double unknown_share(const std::vector<std::vector<int64_t>>& sentences) {
  int64_t words = 0, unknown = 0;
  for (const auto& sentence : sentences) {
    for (const int64_t id : sentence) {
      ++words;
      unknown += id == Vocabulary::kUnk;
    }
  }
  return words > 0 ? static_cast<double>(unknown) / static_cast<double>(words) : 0.0;
}

}  // namespace

TranslationData load_translation_data(const Multi30kSettings& s) {
  ParallelText train, valid;
  std::string name = "toy";
  const bool raw = !s.toy && s.text == "raw";
  if (s.toy) {
    ToyCorpus corpus = make_toy_corpus(s.common.seed, static_cast<size_t>(s.toy_train_pairs),
                                       static_cast<size_t>(s.toy_valid_pairs));
    train = std::move(corpus.train);
    valid = std::move(corpus.valid);
  } else {
    const std::string task1 = find_multi30k(s.data);
    const Multi30kForm form = raw ? Multi30kForm::raw : Multi30kForm::tokenized;
    train = load_multi30k(task1, "train", s.source, s.target, form);
    valid = load_multi30k(task1, "val", s.source, s.target, form);
    name = fmt::format("Multi30K {}-{} ({})", s.source, s.target, s.text);
  }
  const ParallelText train_words = words_of(train, raw), valid_words = words_of(valid, raw);
  TranslationData d{name,
                    Vocabulary::build(train_words.source, s.min_frequency),
                    Vocabulary::build(train_words.target, s.min_frequency),
                    {},
                    {},
                    valid.source,
                    valid.target,
                    {}};
  d.train = encode_pairs(train_words, d.source, d.target);
  d.valid = encode_pairs(valid_words, d.source, d.target);
  d.facts = {{"name", d.name},
             {"train_pairs", d.train.size()},
             {"valid_pairs", d.valid.size()},
             {"source_vocabulary", d.source.size()},
             {"target_vocabulary", d.target.size()},
             {"unknown_share",
              {{"train_source", unknown_share(d.train.source)},
               {"train_target", unknown_share(d.train.target)},
               {"valid_source", unknown_share(d.valid.source)},
               {"valid_target", unknown_share(d.valid.target)}}},
             {"crc32",
              {{"train_source", checksum(train.source)},
               {"train_target", checksum(train.target)},
               {"valid_source", checksum(valid.source)},
               {"valid_target", checksum(valid.target)}}}};
  return d;
}

TranslationSplit load_split(const Multi30kSettings& s, const TranslationData& data,
                            const std::string& split) {
  const bool raw = s.text == "raw";
  const ParallelText text = load_multi30k(find_multi30k(s.data), split, s.source, s.target,
                                          raw ? Multi30kForm::raw : Multi30kForm::tokenized);
  return {encode_pairs(words_of(text, raw), data.source, data.target), text.target};
}

}  // namespace macgrad::experiments
