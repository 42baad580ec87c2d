// Encoder and decoder layers and their stacks.
#include "macgrad/autograd/ops.h"
#include "macgrad/nn/transformer.h"

namespace macgrad::nn {

NormPlace parse_norm(const std::string& name) {
  if (name == "post") return NormPlace::post;
  if (name == "pre") return NormPlace::pre;
  throw Error("norm place '{}' is unknown; use post or pre", name);
}

namespace {

/// x plus a sublayer of it, with the norm before (pre) or after the sum (post).
template <class F>
Variable residual(NormPlace place, const LayerNorm& norm, const Dropout& dropout, const Variable& x,
                  F&& sublayer) {
  if (place == NormPlace::pre) return add(x, dropout.forward(sublayer(norm.forward(x))));
  return norm.forward(add(x, dropout.forward(sublayer(x))));
}

}  // namespace

EncoderLayer::EncoderLayer(Module* parent, std::string name, const LayerSettings& s,
                           ModelRandom& random)
    : Module(parent, std::move(name)),
      self_attention(this, "self_attention", s.width, s.heads, s.attention, AttentionRole::self,
                     random),
      feed_forward(this, "feed_forward", s.width, s.ffn, s.activation, s.dropout, random),
      norm1(this, "norm1", s.width, s.norm_eps),
      norm2(this, "norm2", s.width, s.norm_eps),
      dropout1(this, "dropout1", s.dropout, random),
      dropout2(this, "dropout2", s.dropout, random),
      norm_(s.norm) {}

Variable EncoderLayer::forward(const Variable& x, const Tensor& valid) {
  const auto in_scope = scope();
  const Variable y = residual(norm_, norm1, dropout1, x, [&](const Variable& h) {
    return self_attention.forward(h, h, {valid, valid, false});
  });
  return in_scope.result(residual(norm_, norm2, dropout2, y,
                                  [&](const Variable& h) { return feed_forward.forward(h); }));
}

DecoderLayer::DecoderLayer(Module* parent, std::string name, const LayerSettings& s,
                           ModelRandom& random)
    : Module(parent, std::move(name)),
      self_attention(this, "self_attention", s.width, s.heads, s.attention,
                     AttentionRole::causal_self, random),
      cross_attention(this, "cross_attention", s.width, s.heads, s.attention, AttentionRole::cross,
                      random),
      feed_forward(this, "feed_forward", s.width, s.ffn, s.activation, s.dropout, random),
      norm1(this, "norm1", s.width, s.norm_eps),
      norm2(this, "norm2", s.width, s.norm_eps),
      norm3(this, "norm3", s.width, s.norm_eps),
      dropout1(this, "dropout1", s.dropout, random),
      dropout2(this, "dropout2", s.dropout, random),
      dropout3(this, "dropout3", s.dropout, random),
      norm_(s.norm) {}

Variable DecoderLayer::forward(const Variable& x, const Tensor& valid, const Variable& memory,
                               const Tensor& memory_valid, LayerState* state) {
  const auto in_scope = scope();
  Tensor query_valid = valid;
  if (state && valid.defined())
    query_valid = valid.slice(1, valid.size(1) - x.size(1), valid.size(1)).contiguous();
  const Variable y = residual(norm_, norm1, dropout1, x, [&](const Variable& h) {
    return self_attention.forward(h, h, {valid, query_valid, true}, state ? &state->self : nullptr);
  });
  const Variable z = residual(norm_, norm2, dropout2, y, [&](const Variable& h) {
    if (!state) return cross_attention.forward(h, memory, {memory_valid, query_valid, false});
    // The source is projected once; the hypotheses of a sentence are queries of one row.
    const bool first = state->source.length() == 0;
    check(!first || memory.defined(), "[decoder] the states are fresh: {}",
          "the first call must bring the encoded source");
    const int64_t sentences = first ? memory.size(0) : state->source.rows();
    check(h.size(0) % sentences == 0, "[decoder] {} hypotheses for {} sentences", h.size(0),
          sentences);
    const int64_t places = h.size(0) / sentences * h.size(1);
    const Tensor places_valid =
        query_valid.defined() ? query_valid.view(Shape{sentences, places}) : query_valid;
    const Variable out = cross_attention.forward(
        reshape(h, Shape{sentences, places, h.size(2)}), first ? memory : Variable(),
        {memory_valid, places_valid, false}, &state->source);
    return reshape(out, h.shape());
  });
  return in_scope.result(residual(norm_, norm3, dropout3, z,
                                  [&](const Variable& h) { return feed_forward.forward(h); }));
}

Encoder::Encoder(Module* parent, std::string name, int64_t layer_count, const LayerSettings& s,
                 bool final_norm, ModelRandom& random)
    : Module(parent, std::move(name)) {
  for (int64_t i = 0; i < layer_count; ++i)
    layers.push_back(std::make_unique<EncoderLayer>(this, fmt::format("layers.{}", i), s, random));
  if (final_norm) norm.emplace(this, "norm", s.width, s.norm_eps);
}

Variable Encoder::forward(const Variable& x, const Tensor& valid) {
  const auto in_scope = scope();
  Variable y = x;
  for (const auto& layer : layers) y = layer->forward(y, valid);
  return in_scope.result(norm ? norm->forward(y) : y);
}

Decoder::Decoder(Module* parent, std::string name, int64_t layer_count, const LayerSettings& s,
                 bool final_norm, ModelRandom& random)
    : Module(parent, std::move(name)) {
  for (int64_t i = 0; i < layer_count; ++i)
    layers.push_back(std::make_unique<DecoderLayer>(this, fmt::format("layers.{}", i), s, random));
  if (final_norm) norm.emplace(this, "norm", s.width, s.norm_eps);
}

Variable Decoder::forward(const Variable& x, const Tensor& valid, const Variable& memory,
                          const Tensor& memory_valid, std::vector<LayerState>* states) {
  const auto in_scope = scope();
  check(!states || states->size() == layers.size(), "[decoder] {} states for {} layers",
        states ? states->size() : 0, layers.size());
  Variable y = x;
  for (size_t i = 0; i < layers.size(); ++i)
    y = layers[i]->forward(y, valid, memory, memory_valid, states ? &(*states)[i] : nullptr);
  return in_scope.result(norm ? norm->forward(y) : y);
}

EncoderDecoder::EncoderDecoder(Module* parent, std::string name, int64_t encoder_layers,
                               int64_t decoder_layers, const LayerSettings& settings,
                               bool final_norm, ModelRandom& random)
    : Module(parent, std::move(name)),
      encoder(this, "encoder", encoder_layers, settings, final_norm, random),
      decoder(this, "decoder", decoder_layers, settings, final_norm, random) {}

Variable EncoderDecoder::forward(const Variable& source, const Tensor& source_valid,
                                 const Variable& target, const Tensor& target_valid) {
  const auto in_scope = scope();
  return in_scope.result(
      decoder.forward(target, target_valid, encoder.forward(source, source_valid), source_valid));
}

}  // namespace macgrad::nn
