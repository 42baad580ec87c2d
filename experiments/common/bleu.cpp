// The regular expressions of mteval-v13a are hand-written single passes here: std::regex is slow
// and knows no UTF-8. They work on bytes, which is exact because they name ASCII characters only
// and a byte of a longer code point is never one of those.
#include "macgrad/experiments/common/bleu.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <unordered_map>

#include "macgrad/core/error.h"
#include "macgrad/experiments/common/lower_case.h"
#include "macgrad/experiments/common/unicode.h"

namespace macgrad::experiments {
namespace {

constexpr std::size_t kOrders = 4;

void replace_all(std::string& text, std::string_view from, std::string_view to) {
  for (std::size_t at = text.find(from); at != std::string::npos;
       at = text.find(from, at + to.size())) {
    text.replace(at, from.size(), to);
  }
}

bool is_digit(char c) {
  return c >= '0' && c <= '9';
}
bool is_point(char c) {
  return c == '.' || c == ',';
}

// [\{-\~\[-\` -\&\(-\+\:-\@\/]: ASCII punctuation and space, without ' , - .
bool is_isolated(char c) {
  return (c >= '{' && c <= '~') || (c >= '[' && c <= '`') || (c >= ' ' && c <= '&') ||
         (c >= '(' && c <= '+') || (c >= ':' && c <= '@') || c == '/';
}

// Pairs of neighbours (a, b) with matches(a, b), found from the left without overlap, are written
// by write(out, a, b).
template <typename Matches, typename Write>
std::string substitute_pairs(const std::string& text, Matches matches, Write write) {
  std::string out;
  out.reserve(text.size() * 2);
  std::size_t i = 0;
  while (i < text.size()) {
    if (i + 1 < text.size() && matches(text[i], text[i + 1])) {
      write(out, text[i], text[i + 1]);
      i += 2;
    } else {
      out += text[i++];
    }
  }
  return out;
}

// n-grams of one sentence: token numbers, unused places -1.
using Ngram = std::array<std::int32_t, kOrders>;
struct NgramHash {
  std::size_t operator()(const Ngram& ngram) const {
    std::uint64_t hash = 0;
    for (std::int32_t token : ngram) {
      hash = (hash ^ static_cast<std::uint32_t>(token)) * 0x9E3779B97F4A7C15u;
      hash ^= hash >> 29;
    }
    return static_cast<std::size_t>(hash);
  }
};
using NgramCounts = std::unordered_map<Ngram, std::int64_t, NgramHash>;

std::size_t order_of(const Ngram& ngram) {
  return static_cast<std::size_t>(std::find(ngram.begin(), ngram.end(), -1) - ngram.begin());
}

NgramCounts ngrams(const std::vector<std::int32_t>& tokens) {
  NgramCounts counts;
  for (std::size_t start = 0; start < tokens.size(); ++start) {
    Ngram ngram{-1, -1, -1, -1};
    for (std::size_t n = 0; n < kOrders && start + n < tokens.size(); ++n) {
      ngram[n] = tokens[start + n];
      ++counts[ngram];
    }
  }
  return counts;
}

}  // namespace

std::string tokenize_13a(std::string_view text) {
  std::string line(text);
  replace_all(line, "<skipped>", "");
  replace_all(line, "-\n", "");
  replace_all(line, "\n", " ");
  replace_all(line, "&quot;", "\"");
  replace_all(line, "&amp;", "&");
  replace_all(line, "&lt;", "<");
  replace_all(line, "&gt;", ">");

  std::string spaced = " ";
  for (char c : line) {
    if (is_isolated(c)) {
      spaced.append({' ', c, ' '});
    } else {
      spaced += c;
    }
  }
  spaced += ' ';
  // The space added at each end matches the first expression too, but only yields more white space.
  spaced = substitute_pairs(
      spaced, [](char a, char b) { return !is_digit(a) && is_point(b); },
      [](std::string& out, char a, char b) {
        out.append({a, ' ', b, ' '});
      });
  spaced = substitute_pairs(
      spaced, [](char a, char b) { return is_point(a) && !is_digit(b); },
      [](std::string& out, char a, char b) {
        out.append({' ', a, ' ', b});
      });
  spaced = substitute_pairs(
      spaced, [](char a, char b) { return is_digit(a) && b == '-'; },
      [](std::string& out, char a, char b) {
        out.append({a, ' ', b, ' '});
      });

  std::string tokens;
  for (std::string_view word : split_words(spaced)) {
    if (!tokens.empty()) tokens += ' ';
    tokens += word;
  }
  return tokens;
}

BleuCounts& BleuCounts::operator+=(const BleuCounts& other) {
  for (std::size_t n = 0; n < kOrders; ++n) {
    matches[n] += other.matches[n];
    totals[n] += other.totals[n];
  }
  hypothesis_length += other.hypothesis_length;
  reference_length += other.reference_length;
  return *this;
}

BleuCounts count_bleu(const std::string& hypothesis, const std::vector<std::string>& references,
                      const BleuOptions& options) {
  if (references.empty()) throw Error("bleu: no references");
  std::unordered_map<std::string, std::int32_t> numbers;
  const auto numbered = [&](const std::string& text) {
    std::string line = options.lowercase ? lower_case(text) : text;
    line.resize(trim_end(line).size());
    if (options.tokenizer == BleuTokenizer::mteval13a) line = tokenize_13a(line);
    std::vector<std::int32_t> tokens;
    for (std::string_view word : split_words(line)) {
      const auto next = static_cast<std::int32_t>(numbers.size());
      tokens.push_back(numbers.emplace(std::string(word), next).first->second);
    }
    return tokens;
  };
  const std::vector<std::int32_t> tokens = numbered(hypothesis);
  const auto length = static_cast<std::int64_t>(tokens.size());
  NgramCounts allowed;  // by n-gram, the largest count in any one reference
  std::int64_t closest = -1;
  for (const std::string& reference : references) {
    const std::vector<std::int32_t> other = numbered(reference);
    for (const auto& [ngram, count] : ngrams(other)) {
      std::int64_t& most = allowed[ngram];
      most = std::max(most, count);
    }
    const auto candidate = static_cast<std::int64_t>(other.size());
    const std::int64_t distance = std::abs(candidate - length);
    const std::int64_t best = std::abs(closest - length);
    if (closest < 0 || distance < best || (distance == best && candidate < closest)) {
      closest = candidate;
    }
  }
  BleuCounts counts;
  for (const auto& [ngram, count] : ngrams(tokens)) {
    const std::size_t order = order_of(ngram) - 1;
    counts.totals[order] += count;
    const auto found = allowed.find(ngram);
    if (found != allowed.end()) counts.matches[order] += std::min(count, found->second);
  }
  counts.hypothesis_length = length;
  counts.reference_length = closest;
  return counts;
}

Bleu bleu_of(const BleuCounts& counts, BleuSmoothing smoothing, bool effective_order) {
  Bleu b{counts};
  b.brevity_penalty = 1;
  if (b.hypothesis_length < b.reference_length) {
    const auto hypothesis = static_cast<double>(b.hypothesis_length);
    const auto reference = static_cast<double>(b.reference_length);
    b.brevity_penalty = b.hypothesis_length > 0 ? std::exp(1 - reference / hypothesis) : 0;
  }
  if (b.matches == std::array<std::int64_t, kOrders>{}) return b;

  double halvings = 1;
  double log_sum = 0;
  std::size_t orders = kOrders;
  bool zero = false;
  for (std::size_t n = 0; n < kOrders; ++n) {
    if (b.totals[n] == 0) {
      zero = zero || !effective_order;
      break;
    }
    if (effective_order) orders = n + 1;
    const auto total = static_cast<double>(b.totals[n]);
    if (b.matches[n] > 0) {
      b.precisions[n] = 100 * static_cast<double>(b.matches[n]) / total;
    } else if (smoothing == BleuSmoothing::exponential) {
      halvings *= 2;
      b.precisions[n] = 100 / (halvings * total);
    } else {
      zero = true;
      continue;
    }
    log_sum += std::log(b.precisions[n]);
  }
  if (!zero) b.score = b.brevity_penalty * std::exp(log_sum / static_cast<double>(orders));
  return b;
}

Bleu corpus_bleu(const std::vector<std::string>& hypotheses,
                 const std::vector<std::vector<std::string>>& references,
                 const BleuOptions& options) {
  if (references.empty()) throw Error("bleu: no references");
  for (std::size_t r = 0; r < references.size(); ++r) {
    if (references[r].size() != hypotheses.size()) {
      throw Error("bleu: {} hypotheses, but {} sentences in reference {}", hypotheses.size(),
                  references[r].size(), r + 1);
    }
  }
  BleuCounts counts;
  for (std::size_t i = 0; i < hypotheses.size(); ++i) {
    std::vector<std::string> own;
    for (const auto& stream : references) own.push_back(stream[i]);
    counts += count_bleu(hypotheses[i], own, options);
  }
  return bleu_of(counts, options.smoothing);
}

Bleu sentence_bleu(const std::string& hypothesis, const std::vector<std::string>& references,
                   const BleuOptions& options) {
  return bleu_of(count_bleu(hypothesis, references, options), options.smoothing, true);
}

std::string bleu_signature(std::size_t references, const BleuOptions& options,
                           bool effective_order) {
  return fmt::format("macgrad-bleu|nrefs:{}|case:{}|eff:{}|tok:{}|smooth:{}|compat:sacrebleu-2.x",
                     references, options.lowercase ? "lc" : "mixed", effective_order ? "yes" : "no",
                     options.tokenizer == BleuTokenizer::none ? "none" : "13a",
                     options.smoothing == BleuSmoothing::none ? "none" : "exp");
}

std::string format_bleu(const Bleu& bleu) {
  const double ratio = bleu.reference_length > 0 ? static_cast<double>(bleu.hypothesis_length) /
                                                       static_cast<double>(bleu.reference_length)
                                                 : 0;
  return fmt::format(
      "{:.2f} {:.1f}/{:.1f}/{:.1f}/{:.1f} (BP = {:.3f} ratio = {:.3f} hyp_len = {} "
      "ref_len = {})",
      bleu.score, bleu.precisions[0], bleu.precisions[1], bleu.precisions[2], bleu.precisions[3],
      bleu.brevity_penalty, ratio, bleu.hypothesis_length, bleu.reference_length);
}

}  // namespace macgrad::experiments
