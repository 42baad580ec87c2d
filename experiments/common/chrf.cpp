// Characters are code points. Words are numbered within a sentence, so that n-grams of both kinds
// are stretches of one string type.
#include "macgrad/experiments/common/chrf.h"

#include <fmt/format.h>

#include <algorithm>
#include <string_view>
#include <unordered_map>

#include "macgrad/core/error.h"
#include "macgrad/experiments/common/lower_case.h"
#include "macgrad/experiments/common/unicode.h"

namespace macgrad::experiments {
namespace {

constexpr std::size_t kCharacterOrders = 6;
constexpr double kBetaSquared = 4;

using Numbers = std::unordered_map<std::string, char32_t>;
using NgramCounts = std::unordered_map<std::u32string_view, std::int64_t>;

bool is_punctuation(char c) {
  return (c >= '!' && c <= '/') || (c >= ':' && c <= '@') || (c >= '[' && c <= '`') ||
         (c >= '{' && c <= '~');
}

// One punctuation mark is split from a word: the last character, else the first.
std::vector<std::string_view> split_punctuation(const std::vector<std::string_view>& words) {
  std::vector<std::string_view> parts;
  for (const std::string_view word : words) {
    if (word.size() > 1 && is_punctuation(word.back())) {
      parts.push_back(word.substr(0, word.size() - 1));
      parts.push_back(word.substr(word.size() - 1));
    } else if (word.size() > 1 && is_punctuation(word.front())) {
      parts.push_back(word.substr(0, 1));
      parts.push_back(word.substr(1));
    } else {
      parts.push_back(word);
    }
  }
  return parts;
}

struct Sentence {
  std::u32string characters;  // without white space
  std::u32string words;       // as numbers
};

Sentence prepare(const std::string& text, const ChrfOptions& options, Numbers& numbers) {
  const std::string line = options.lowercase ? lower_case(text) : text;
  const std::vector<std::string_view> words = split_words(line);
  Sentence sentence;
  for (const std::string_view word : words) {
    for (std::size_t at = 0; at < word.size();) {
      const CodePoint point = code_point_at(word, at);
      sentence.characters += static_cast<char32_t>(point.value);
      at += point.length;
    }
  }
  if (options.word_order > 0) {
    for (const std::string_view word : split_punctuation(words)) {
      const auto next = static_cast<char32_t>(numbers.size());
      sentence.words += numbers.emplace(std::string(word), next).first->second;
    }
  }
  return sentence;
}

NgramCounts ngrams(std::u32string_view text, std::size_t order) {
  NgramCounts counts;
  for (std::size_t at = 0; at + order <= text.size(); ++at) ++counts[text.substr(at, order)];
  return counts;
}

void count_order(ChrfCounts& counts, std::size_t place, std::u32string_view hypothesis,
                 std::u32string_view reference, std::size_t order) {
  const NgramCounts wanted = ngrams(reference, order);
  // A hypothesis is not blamed for n-grams where the reference is too short to have any.
  if (wanted.empty()) return;
  for (const auto& [ngram, count] : ngrams(hypothesis, order)) {
    counts.hypothesis[place] += count;
    const auto found = wanted.find(ngram);
    if (found != wanted.end()) counts.matches[place] += std::min(count, found->second);
  }
  counts.reference[place] = static_cast<std::int64_t>(reference.size() - order + 1);
}

}  // namespace

ChrfCounts& ChrfCounts::operator+=(const ChrfCounts& other) {
  for (std::size_t i = 0; i < matches.size(); ++i) {
    hypothesis[i] += other.hypothesis[i];
    reference[i] += other.reference[i];
    matches[i] += other.matches[i];
  }
  return *this;
}

ChrfCounts count_chrf(const std::string& hypothesis, const std::vector<std::string>& references,
                      const ChrfOptions& options) {
  if (references.empty()) throw Error("chrf: no references");
  require(options.word_order >= 0 && options.word_order <= 2,
          "chrf: word order {} is not 0, 1 or 2", options.word_order);
  Numbers numbers;
  const Sentence own = prepare(hypothesis, options, numbers);
  ChrfCounts best;
  double best_score = -1;
  for (const std::string& text : references) {
    const Sentence other = prepare(text, options, numbers);
    ChrfCounts counts;
    for (std::size_t n = 1; n <= kCharacterOrders; ++n)
      count_order(counts, n - 1, own.characters, other.characters, n);
    for (std::size_t n = 1; n <= static_cast<std::size_t>(options.word_order); ++n)
      count_order(counts, kCharacterOrders + n - 1, own.words, other.words, n);
    const double score = chrf_of(counts);
    if (score > best_score) {
      best_score = score;
      best = counts;
    }
  }
  return best;
}

double chrf_of(const ChrfCounts& counts) {
  double precision = 0;
  double recall = 0;
  int orders = 0;
  for (std::size_t i = 0; i < counts.matches.size(); ++i) {
    if (counts.hypothesis[i] == 0 || counts.reference[i] == 0) continue;
    const auto matches = static_cast<double>(counts.matches[i]);
    precision += matches / static_cast<double>(counts.hypothesis[i]);
    recall += matches / static_cast<double>(counts.reference[i]);
    ++orders;
  }
  if (precision + recall == 0) return 0;
  precision /= orders;
  recall /= orders;
  // In sacreBLEU's order of operations: between references of equal score, rounding decides.
  double score = (1 + kBetaSquared) * precision * recall;
  score /= kBetaSquared * precision + recall;
  return 100 * score;
}

double corpus_chrf(const std::vector<std::string>& hypotheses,
                   const std::vector<std::vector<std::string>>& references,
                   const ChrfOptions& options) {
  if (references.empty()) throw Error("chrf: no references");
  for (std::size_t r = 0; r < references.size(); ++r)
    require(references[r].size() == hypotheses.size(),
            "chrf: {} hypotheses, but {} sentences in reference {}", hypotheses.size(),
            references[r].size(), r + 1);
  ChrfCounts counts;
  for (std::size_t i = 0; i < hypotheses.size(); ++i) {
    std::vector<std::string> own;
    for (const auto& stream : references) own.push_back(stream[i]);
    counts += count_chrf(hypotheses[i], own, options);
  }
  return chrf_of(counts);
}

std::string chrf_signature(std::size_t references, const ChrfOptions& options) {
  return fmt::format(
      "macgrad-chrf|nrefs:{}|case:{}|eff:yes|nc:{}|nw:{}|space:no|compat:sacrebleu-2.x", references,
      options.lowercase ? "lc" : "mixed", kCharacterOrders, options.word_order);
}

}  // namespace macgrad::experiments
