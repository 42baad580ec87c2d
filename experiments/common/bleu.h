// Corpus and sentence BLEU-4 (Papineni et al. 2002), equal to sacreBLEU 2.x (Post 2018) to
// rounding: clipped n-gram counts summed over the corpus, brevity penalty against the closest
// reference length (ties to the shorter), `exp` or no smoothing, tokenisation `none` or `13a`
// (mteval-v13a), on request in lower case.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace macgrad::experiments {

enum class BleuTokenizer { none, mteval13a };
enum class BleuSmoothing { none, exponential };

struct BleuOptions {
  BleuTokenizer tokenizer = BleuTokenizer::mteval13a;
  BleuSmoothing smoothing = BleuSmoothing::exponential;
  bool lowercase = false;
};

/// What BLEU is computed from: sums over sentences.
struct BleuCounts {
  std::array<std::int64_t, 4> matches{};  // clipped n-gram matches, by order 1..4
  std::array<std::int64_t, 4> totals{};   // n-grams of the hypotheses
  std::int64_t hypothesis_length = 0;     // in tokens
  std::int64_t reference_length = 0;      // of the closest references, in tokens
  BleuCounts& operator+=(const BleuCounts& other);
};

struct Bleu : BleuCounts {
  double score = 0;                    // 0..100
  std::array<double, 4> precisions{};  // 0..100, after smoothing
  double brevity_penalty = 0;
};

/// Counts of one sentence against its references, at least one (an empty one has length 0).
BleuCounts count_bleu(const std::string& hypothesis, const std::vector<std::string>& references,
                      const BleuOptions& options = {});

/// The score of summed counts. With effective order, orders beyond the longest hypothesis do not
/// count.
Bleu bleu_of(const BleuCounts& counts, BleuSmoothing smoothing, bool effective_order = false);

/// references[r][i] is the r-th reference of hypothesis i. Throws if there are no references or the
/// numbers of lines differ.
Bleu corpus_bleu(const std::vector<std::string>& hypotheses,
                 const std::vector<std::vector<std::string>>& references,
                 const BleuOptions& options = {});

/// One sentence, with effective order.
Bleu sentence_bleu(const std::string& hypothesis, const std::vector<std::string>& references,
                   const BleuOptions& options = {});

/// Tokens separated by one space.
std::string tokenize_13a(std::string_view text);

/// What was computed, for reports; `references` is their number:
/// "macgrad-bleu|nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|compat:sacrebleu-2.x"
std::string bleu_signature(std::size_t references, const BleuOptions& options = {},
                           bool effective_order = false);

/// "34.20 61.5/40.1/28.9/21.0 (BP = 0.998 ratio = 0.998 hyp_len = 12013 ref_len = 12038)"
std::string format_bleu(const Bleu& bleu);

}  // namespace macgrad::experiments
