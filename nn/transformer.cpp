// The Transformer from token ids to logits.
#include "macgrad/nn/transformer.h"

#include <cmath>

#include "macgrad/autograd/ops.h"

namespace macgrad::nn {

Variable log_probs(const Variable& logits) {
  return log_softmax(cast(logits, compute_dtype(logits.dtype())), -1);
}

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

Variable Transformer::decode_hidden(const Tensor& target, const Tensor& target_valid,
                                    const Variable& memory, const Tensor& source_valid,
                                    std::vector<LayerState>* states) {
  const int64_t start = states && !states->empty() ? states->front().self.length() : 0;
  const Variable x = embed(target_table(), target_positions, target_dropout, target, start);
  return decoder.forward(x, target_valid, memory, source_valid, states);
}

Variable Transformer::decode(const Tensor& target, const Tensor& target_valid,
                             const Variable& memory, const Tensor& source_valid,
                             std::vector<LayerState>* states) {
  return project(decode_hidden(target, target_valid, memory, source_valid, states));
}

Variable Transformer::forward(const Tensor& source, const Tensor& source_valid,
                              const Tensor& target, const Tensor& target_valid,
                              const Tensor& places) {
  const auto in_scope = scope();
  Variable x =
      decode_hidden(target, target_valid, encode(source, source_valid), source_valid, nullptr);
  if (places.defined())
    x = embedding(reshape(x, Shape{target.numel(), settings_.layer.width}), places);
  return in_scope.result(project(x));
}

int Transformer::eval_draws() const {
  const AttentionSettings& a = settings_.layer.attention;
  return a.reads("eval_draws") ? a.eval_draws : 1;
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
