// A tiny Transformer and a language to teach it, for tests that train: sentences of random words,
// whose translation is the same words backwards, each shifted by one.
#pragma once

#include "macgrad/nn/decoding.h"
#include "macgrad/nn/loss.h"
#include "macgrad/nn/transformer.h"
#include "nn_checks.h"

namespace macgrad::checks {

using namespace macgrad::nn;

inline constexpr int64_t kPad = 0, kBegin = 1, kEnd = 2, kVocabulary = 20;

inline TransformerSettings tiny(const AttentionSettings& attention, int64_t width = 8,
                                int64_t ffn = 12) {
  TransformerSettings s;
  s.source_vocabulary = s.target_vocabulary = kVocabulary;
  s.encoder_layers = s.decoder_layers = 1;
  s.layer.width = width;
  s.layer.heads = 2;
  s.layer.ffn = ffn;
  s.layer.dropout = 0.0;
  s.layer.activation = Activation::gelu;
  s.layer.attention = attention;
  s.seed = 11;
  return s;
}

struct Batch {
  Tensor source, source_valid, input, input_valid, target;
  std::vector<Tensor*> tensors() { return {&source, &source_valid, &input, &input_valid, &target}; }
  int64_t count() const {
    const std::vector<int64_t> ids = target.to_vector<int64_t>();
    return std::ssize(ids) - std::count(ids.begin(), ids.end(), kPad);
  }
};
inline Batch make_batch(int64_t sentences, int64_t longest, uint32_t draw) {
  DrawReader reader({8, 8, draw, 0});
  std::vector<int64_t> source, input, target, lengths, target_lengths;
  for (int64_t b = 0; b < sentences; ++b) {
    const int64_t n = 2 + static_cast<int64_t>(reader.below(static_cast<uint64_t>(longest - 1)));
    std::vector<int64_t> words;
    for (int64_t i = 0; i < n; ++i)
      words.push_back(3 + static_cast<int64_t>(reader.below(kVocabulary - 3)));
    lengths.push_back(n);
    target_lengths.push_back(n + 1);
    for (int64_t i = 0; i < longest; ++i)
      source.push_back(i < n ? words[static_cast<size_t>(i)] : kPad);
    const auto word = [&](int64_t i) {  // of the translation
      return 3 + (words[static_cast<size_t>(n - 1 - i)] - 2) % (kVocabulary - 3);
    };
    for (int64_t i = 0; i <= longest; ++i) {
      input.push_back(i > n ? kPad : i == 0 ? kBegin : word(i - 1));
      target.push_back(i > n ? kPad : i == n ? kEnd : word(i));
    }
  }
  const Shape s{sentences, longest}, t{sentences, longest + 1};
  return {Tensor::from_vector(source, s), first_places(lengths, longest),
          Tensor::from_vector(input, t), first_places(target_lengths, longest + 1),
          Tensor::from_vector(target, t)};
}

inline Batch rows(const Batch& b, int64_t start, int64_t end) {
  const auto cut = [&](const Tensor& t) { return t.slice(0, start, end).contiguous(); };
  return {cut(b.source), cut(b.source_valid), cut(b.input), cut(b.input_valid), cut(b.target)};
}

/// The likeliest token after another.
inline std::vector<std::vector<int64_t>> greedy(Transformer& model, const Batch& b,
                                                int64_t longest) {
  const std::vector<int64_t> limits(static_cast<size_t>(b.source.size(0)), longest);
  std::vector<std::vector<int64_t>> best;
  for (const auto& hypotheses :
       beam_search(model, b.source, b.source_valid, limits, {kBegin, kEnd, {}}, {}))
    best.push_back(hypotheses.front().tokens);
  return best;
}

inline TokenLoss loss_of(Transformer& model, const Batch& b, double smoothing = 0.0) {
  return token_loss(model.forward(b.source, b.source_valid, b.input, b.input_valid), b.target, kPad,
                    smoothing);
}

}  // namespace macgrad::checks
