// Building a vocabulary from lines, and its file: a header line, one word and its frequency a line,
// and a last line that shows the file to be whole. A file is checked when read, because ids are
// positions in it.
#include "macgrad/experiments/common/vocabulary.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>

#include "macgrad/core/error.h"
#include "macgrad/experiments/common/output_files.h"
#include "macgrad/experiments/common/text_files.h"
#include "macgrad/experiments/common/unicode.h"

namespace macgrad::experiments {
namespace {

constexpr std::string_view kHeader = "macgrad vocabulary 2";
constexpr std::string_view kLastLine = "end";
constexpr std::string_view kSpecialWords[] = {"<pad>", "<bos>", "<eos>", "<unk>"};

bool is_special(std::string_view word) {
  return std::find(std::begin(kSpecialWords), std::end(kSpecialWords), word) !=
         std::end(kSpecialWords);
}

}  // namespace

Vocabulary::Vocabulary() {
  for (std::string_view word : kSpecialWords) {
    words_.emplace_back(word);
    frequencies_.push_back(0);
  }
}

void Vocabulary::add(std::string word, std::int64_t frequency) {
  ids_.emplace(word, size());
  words_.push_back(std::move(word));
  frequencies_.push_back(frequency);
}

Vocabulary Vocabulary::build(const std::vector<std::string>& lines, std::int64_t min_frequency) {
  std::unordered_map<std::string_view, std::int64_t> counts;
  for (const std::string& line : lines) {
    for (std::string_view word : split_words(line)) ++counts[word];
  }
  std::vector<std::pair<std::string_view, std::int64_t>> kept;
  for (const auto& [word, count] : counts) {
    if (count >= min_frequency && !is_special(word)) kept.emplace_back(word, count);
  }
  std::sort(kept.begin(), kept.end(), [](const auto& a, const auto& b) {
    return a.second != b.second ? a.second > b.second : a.first < b.first;
  });
  Vocabulary vocabulary;
  for (const auto& [word, count] : kept) vocabulary.add(std::string(word), count);
  return vocabulary;
}

void Vocabulary::save(const std::string& path) const {
  std::string text = fmt::format("{}\n", kHeader);
  for (std::int64_t i = kSpecials; i < size(); ++i) {
    const auto at = static_cast<std::size_t>(i);
    text += fmt::format("{}\t{}\n", words_[at], frequencies_[at]);
  }
  text += fmt::format("{}\n", kLastLine);
  write_file_atomically(path, std::string_view(text));
}

Vocabulary Vocabulary::load(const std::string& path) {
  const std::vector<std::string> lines = read_lines(path);
  if (lines.empty() || lines[0] != kHeader) {
    throw Error("{}: line 1: not a vocabulary; the first line must be \"{}\"", path, kHeader);
  }
  if (lines.back() != kLastLine) {
    throw Error("{}: line {}: the vocabulary is cut short; its last line must be \"{}\"", path,
                lines.size(), kLastLine);
  }
  Vocabulary vocabulary;
  for (std::size_t i = 1; i + 1 < lines.size(); ++i) {
    const std::string& line = lines[i];
    const std::size_t tab = line.find('\t');
    const std::string word = line.substr(0, tab);
    std::int64_t frequency = 0;
    bool well_formed =
        tab != std::string::npos && split_words(word).size() == 1 && split_words(word)[0] == word;
    if (well_formed) {
      const char* end = line.data() + line.size();
      const auto parsed = std::from_chars(line.data() + tab + 1, end, frequency);
      well_formed = parsed.ec == std::errc() && parsed.ptr == end && frequency > 0;
    }
    if (!well_formed) {
      throw Error("{}: line {}: expected a word, a tab and its frequency, found \"{}\"", path,
                  i + 1, line);
    }
    if (is_special(word) || vocabulary.ids_.contains(word)) {
      throw Error("{}: line {}: the word \"{}\" stands twice", path, i + 1, word);
    }
    vocabulary.add(word, frequency);
  }
  return vocabulary;
}

std::int64_t Vocabulary::id(std::string_view word) const {
  const auto found = ids_.find(word);
  return found == ids_.end() ? kUnk : found->second;
}

const std::string& Vocabulary::word(std::int64_t id) const {
  if (id < 0 || id >= size()) {
    throw Error("vocabulary: id {} is outside 0..{}", id, size() - 1);
  }
  return words_[static_cast<std::size_t>(id)];
}

std::vector<std::int64_t> Vocabulary::encode(std::string_view line) const {
  std::vector<std::int64_t> ids;
  for (std::string_view text : split_words(line)) ids.push_back(id(text));
  return ids;
}

std::string Vocabulary::decode(const std::vector<std::int64_t>& ids) const {
  std::string line;
  for (std::int64_t id : ids) {
    if (id == kEos) break;
    if (id == kPad || id == kBos) continue;
    if (!line.empty()) line += ' ';
    line += word(id);
  }
  return line;
}

}  // namespace macgrad::experiments
