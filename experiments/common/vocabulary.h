// Words to numbers and back. Ids 0..3 are special; the words follow by falling frequency and, among
// equals, by their bytes, so that the same text gives the same vocabulary on every machine.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace macgrad::experiments {

class Vocabulary {
 public:
  static constexpr std::int64_t kPad = 0;
  static constexpr std::int64_t kBos = 1;
  static constexpr std::int64_t kEos = 2;
  static constexpr std::int64_t kUnk = 3;
  static constexpr std::int64_t kSpecials = 4;

  /// Words (split on white space) that occur at least `min_frequency` times in `lines`.
  static Vocabulary build(const std::vector<std::string>& lines, std::int64_t min_frequency);

  /// A text file: a header line, one "word<TAB>frequency" a line, and the line "end". save()
  /// replaces atomically, load() throws naming file and line on anything that save() would not
  /// write.
  void save(const std::string& path) const;
  static Vocabulary load(const std::string& path);

  std::int64_t size() const { return static_cast<std::int64_t>(words_.size()); }

  /// kUnk for a word that is not in the vocabulary, and for text spelt like a special word: text
  /// can not end or pad a sentence.
  std::int64_t id(std::string_view word) const;

  /// Throws if id is outside [0, size()).
  const std::string& word(std::int64_t id) const;

  /// Ids of the words of a line, without <bos> and <eos>.
  std::vector<std::int64_t> encode(std::string_view line) const;

  /// Words separated by one space, up to the first <eos>; <pad> and <bos> are left out.
  std::string decode(const std::vector<std::int64_t>& ids) const;

 private:
  Vocabulary();
  void add(std::string word, std::int64_t frequency);

  struct Hash {
    using is_transparent = void;
    std::size_t operator()(std::string_view text) const {
      return std::hash<std::string_view>()(text);
    }
  };
  std::vector<std::string> words_;         // by id
  std::vector<std::int64_t> frequencies_;  // by id; 0 for the specials
  std::unordered_map<std::string, std::int64_t, Hash, std::equal_to<>>
      ids_;  // without the specials
};

}  // namespace macgrad::experiments
