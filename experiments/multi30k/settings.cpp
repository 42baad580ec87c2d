// What settings stand for, and which of them do not go together: a combination that would fail or
// diverge only after minutes of training is refused.
#include "macgrad/experiments/multi30k/settings.h"

#include <cmath>

#include "macgrad/core/step_graph.h"
#include "macgrad/experiments/common/attention_options.h"
#include "macgrad/nn/allocation.h"

namespace macgrad::experiments {

nn::AttentionSettings attention_settings(const Multi30kSettings& s) {
  nn::AttentionSettings a;
  a.kind = nn::attention_kind(s.attention);
  a.map = nn::feature_map(s.map);
  a.matrix = matrix_named(s.matrix);
  a.kernel = nn::pair_kernel(s.kernel);
  a.logit_scale = s.logit_scale;
  a.train_logit_scale = s.train_logit_scale;
  a.draws = nn::draw_method(s.draws);
  a.features = s.features;
  a.redraw = nn::RedrawPolicy::parse(s.redraw);
  a.eval_draws = static_cast<int>(s.eval_draws);
  a.denominator = nn::parse_denominator_floor(s.denominator);
  a.ppsbn = s.ppsbn;
  a.pre_sbn = nn::parse_pre_sbn(s.presbn);
  a.dropout = s.attention_dropout;
  return a;
}

bool Multi30kSettings::shared_vocabulary() const {
  return vocabularies == "auto" ? subwords == "bpe" : vocabularies == "shared";
}

bool Multi30kSettings::replays() const {
  return graph == "on" && accumulate == 1 && StepGraph::available(device());
}

Device Multi30kSettings::device() const {
  return device_of(common);
}

bool Multi30kSettings::raw_text() const {
  return text == "raw" && !toy;
}

BleuOptions Multi30kSettings::bleu() const {
  return {raw_text() ? BleuTokenizer::mteval13a : BleuTokenizer::none, BleuSmoothing::exponential};
}

void make_toy(Multi30kSettings& s) {
  s.toy = true;
  s.test.clear();
  s.subwords = "word";
  s.min_frequency = 1;
  s.layers = 1;
  s.d_model = 64;
  s.heads = 4;
  s.ffn = 128;
  s.dropout = 0.0;
  s.epochs = 6;
  s.batch_tokens = 512;
  s.lr = 3e-3;
  s.warmup = 50;
  s.label_smoothing = 0.0;
}

void check_settings(const Multi30kSettings& s) {
  require(s.toy || s.source != s.target,
          "--source and --target are both \"{}\"; choose two languages, for instance --source de "
          "--target en",
          s.source);
  require(!s.share_embeddings || s.shared_vocabulary(),
          "--share-embeddings needs one vocabulary of both languages; add --vocabularies shared, "
          "or --separate-embeddings");
  require(s.d_model % s.heads == 0,
          "--d-model {} cannot be split over --heads {}; make it a multiple of the heads",
          s.d_model, s.heads);
  require(s.d_model % 2 == 0, "--d-model {} must be even, for sine and cosine positions",
          s.d_model);
  for (const auto& [option, value] : std::initializer_list<std::pair<const char*, double>>{
           {"--lr", s.lr},
           {"--warmup-from", s.warmup_from},
           {"--clip", s.clip},
           {"--weight-decay", s.weight_decay},
           {"--logit-scale", s.logit_scale},
           {"--qkv-gain", s.qkv_gain},
           {"--adam-beta1", s.adam_beta1},
           {"--adam-beta2", s.adam_beta2},
           {"--adam-eps", s.adam_eps},
           {"--checkpoint-minutes", s.checkpoint_minutes},
           {"--length-penalty", s.length_penalty}})
    require(std::isfinite(value), "{} {} must be finite", option, value);
  require(s.warmup_from <= s.lr, "--warmup-from {} must not be above --lr {}", s.warmup_from, s.lr);
  require(s.keep == 0 || s.keep >= s.average,
          "--keep {} keeps fewer epochs than --average {} needs; raise it, or leave it out", s.keep,
          s.average);
  const nn::AttentionSettings attention = attention_settings(s);
  const nn::PairKernel& kernel = attention.kernel;
  if (attention.kind.uses_map || attention.reads("draws")) nn::check_feature_map(attention);
  if (attention.reads("redraw"))
    require(s.eval_draws == 1 || s.redraw != "never",
            "--eval-draws {} with --redraw never: there is one draw for training and evaluation; "
            "leave one of the two out",
            s.eval_draws);
  if (attention.reads("draws")) {
    const int64_t least =
        nn::least_features(attention.draws, kernel.function(), s.d_model / s.heads);
    require(
        s.features >= least,
        "--features {} is too small for --draws {} with {} dimensions per head; use at least {}",
        s.features, s.draws, s.d_model / s.heads, least);
  }
  if (!attention.reads("kernel") || std::isinf(kernel.radius())) return;
  require(s.ppsbn,
          "--attention {} --kernel {} needs --ppsbn: the series of {} converges for |t| < {} only, "
          "and ppSBN is what keeps queries and keys that small",
          s.attention, s.kernel, s.kernel, kernel.radius());
  const int64_t head_dim = s.d_model / s.heads;
  const double limit = s.train_logit_scale
                           ? nn::max_logit_scale(kernel.radius(), head_dim)
                           : kernel.radius() * std::sqrt(static_cast<double>(head_dim));
  require(
      s.logit_scale < limit,
      "--logit-scale {} is too large for --kernel {}: with {} dimensions per head it must be below "
      "{:.4g}",
      s.logit_scale, s.kernel, head_dim, limit);
}

nn::TransformerSettings transformer_settings(const Multi30kSettings& s, int64_t source_vocabulary,
                                             int64_t target_vocabulary) {
  nn::TransformerSettings t;
  t.source_vocabulary = source_vocabulary;
  t.target_vocabulary = target_vocabulary;
  t.encoder_layers = t.decoder_layers = s.layers;
  t.share_embeddings = s.share_embeddings;
  t.layer.width = s.d_model;
  t.layer.heads = s.heads;
  t.layer.ffn = s.ffn;
  t.layer.dropout = s.dropout;
  t.layer.norm = nn::parse_norm(s.norm);
  t.layer.activation = nn::parse_activation(s.activation);
  t.layer.attention = attention_settings(s);
  t.seed = s.common.seed;
  return t;
}

}  // namespace macgrad::experiments
