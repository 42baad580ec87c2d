// Text to token ids and back, by whole words or by subwords: the one thing that batches, training
// and decoding know about either. Special ids are those of Vocabulary.
#pragma once

#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "macgrad/experiments/common/subwords.h"
#include "macgrad/experiments/common/vocabulary.h"

namespace macgrad::experiments {

/// Copies are cheap and share what they hold.
class TextCodec {
 public:
  /// Words between white space; with `split_13a` those of tokenize_13a(line).
  explicit TextCodec(Vocabulary words, bool split_13a = false);
  explicit TextCodec(Subwords subwords);

  std::int64_t size() const;

  /// Ids of a line as read, without <bos> and <eos>.
  std::vector<std::int64_t> encode(std::string_view line) const;
  /// The line up to the first <eos>. Of subwords, as it was written; of words, with one space
  /// between them and <unk> for what the vocabulary does not know.
  std::string decode(const std::vector<std::int64_t>& ids) const;

  /// Replaces `path` atomically.
  void save(const std::string& path) const;

  bool has_subwords() const { return std::holds_alternative<Subwords>(coding_); }

 private:
  struct Words {
    std::shared_ptr<const Vocabulary> vocabulary;
    bool split_13a;
  };
  std::variant<Words, Subwords> coding_;
};

}  // namespace macgrad::experiments
