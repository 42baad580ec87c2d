// Updates of the model `transformer-tiny` (4 + 4 post-norm layers, d 128, ffn 256, 4 heads, one
// embedding table, vocabulary 10,000) on batches of at most 8,192 tokens. Sentences have lengths
// like those of image captions in subwords, 7 to 31, and share a batch with others of like length.
#include <fmt/format.h>

#include "macgrad/core/generator.h"
#include "macgrad/experiments/bench/groups.h"
#include "macgrad/experiments/common/batches.h"
#include "macgrad/nn/loss.h"
#include "macgrad/nn/training_step.h"
#include "macgrad/nn/transformer.h"

namespace macgrad::experiments {
namespace {

constexpr int64_t kTokens = 8192;
constexpr int64_t kVocabulary = 10000;

EncodedPairs caption_pairs(int64_t count) {
  DrawReader reader(DrawKey{7, 8, 0, 0});
  const auto sentence = [&](int64_t length) {
    std::vector<int64_t> ids;
    for (int64_t i = 0; i < length; ++i)
      ids.push_back(4 + static_cast<int64_t>(reader.below(kVocabulary - 4)));
    return ids;
  };
  EncodedPairs pairs;
  for (int64_t i = 0; i < count; ++i) {
    const double u = reader.uniform();
    const int64_t length = 7 + static_cast<int64_t>(24 * u * u);
    pairs.source.push_back(sentence(length));
    pairs.target.push_back(sentence(length + static_cast<int64_t>(reader.below(5)) - 2));
  }
  return pairs;
}

std::vector<int64_t> lengths_of(const PaddedIds& block) {
  std::vector<int64_t> lengths(static_cast<size_t>(block.rows));
  for (size_t i = 0; i < block.ids.size(); ++i)
    lengths[i / static_cast<size_t>(block.width)] += block.ids[i] != Vocabulary::kPad;
  return lengths;
}

nn::TransformerSettings tiny_settings() {
  nn::TransformerSettings s;
  s.source_vocabulary = s.target_vocabulary = kVocabulary;
  s.share_embeddings = true;
  s.encoder_layers = s.decoder_layers = 4;
  s.layer.width = 128;
  s.layer.ffn = 256;
  s.layer.heads = 4;
  s.layer.dropout = 0.3;
  return s;
}

}  // namespace

void bench_translation(BenchTable& table) {
  const std::string name = "training transformer-tiny softmax";
  if (table.place().device.type != DeviceType::cpu || !table.wants(name)) return;
  BenchRow row{.name = name};
  std::vector<BatchTensors> batches;
  int64_t tokens = 0;
  for (const Batch& batch :
       ordered_batches(caption_pairs(table.place().sizes.translation_pairs), kTokens)) {
    row.batches.push_back({lengths_of(batch.source), lengths_of(batch.target_input)});
    batches.push_back(to_tensors(batch, kCpu));
    tokens += batch.target_tokens;
  }
  nn::Transformer model(tiny_settings());
  nn::Adam adam(model, 0.0, {0.9, 0.98, 1e-8});
  nn::TrainingStep<BatchTensors> step(
      model, adam,
      [&](const BatchTensors& b) {
        return nn::token_loss(
                   model.forward(b.source, b.source_valid, b.input, b.input_valid, b.places),
                   b.output, Vocabulary::kPad, 0.1, b.tokens)
            .sum;
      },
      {.lr = nn::constant_schedule(1e-4), .clip_norm = 1.0});
  const BenchRow* measured = table.run(
      std::move(row),
      [&] {
        for (const BatchTensors& b : batches) step(b);
      },
      3.0);
  table.note(name, fmt::format("{} updates, {:.0f} target tokens a second", batches.size(),
                               1e3 * static_cast<double>(tokens) / measured->ms));
}

}  // namespace macgrad::experiments
