// chrF (Popović 2015) and chrF++ (Popović 2017), equal to sacreBLEU 2.x to rounding: the F-score
// (β = 2) of character n-grams of order 1 to 6 without white space, in chrF++ also of word n-grams
// of order 1 and 2. Precision and recall are averaged over the orders that both sides have.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace macgrad::experiments {

struct ChrfOptions {
  int word_order = 0;  // 0: chrF, 2: chrF++
  bool lowercase = false;
};

/// What chrF is computed from: sums over sentences, by order: characters 1..6, then words 1..2.
struct ChrfCounts {
  std::array<std::int64_t, 8> hypothesis{};  // n-grams; 0 where the reference has none
  std::array<std::int64_t, 8> reference{};
  std::array<std::int64_t, 8> matches{};
  ChrfCounts& operator+=(const ChrfCounts& other);
};

/// Counts of one sentence against that reference (of at least one) which gives it the best score;
/// the first among equals.
ChrfCounts count_chrf(const std::string& hypothesis, const std::vector<std::string>& references,
                      const ChrfOptions& options = {});

/// The score of summed counts, 0..100.
double chrf_of(const ChrfCounts& counts);

/// references[r][i] is the r-th reference of hypothesis i. Throws if there are no references or the
/// numbers of lines differ.
double corpus_chrf(const std::vector<std::string>& hypotheses,
                   const std::vector<std::vector<std::string>>& references,
                   const ChrfOptions& options = {});

/// "macgrad-chrf|nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no|compat:sacrebleu-2.x"
std::string chrf_signature(std::size_t references, const ChrfOptions& options = {});

}  // namespace macgrad::experiments
