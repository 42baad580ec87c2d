// Translations by beam search, decoded token by token with the states of nn/decode_state.h.
// Definitions: nn/README.md, section 5. Shape letters: B sentences, S source length, R hypotheses
// in hand, V vocabulary.
#pragma once

#include <cstdint>
#include <vector>

#include "macgrad/nn/transformer.h"

namespace macgrad::nn {

/// What begins and ends a translation, and what never stands in one (padding, say).
struct SpecialTokens {
  int64_t begin = 1;
  int64_t end = 2;
  std::vector<int64_t> never;
};

struct SearchSettings {
  int64_t beam = 1;             // 1: the likeliest token after another (greedy)
  double length_penalty = 1.0;  // score = Σ log p / length^penalty; length counts the end token
};

struct Hypothesis {
  std::vector<int64_t> tokens;  // without begin and end
  double score = 0.0;
};

/// The decoder of a model beside its sources: log-probabilities of the next token, a few
/// hypotheses a sentence. In evaluation mode and without recording (EvalScope, NoGrad).
class StepDecoder {
 public:
  /// source (B,S), source_valid (B,S) or undefined. Encodes, once for every evaluation draw.
  StepDecoder(Transformer& model, const Tensor& source, const Tensor& source_valid);
  /// tokens (R,n): the next n of every hypothesis, R a multiple of the sentences at hand and the
  /// hypotheses of one sentence one after another. Gives log-probabilities (R,n,V) of what follows
  /// each, averaged over the evaluation draws.
  Tensor advance(const Tensor& tokens);
  /// Goes on with hypotheses[i] as hypothesis i, and sentences[j] as sentence j.
  void select(const std::vector<int64_t>& hypotheses, const std::vector<int64_t>& sentences);

 private:
  Transformer& model_;
  Tensor source_valid_;
  Variables memory_;                             // a draw, until the first step has read it
  std::vector<std::vector<LayerState>> states_;  // [draw][layer]
  int64_t hypotheses_ = 0, sentences_ = 0;
};

/// Finished translations of every sentence, best first, at most `beam` each and at least one.
/// max_lengths[b]: tokens of a translation of sentence b at most, without the end token. Ties go to
/// the earlier hypothesis, then to the smaller token. A sentence's result does not depend on its
/// company in the batch, up to rounding.
std::vector<std::vector<Hypothesis>> beam_search(Transformer& model, const Tensor& source,
                                                 const Tensor& source_valid,
                                                 const std::vector<int64_t>& max_lengths,
                                                 const SpecialTokens& special,
                                                 const SearchSettings& settings);

}  // namespace macgrad::nn
