// Encoder and decoder layers, their stacks, and the encoder-decoder Transformer (Vaswani et al.
// 2017), post- or pre-norm, over any attention. Shape letters: B batch, S source length, T target
// length, C model width, V vocabulary. Valid masks (B, S) and (B, T) are bool, true = a token,
// undefined = all.
#pragma once

#include <memory>
#include <vector>

#include "macgrad/nn/dropout.h"
#include "macgrad/nn/embedding.h"
#include "macgrad/nn/feed_forward.h"
#include "macgrad/nn/layer_norm.h"
#include "macgrad/nn/multi_head_attention.h"
#include "macgrad/nn/positions.h"

namespace macgrad::nn {

enum class NormPlace { post, pre };
/// "post", "pre"; an Error lists them.
NormPlace parse_norm(const std::string& name);

/// Settings of a stack of layers.
struct LayerSettings {
  int64_t width = 256;  // C
  int64_t heads = 8;
  int64_t ffn = 1024;
  double dropout = 0.1;
  NormPlace norm = NormPlace::post;
  Activation activation = Activation::relu;
  double norm_eps = 1e-5;
  AttentionSettings attention;
};

/// Post-norm: x = norm1(x + attention(x)), x = norm2(x + ffn(x)); pre-norm: x +
/// attention(norm1(x)), x + ffn(norm2(x)).
class EncoderLayer : public Module {
 public:
  EncoderLayer(Module* parent, std::string name, const LayerSettings& settings,
               ModelRandom& random);
  /// x (B,S,C), valid (B,S) -> (B,S,C).
  Variable forward(const Variable& x, const Tensor& valid);

  MultiHeadAttention self_attention;
  FeedForward feed_forward;
  LayerNorm norm1;
  LayerNorm norm2;
  Dropout dropout1;
  Dropout dropout2;

 private:
  NormPlace norm_;
};

/// Causal self-attention, cross-attention to the encoder's output, feed-forward.
class DecoderLayer : public Module {
 public:
  DecoderLayer(Module* parent, std::string name, const LayerSettings& settings,
               ModelRandom& random);
  /// x (B,T,C), memory (B,S,C) -> (B,T,C). With a state, x holds the new places alone; valid and
  /// memory_valid cover all places; memory is read by the first call alone. The state's sentences
  /// may have several hypotheses each, which are x's rows one after another.
  Variable forward(const Variable& x, const Tensor& valid, const Variable& memory,
                   const Tensor& memory_valid, LayerState* state = nullptr);

  MultiHeadAttention self_attention;
  MultiHeadAttention cross_attention;
  FeedForward feed_forward;
  LayerNorm norm1;
  LayerNorm norm2;
  LayerNorm norm3;
  Dropout dropout1;
  Dropout dropout2;
  Dropout dropout3;

 private:
  NormPlace norm_;
};

class Encoder : public Module {
 public:
  /// `final_norm`: a LayerNorm named "norm" after the last layer.
  Encoder(Module* parent, std::string name, int64_t layer_count, const LayerSettings& settings,
          bool final_norm, ModelRandom& random);
  /// x (B,S,C), valid (B,S) -> (B,S,C).
  Variable forward(const Variable& x, const Tensor& valid);

  std::vector<std::unique_ptr<EncoderLayer>> layers;
  std::optional<LayerNorm> norm;
};

class Decoder : public Module {
 public:
  Decoder(Module* parent, std::string name, int64_t layer_count, const LayerSettings& settings,
          bool final_norm, ModelRandom& random);
  /// As DecoderLayer::forward; `states`: none, or one a layer.
  Variable forward(const Variable& x, const Tensor& valid, const Variable& memory,
                   const Tensor& memory_valid, std::vector<LayerState>* states = nullptr);

  std::vector<std::unique_ptr<DecoderLayer>> layers;
  std::optional<LayerNorm> norm;
};

/// Encoder and decoder on embedded sequences: torch.nn.Transformer with final norms.
class EncoderDecoder : public Module {
 public:
  EncoderDecoder(Module* parent, std::string name, int64_t encoder_layers, int64_t decoder_layers,
                 const LayerSettings& settings, bool final_norm, ModelRandom& random);
  /// source (B,S,C), target (B,T,C) -> (B,T,C).
  Variable forward(const Variable& source, const Tensor& source_valid, const Variable& target,
                   const Tensor& target_valid);

  Encoder encoder;
  Decoder decoder;
};

struct TransformerSettings {
  int64_t source_vocabulary = 0;
  int64_t target_vocabulary = 0;
  int64_t encoder_layers = 3;
  int64_t decoder_layers = 3;
  LayerSettings layer;
  PositionKind positions = PositionKind::sinusoidal;
  int64_t max_length = 1024;      // of learned positions
  bool tie_output = true;         // the output projection is the target embedding
  bool share_embeddings = false;  // source and target use one table (equal vocabularies)
  bool scale_embeddings = true;   // embeddings times √C
  uint64_t seed = 0;
};

/// log_softmax over the last dimension, of compute_dtype: in bfloat16 log-probabilities near -8
/// would be 0.03 apart.
Variable log_probs(const Variable& logits);

/// From token ids to logits.
class Transformer : public Module {
 public:
  /// Throws an Error for empty vocabularies, heads that do not divide the width, tables shared by
  /// unequal vocabularies, and what attention refuses (make_attention_core).
  explicit Transformer(const TransformerSettings& settings);

  /// source (B,S), target (B,T) int64 ids -> logits (B,T,V). target is the decoder's input (begin
  /// token first); place t predicts token t+1. With `places` (P) int64, each b*T + t, only those
  /// get logits, (P,V): padding need not be projected to the vocabulary.
  Variable forward(const Tensor& source, const Tensor& source_valid, const Tensor& target,
                   const Tensor& target_valid, const Tensor& places = Tensor());
  /// source -> (B,S,C).
  Variable encode(const Tensor& source, const Tensor& source_valid);
  /// target and the encoder's output -> logits (B,T,V). With states (none decoded yet: one empty
  /// state a layer), target holds the places after those decoded so far; otherwise as
  /// DecoderLayer::forward. Searching with them: nn/decoding.h.
  Variable decode(const Tensor& target, const Tensor& target_valid, const Variable& memory,
                  const Tensor& source_valid, std::vector<LayerState>* states = nullptr);

  /// Mean over the evaluation draws of log_softmax(forward(...)): (B,T,V), of compute_dtype.
  /// Evaluation mode.
  Variable eval_log_probs(const Tensor& source, const Tensor& source_valid, const Tensor& target,
                          const Tensor& target_valid);

  const TransformerSettings& settings() const { return settings_; }
  /// How many draws of the features evaluation averages: settings' with RMFA, else 1.
  int eval_draws() const;
  /// Lines for a start table: what each kind of attention is.
  std::string describe();

 private:
  Variable embed(const Embedding& table, const Positions& positions, const Dropout& dropout,
                 const Tensor& ids, int64_t start) const;
  Variable decode_hidden(const Tensor& target, const Tensor& target_valid, const Variable& memory,
                         const Tensor& source_valid, std::vector<LayerState>* states);
  Variable project(const Variable& x) const;
  const Embedding& target_table() const;

  TransformerSettings settings_;
  ModelRandom random_;

 public:
  Embedding source_embedding;
  std::optional<Embedding> target_embedding;  // absent when shared
  Positions source_positions;
  Positions target_positions;
  Dropout source_dropout;
  Dropout target_dropout;
  Encoder encoder;
  Decoder decoder;
  std::optional<Linear> output;  // absent when tied
};

}  // namespace macgrad::nn
