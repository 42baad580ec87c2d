// The Transformer from token ids to logits, and greedy decoding.
#include "nn/transformer.h"

#include <algorithm>
#include <cmath>

#include "autograd/ops.h"

namespace macgrad::nn {

namespace {

// In float32 for a bfloat16 model, whose log-probabilities near -8 would be 0.03 apart.
Variable log_probs(const Variable& logits) {
  return log_softmax(cast(logits, compute_dtype(logits.dtype())), -1);
}

}  // namespace

Transformer::Transformer(const TransformerSettings& s)
    : settings_(s),
      random_(s.seed),
      source_embedding(this, "source_embedding", s.source_vocabulary, s.layer.width, random_),
      source_positions(this, "source_positions", s.positions, s.max_length, s.layer.width, random_),
      target_positions(this, "target_positions", s.positions, s.max_length, s.layer.width, random_),
      source_dropout(this, "source_dropout", s.layer.dropout, random_),
      target_dropout(this, "target_dropout", s.layer.dropout, random_),
      encoder(this, "encoder", s.encoder_layers, s.layer, s.layer.norm == NormPlace::pre, random_),
      decoder(this, "decoder", s.decoder_layers, s.layer, s.layer.norm == NormPlace::pre, random_) {
  require(s.source_vocabulary > 0 && s.target_vocabulary > 0,
          "[transformer] vocabularies have {} and {} entries; both need some", s.source_vocabulary,
          s.target_vocabulary);
  if (s.share_embeddings) {
    require(s.source_vocabulary == s.target_vocabulary,
            "[transformer] share_embeddings needs equal vocabularies, got {} and {}",
            s.source_vocabulary, s.target_vocabulary);
  } else {
    target_embedding.emplace(this, "target_embedding", s.target_vocabulary, s.layer.width, random_);
  }
  if (!s.tie_output) output.emplace(this, "output", s.layer.width, s.target_vocabulary, random_);
}

void Transformer::on_begin_step(uint32_t step, int64_t) {
  random_.begin_step(step);
}

const Embedding& Transformer::target_table() const {
  return target_embedding ? *target_embedding : source_embedding;
}

Variable Transformer::embed(const Embedding& table, const Positions& positions,
                            const Dropout& dropout, const Tensor& ids, int64_t start) const {
  Variable x = table.forward(ids);
  if (settings_.scale_embeddings) x = mul(x, std::sqrt(static_cast<double>(settings_.layer.width)));
  return dropout.forward(positions.forward(x, start));
}

Variable Transformer::encode(const Tensor& source, const Tensor& source_valid) {
  return encoder.forward(embed(source_embedding, source_positions, source_dropout, source, 0),
                         source_valid);
}

Variable Transformer::project(const Variable& x) const {
  return output ? output->forward(x) : target_table().project(x);
}

Variable Transformer::decode(const Tensor& target, const Tensor& target_valid,
                             const Variable& memory, const Tensor& source_valid) {
  return project(decoder.forward(embed(target_table(), target_positions, target_dropout, target, 0),
                                 target_valid, memory, source_valid));
}

Variable Transformer::forward(const Tensor& source, const Tensor& source_valid,
                              const Tensor& target, const Tensor& target_valid) {
  return decode(target, target_valid, encode(source, source_valid), source_valid);
}

int Transformer::eval_draws() const {
  const AttentionSettings& a = settings_.layer.attention;
  return a.kind == AttentionKind::rmfa ? a.eval_draws : 1;
}

Variable Transformer::eval_log_probs(const Tensor& source, const Tensor& source_valid,
                                     const Tensor& target, const Tensor& target_valid) {
  const EvalScope evaluation(*this);
  Variable total;
  for (int e = 0; e < eval_draws(); ++e) {
    use_eval_draw(e);
    const Variable one = log_probs(forward(source, source_valid, target, target_valid));
    total = total.defined() ? add(total, one) : one;
  }
  return mul(total, 1.0 / eval_draws());
}

std::vector<std::vector<int64_t>> Transformer::greedy_decode(const Tensor& source,
                                                             const Tensor& source_valid,
                                                             int64_t begin, int64_t end,
                                                             int64_t max_length) {
  const NoGrad no_grad;
  const EvalScope evaluation(*this);
  const auto B = static_cast<size_t>(source.size(0));
  const auto E = static_cast<size_t>(eval_draws());
  std::vector<Variable> memory;
  std::vector<std::vector<DecodeState>> states(E);
  for (size_t e = 0; e < E; ++e) {
    use_eval_draw(static_cast<int>(e));
    memory.push_back(encode(source, source_valid));
    states[e].resize(decoder.layers.size());
  }
  const bool incremental =
      std::all_of(decoder.layers.begin(), decoder.layers.end(),
                  [](const auto& layer) { return layer->self_attention.core().incremental(); });

  std::vector<std::vector<int64_t>> results(B);
  std::vector<bool> done(B, false);
  std::vector<std::vector<int64_t>> prefixes(B, std::vector<int64_t>{begin});
  for (int64_t length = 1; length <= max_length; ++length) {
    const int64_t start = incremental ? length - 1 : 0;
    std::vector<int64_t> ids;
    for (const auto& prefix : prefixes) ids.insert(ids.end(), prefix.begin() + start, prefix.end());
    const Tensor target =
        Tensor::from_vector(ids, Shape{source.size(0), length - start}, source.device());
    Variable scores;  // (B, V)
    for (size_t e = 0; e < E; ++e) {
      use_eval_draw(static_cast<int>(e));
      const Variable x =
          decoder.forward(embed(target_table(), target_positions, target_dropout, target, start),
                          Tensor(), memory[e], source_valid, incremental ? &states[e] : nullptr);
      const Variable logits = project(select(x, 1, x.size(1) - 1));
      const Variable one = E > 1 ? log_probs(logits) : logits;
      scores = scores.defined() ? add(scores, one) : one;
    }
    const std::vector<int64_t> best = max(scores, -1).second.to_vector<int64_t>();
    for (size_t b = 0; b < B; ++b) {
      if (!done[b] && best[b] == end) done[b] = true;
      if (!done[b]) results[b].push_back(best[b]);
      prefixes[b].push_back(done[b] ? end : best[b]);
    }
    if (std::find(done.begin(), done.end(), false) == done.end()) break;
  }
  return results;
}

std::string Transformer::describe() {
  std::string text;
  if (!encoder.layers.empty())
    text += "encoder: " + encoder.layers[0]->self_attention.core().describe() + "\n";
  if (!decoder.layers.empty()) {
    text += "decoder: " + decoder.layers[0]->self_attention.core().describe() + "\n";
    text += "cross:   " + decoder.layers[0]->cross_attention.core().describe() + "\n";
  }
  return text;
}

}  // namespace macgrad::nn
