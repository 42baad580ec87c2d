// Joint byte-pair encoding (Sennrich et al. 2016) by the sentencepiece library: frequent words are
// one piece, rare ones several, and a character that training never saw is its UTF-8 bytes. Nothing
// is normalised, so decode(encode(line)) == line for every line. Ids 0..3 are those of Vocabulary,
// the 256 bytes follow, then the learned pieces.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace macgrad::experiments {

class Subwords {
 public:
  /// Learns at most `size` pieces from `lines`: fewer when the lines have no more pairs to merge.
  /// The same lines and the same sentencepiece give the same model. Throws when `size` has no room
  /// for the special ids, the bytes and each character of the lines, naming the smallest that has.
  static Subwords train(const std::vector<std::string>& lines, std::int64_t size);

  /// A file of sentencepiece (its own programs read it) that ends in a checksum. save() replaces
  /// atomically; load() throws naming the file on anything that save() did not write whole.
  void save(const std::string& path) const;
  static Subwords load(const std::string& path);

  std::int64_t size() const;

  /// Text of a piece, a space before it where a word begins; one byte for ids 4..259, "" for
  /// special ids. Throws if id is outside [0, size()).
  const std::string& piece(std::int64_t id) const;

  /// Ids of one line, without <bos> and <eos>; none for an empty line. No text, however spelt,
  /// becomes a special id. Throws on invalid UTF-8, line feeds and NUL.
  std::vector<std::int64_t> encode(std::string_view line) const;

  /// The line up to the first <eos>; <pad> and <bos> are left out. Ids that encode() never gives in
  /// this order still make one valid line: U+FFFD stands for <unk>, broken UTF-8, line feeds and
  /// NUL.
  std::string decode(const std::vector<std::int64_t>& ids) const;

 private:
  struct Model;
  explicit Subwords(std::string serialized);

  std::shared_ptr<const Model> model_;  // shared by copies
};

}  // namespace macgrad::experiments
