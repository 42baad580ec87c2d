// From files (or the toy grammar) to numbered pairs, with the counts and checksums that a run logs
// so that two runs can be seen to have used the same text.
#include "macgrad/experiments/multi30k/data.h"

#include <zlib.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "macgrad/experiments/common/progress.h"
#include "macgrad/experiments/common/text_files.h"
#include "macgrad/experiments/common/toy_corpus.h"
#include "macgrad/experiments/common/unicode.h"

namespace macgrad::experiments {
namespace {

// One corpus whatever --seed is: runs of several seeds are of one data set.
constexpr uint64_t kToySeed = 1;

// CRC-32 of the lines, each with a line feed: that of the file, decompressed.
std::string checksum(const std::vector<std::string>& lines) {
  uLong crc = crc32(0, nullptr, 0);
  for (const std::string& line : lines) {
    const std::string whole = line + "\n";
    crc = crc32(crc, reinterpret_cast<const Bytef*>(whole.data()), static_cast<uInt>(whole.size()));
  }
  return fmt::format("{:08x}", crc);
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

Json token_counts(const std::vector<std::vector<int64_t>>& sentences) {
  size_t sum = 0, most = 0;
  for (const auto& sentence : sentences) {
    sum += sentence.size();
    most = std::max(most, sentence.size());
  }
  const auto count = static_cast<double>(std::max<size_t>(1, sentences.size()));
  return {{"mean", static_cast<double>(sum) / count}, {"max", most}};
}

// Pairs with a side without words.
std::vector<size_t> empty_pairs(const ParallelText& text) {
  std::vector<size_t> found;
  for (size_t i = 0; i < text.size(); ++i)
    if (split_words(text.source[i]).empty() || split_words(text.target[i]).empty())
      found.push_back(i);
  return found;
}

void tell_empty(const std::vector<size_t>& empty, std::string_view split, const char* what) {
  if (empty.empty()) return;
  say(stderr, "note: {}: {} of the pairs have an empty side and are {} (the first: line {})\n",
      split, empty.size(), what, empty.front() + 1);
}

// An empty side teaches a model to say nothing, so such pairs are not trained on.
size_t drop_empty_pairs(ParallelText& text) {
  const std::vector<size_t> empty = empty_pairs(text);
  tell_empty(empty, "train", "dropped");
  require(empty.size() < text.size(), "train: every pair has an empty side; nothing is left");
  for (auto* side : {&text.source, &text.target})
    for (auto i = empty.rbegin(); i != empty.rend(); ++i)
      side->erase(side->begin() + static_cast<std::ptrdiff_t>(*i));
  return empty.size();
}

ParallelText read_split(const Multi30kSettings& s, std::string_view split) {
  if (!s.toy)
    return load_multi30k(find_multi30k(s.data), split, s.source, s.target,
                         s.raw_text() ? Multi30kForm::raw : Multi30kForm::tokenized);
  require(split == "train" || split == "val",
          "--toy has no split \"{}\"; its corpus has train and val", split);
  ToyCorpus corpus = make_toy_corpus(kToySeed, static_cast<size_t>(s.toy_train_pairs),
                                     static_cast<size_t>(s.toy_valid_pairs));
  return split == "train" ? std::move(corpus.train) : std::move(corpus.valid);
}

TextCodec learn_codec(const Multi30kSettings& s, const std::vector<std::string>& lines,
                      std::string_view what) {
  if (s.subwords == "word") {
    if (!s.raw_text()) return TextCodec(Vocabulary::build(lines, s.min_frequency));
    std::vector<std::string> words;
    for (const std::string& line : lines) words.push_back(tokenize_13a(line));
    return TextCodec(Vocabulary::build(words, s.min_frequency), true);
  }
  TextCodec codec(Subwords::train(lines, s.vocabulary_size));
  if (codec.size() < s.vocabulary_size)
    say(stderr,
        "note: the {} text has no more than {} subwords; --vocabulary-size {} is not "
        "reached\n",
        what, codec.size(), s.vocabulary_size);
  return codec;
}

TextCodecs learn_codecs(const Multi30kSettings& s, const ParallelText& text) {
  if (!s.shared_vocabulary())
    return {learn_codec(s, text.source, "source"), learn_codec(s, text.target, "target")};
  std::vector<std::string> both = text.source;
  both.insert(both.end(), text.target.begin(), text.target.end());
  const TextCodec codec = learn_codec(s, both, "training");
  return {codec, codec};
}

std::string codec_file(const Multi30kSettings& s, const std::string& folder, const char* side) {
  const bool bpe = s.subwords == "bpe";
  std::string name = bpe ? "subwords.model" : "words.vocab";
  if (!s.shared_vocabulary()) name = fmt::format("{}.{}", side, bpe ? "subwords.model" : "vocab");
  return (std::filesystem::path(folder) / name).string();
}

TextCodec load_codec(const Multi30kSettings& s, const std::string& path) {
  require(std::filesystem::exists(path),
          "{}: missing; a run leaves it beside its checkpoint: keep the two together", path);
  if (s.subwords == "bpe") return TextCodec(Subwords::load(path));
  return TextCodec(Vocabulary::load(path), s.raw_text());
}

}  // namespace

void save_codecs(const Multi30kSettings& s, const TextCodecs& codecs, const std::string& folder) {
  codecs.source.save(codec_file(s, folder, "source"));
  if (!s.shared_vocabulary()) codecs.target.save(codec_file(s, folder, "target"));
}

TextCodecs load_codecs(const Multi30kSettings& s, const std::string& folder) {
  TextCodec source = load_codec(s, codec_file(s, folder, "source"));
  if (s.shared_vocabulary()) return {source, source};
  return {std::move(source), load_codec(s, codec_file(s, folder, "target"))};
}

TranslationSplit load_split(const Multi30kSettings& s, const TextCodecs& codecs,
                            std::string_view split) {
  TranslationSplit result;
  result.text = read_split(s, split);
  const std::vector<size_t> empty = empty_pairs(result.text);
  tell_empty(empty, split, "kept");
  result.pairs = encode_pairs(result.text, codecs.source, codecs.target);
  result.empty = empty.size();
  result.crc32 = {checksum(result.text.source), checksum(result.text.target)};
  return result;
}

TranslationData load_translation_data(const Multi30kSettings& s, const std::string& codecs_folder) {
  ParallelText train = read_split(s, "train");
  Checksums train_crc32{checksum(train.source), checksum(train.target)};
  const size_t dropped = drop_empty_pairs(train);
  const TextCodecs codecs =
      codecs_folder.empty() ? learn_codecs(s, train) : load_codecs(s, codecs_folder);
  TranslationSplit valid = load_split(s, codecs, "val");
  return {s.toy ? "toy" : fmt::format("Multi30K {}-{} ({})", s.source, s.target, s.text),
          codecs.source,
          codecs.target,
          s.shared_vocabulary(),
          encode_pairs(train, codecs.source, codecs.target),
          std::move(valid.pairs),
          std::move(valid.text.source),
          std::move(valid.text.target),
          dropped,
          valid.empty,
          std::move(train_crc32),
          std::move(valid.crc32)};
}

Json TranslationData::crc32() const {
  return {{"train_source", train_crc32.source},
          {"train_target", train_crc32.target},
          {"valid_source", valid_crc32.source},
          {"valid_target", valid_crc32.target}};
}

Json TranslationData::facts() const {
  return {{"name", name},
          {"train_pairs", train.size()},
          {"train_pairs_dropped", train_dropped},
          {"valid_pairs", valid.size()},
          {"valid_pairs_empty", valid_empty},
          {"source_vocabulary", source.size()},
          {"target_vocabulary", target.size()},
          {"shared_vocabulary", shared_vocabulary},
          {"tokens_a_sentence",
           {{"train_source", token_counts(train.source)},
            {"train_target", token_counts(train.target)},
            {"valid_source", token_counts(valid.source)},
            {"valid_target", token_counts(valid.target)}}},
          {"unknown_share",
           {{"train_source", unknown_share(train.source)},
            {"train_target", unknown_share(train.target)},
            {"valid_source", unknown_share(valid.source)},
            {"valid_target", unknown_share(valid.target)}}},
          {"crc32", crc32()}};
}

}  // namespace macgrad::experiments
