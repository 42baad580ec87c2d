#include "macgrad/experiments/common/text_codec.h"

#include "macgrad/experiments/common/bleu.h"

namespace macgrad::experiments {

TextCodec::TextCodec(Vocabulary words, bool split_13a)
    : coding_(Words{std::make_shared<const Vocabulary>(std::move(words)), split_13a}) {}

TextCodec::TextCodec(Subwords subwords) : coding_(std::move(subwords)) {}

std::int64_t TextCodec::size() const {
  if (const auto* subwords = std::get_if<Subwords>(&coding_)) return subwords->size();
  return std::get<Words>(coding_).vocabulary->size();
}

std::vector<std::int64_t> TextCodec::encode(std::string_view line) const {
  if (const auto* subwords = std::get_if<Subwords>(&coding_)) return subwords->encode(line);
  const Words& words = std::get<Words>(coding_);
  return words.split_13a ? words.vocabulary->encode(tokenize_13a(line))
                         : words.vocabulary->encode(line);
}

std::string TextCodec::decode(const std::vector<std::int64_t>& ids) const {
  if (const auto* subwords = std::get_if<Subwords>(&coding_)) return subwords->decode(ids);
  return std::get<Words>(coding_).vocabulary->decode(ids);
}

void TextCodec::save(const std::string& path) const {
  if (const auto* subwords = std::get_if<Subwords>(&coding_)) return subwords->save(path);
  std::get<Words>(coding_).vocabulary->save(path);
}

}  // namespace macgrad::experiments
