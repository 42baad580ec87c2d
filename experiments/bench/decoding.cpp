// Decoding token by token: time a token of a short and of a long translation. Softmax attention
// reads all keys and values before it, so that its tokens grow dearer; RMFA reads a state of
// constant size.
#include <fmt/format.h>

#include <algorithm>

#include "macgrad/core/generator.h"
#include "macgrad/experiments/bench/groups.h"
#include "macgrad/nn/decoding.h"

namespace macgrad::experiments {
namespace {

// The model of the training rows on a small batch, with few words: what is measured is attention.
ModelSize decoded_size(ModelSize size) {
  size.rows = std::min<int64_t>(size.rows, 16);
  size.vocabulary = std::min<int64_t>(size.vocabulary, 1000);
  return size;
}

Tensor tokens(const ModelSize& size, int64_t length, uint32_t draw, Device device) {
  DrawReader reader(DrawKey{7, 9, draw, 0});
  std::vector<int64_t> ids(static_cast<size_t>(size.rows * length));
  for (int64_t& id : ids)
    id = 4 + static_cast<int64_t>(reader.below(static_cast<uint64_t>(size.vocabulary - 4)));
  return Tensor::from_vector(ids, {size.rows, length}).to(device);
}

nn::TransformerSettings settings_of(const ModelSize& size, const nn::AttentionSettings& attention) {
  nn::TransformerSettings s;
  s.source_vocabulary = s.target_vocabulary = size.vocabulary;
  s.encoder_layers = 1;
  s.decoder_layers = size.layers;
  s.layer.width = size.width;
  s.layer.heads = size.heads;
  s.layer.ffn = size.ffn;
  s.layer.attention = attention;
  return s;
}

void decoding_rows(BenchTable& table, const std::string& kind,
                   const nn::AttentionSettings& attention) {
  const Device device = table.place().device;
  const ModelSize size = decoded_size(table.place().sizes.models.front());
  const std::vector<int64_t>& lengths = table.place().sizes.decoded;
  const auto name = [&](int64_t length) { return fmt::format("decoding {} n={}", kind, length); };
  if (std::none_of(lengths.begin(), lengths.end(), [&](int64_t n) { return table.wants(name(n)); }))
    return;
  nn::Transformer model(settings_of(size, attention));
  model.to(device);
  const NoGrad no_grad;
  const nn::EvalScope evaluation(model);
  const Tensor source = tokens(size, size.length, 0, device);
  std::vector<std::function<void()>> work;
  for (const int64_t length : lengths)
    work.emplace_back([&, length, target = tokens(size, length, 1, device)] {
      nn::StepDecoder decoder(model, source, Tensor());
      for (int64_t t = 0; t < length; ++t) decoder.advance(target.slice(1, t, t + 1).contiguous());
    });
  const std::vector<Timing> times =
      times_in_turns(device, work, 8.0 * table.place().seconds, /*least=*/3);
  for (size_t i = 0; i < lengths.size(); ++i) {
    const auto n = static_cast<double>(lengths[i]);
    BenchRow row{.name = name(lengths[i])};
    row.ms = times[i].median / n;
    row.ms_min = times[i].min / n;
    row.note = fmt::format("a token of {} sentences", size.rows);
    if (i > 0) {
      row.against = name(lengths[0]);
      row.ratio = table.find(row.against)->ms / row.ms;
    }
    table.add(std::move(row));
  }
}

}  // namespace

void bench_decoding(BenchTable& table) {
  nn::AttentionSettings rmfa = nn::paper_attention();
  rmfa.features = table.place().sizes.features;
  decoding_rows(table, "softmax", {});
  decoding_rows(table, fmt::format("rmfa+ppsbn D={}", rmfa.features), rmfa);
}

}  // namespace macgrad::experiments
