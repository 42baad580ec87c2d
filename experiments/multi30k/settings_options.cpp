// The options. One that the chosen attention, corpus or device never reads is refused.
#include <fmt/format.h>

#include "macgrad/experiments/common/attention_options.h"
#include "macgrad/experiments/multi30k/presets.h"
#include "macgrad/experiments/multi30k/settings.h"
#include "macgrad/nn/allocation.h"

namespace macgrad::experiments {
namespace {

void refuse_idle_search_options(const Options& options, const Multi30kSettings& s) {
  if (s.beam == 1 && options.given("--length-penalty"))
    throw UsageError("--length-penalty has no effect without --beam 2 or more");
}

// Options that only some attentions, devices or corpora read.
void refuse_idle_options(const Options& options, const Multi30kSettings& s, bool one_model) {
  const auto refuse = [&](bool idle, std::initializer_list<const char*> names,
                          const std::string& why) {
    if (!idle) return;
    for (const char* name : names)
      if (options.given(name)) throw UsageError("{} has no effect {}", name, why);
  };
  if (one_model) {
    reject_idle_attention_options(options, s.attention, s.map);
    refuse(!s.ppsbn, {"--presbn"}, "without --ppsbn; add --ppsbn");
  }
  refuse(s.subwords == "bpe", {"--min-frequency"},
         "with --subwords bpe, which encodes every word; add --subwords word");
  refuse(s.subwords == "word", {"--vocabulary-size"},
         "with --subwords word, whose size follows from --min-frequency; add --subwords bpe");
  refuse(s.toy, {"--data", "--text", "--source", "--target"},
         "with --toy, which makes its own corpus; leave one of the two out");
  refuse(s.toy, {"--preset", "--test"},
         "with --toy, which brings settings of its own and has no test splits");
  refuse(s.warmup == 0, {"--warmup-from"}, "with --warmup 0");
  refuse(s.common.device == "cpu", {"--graph"},
         "with --device cpu, where no update is captured; leave it out");
}

}  // namespace

void declare_options(Options& o, Multi30kSettings& s, bool one_model) {
  const Range share = between(0, 0.999), positive = above(0), not_negative = at_least(0);
  add_common_options(o, s.common, {"float32", "float64", "bf16"});
  o.choice("--preset", s.preset, preset_names(), "Another set of defaults: README.md");
  o.text("--data", s.data,
         "Folder of the Multi30K repository (default: $MULTI30K_DIR, else data/multi30k)",
         "FOLDER");
  o.choice("--text", s.text, {"tok", "raw"}, "The tokenised or the raw text");
  o.text("--source", s.source, "Source language: a file suffix");
  o.text("--target", s.target, "Target language: a file suffix");
  o.flag("--toy", s.toy, "A small corpus made by a grammar, with settings to match");
  o.choice("--subwords", s.subwords, {"bpe", "word"},
           "Tokens: byte-pair encoding of the training text, or whole words");
  o.choice("--vocabularies", s.vocabularies, {"auto", "shared", "separate"},
           "Of source and target; auto: shared with bpe, separate with word");
  o.number("--vocabulary-size", s.vocabulary_size, at_least(1),
           "Subwords of a vocabulary, at most");
  o.number("--min-frequency", s.min_frequency, at_least(1),
           "Rarer words are unknown to the vocabulary");

  o.number("--layers", s.layers, at_least(1), "Layers of the encoder, and of the decoder");
  o.number("--d-model", s.d_model, at_least(1), "Model width");
  o.number("--heads", s.heads, at_least(1), "Attention heads");
  o.number("--ffn", s.ffn, at_least(1), "Hidden width of the feed-forward blocks");
  o.number("--dropout", s.dropout, share, "Dropout of embeddings and sublayers");
  o.choice("--norm", s.norm, {"pre", "post"}, "Where the layer norms stand");
  o.choice("--activation", s.activation, {"relu", "gelu", "gelu_tanh"},
           "Of the feed-forward blocks");
  o.choice("--attention", s.attention, attention_names(),
           "Softmax, the kernel exactly, linear attention with --map, rmfa (linear with the map "
           "maclaurin), or the mean of all values");
  o.choice("--map", s.map, feature_map_names(), "Feature map of linear attention");
  o.choice("--matrix", s.matrix, projection_matrix_names(),
           "Projection matrix of " + maps_reading("matrix") + "; auto: the map's own");
  o.number("--attention-dropout", s.attention_dropout, share, "Dropout of softmax weights");
  o.text("--kernel", s.kernel, "Kernel: " + nn::pair_kernel_names(), "NAME");
  o.number("--logit-scale", s.logit_scale, not_negative,
           "tau: logits are tau q.k/sqrt(d); 0: automatic, which is 1 without --ppsbn, and with it "
           "sqrt(2d) "
           "or half of the kernel's radius if that is less");
  o.flag("--train-logit-scale", s.train_logit_scale, "Train tau, from --logit-scale on");
  o.number("--features", s.features, at_least(1), "Random features D");
  o.choice("--draws", s.draws, nn::draw_method_names(), "How features are drawn");
  o.text("--redraw", s.redraw, "New features in training: step, epoch, every:K, never", "WHEN");
  o.number("--eval-draws", s.eval_draws, between(1, 1000),
           "Fixed draws whose log-probabilities evaluation averages");
  o.text("--denominator", s.denominator,
         "Small denominators: floor (0.001 per visible key), floor:DELTA, none", "POLICY");
  o.flag("--ppsbn", s.ppsbn, "ppSBN around the attention");
  o.choice("--presbn", s.presbn, {"auto", "batch", "row"},
           "preSBN statistics; auto: batch in the encoder (the paper's form), row elsewhere");
  o.flag("--share-embeddings,!--separate-embeddings", s.share_embeddings,
         "One embedding table for source, target and output");
  o.number("--qkv-gain", s.qkv_gain, positive,
           "Gain on the initial query, key and value projections (fairseq: 0.7071)");

  o.number("--epochs", s.epochs, at_least(1), "Passes over the training pairs");
  o.number("--max-updates", s.max_updates, not_negative,
           "Stop after this many updates; 0: no limit");
  o.number("--batch-tokens", s.batch_tokens, at_least(1),
           "Sentences x longest sentence of a batch, at most");
  o.number("--accumulate", s.accumulate, at_least(1), "Batches per update");
  o.number("--lr", s.lr, positive, "Peak learning rate");
  o.number("--warmup", s.warmup, not_negative, "Updates of warm-up");
  o.number("--warmup-from", s.warmup_from, not_negative,
           "Learning rate that the warm-up rises from");
  o.choice("--schedule", s.schedule, {"inverse-sqrt", "constant", "one-cycle"},
           "Learning rate after the warm-up");
  o.number("--label-smoothing", s.label_smoothing, share, "Of the training loss");
  o.number("--clip", s.clip, not_negative, "Largest global gradient norm; 0: not clipped");
  o.number("--weight-decay", s.weight_decay, not_negative,
           "AdamW decay (not on norms, biases, ppSBN)");
  o.number("--adam-beta1", s.adam_beta1, share, "Decay of Adam's mean gradient");
  o.number("--adam-beta2", s.adam_beta2, between(0, 0.999999),
           "Decay of Adam's mean squared gradient");
  o.number("--adam-eps", s.adam_eps, positive, "Added to Adam's divisor");
  o.number("--patience", s.patience, not_negative,
           "Stop after so many epochs without a lower validation loss; 0: never");
  o.number("--average", s.average, not_negative,
           "The final model is the mean of so many last epochs; 0: the epoch of the lowest loss");
  o.number("--keep", s.keep, not_negative,
           "Last epochs kept on disk; 0: as many as --average needs");
  o.number("--checkpoint-minutes", s.checkpoint_minutes, not_negative,
           "Between checkpoints within an epoch; 0: at the ends of epochs alone");
  o.choice("--graph", s.graph, {"on", "off"}, "Capture one CUDA graph per batch shape (CUDA)");
  o.number("--shape-multiple", s.shape_multiple, not_negative,
           "Round rows and widths of batches up to it; 0: 8 where updates are replayed, else 1");
  o.number("--valid-bleu-sentences", s.valid_bleu_sentences, not_negative,
           "Validation sentences to translate after an epoch; 0: all");
  o.number("--bleu-every", s.bleu_every, at_least(1), "Translate every N epochs");
  declare_search_options(o, s);
  o.words("--test", s.test, "Splits that the final model translates: test_2016_flickr,... or none");
  o.check([&o, &s, one_model] {
    refuse_idle_options(o, s, one_model);
    if (s.test == std::vector<std::string>{"none"}) s.test.clear();
  });
}

void declare_search_options(Options& o, Multi30kSettings& s) {
  o.number("--beam", s.beam, between(1, 1000),
           "Hypotheses of the beam search over test sentences; 1: greedy");
  o.number("--length-penalty", s.length_penalty, between(0, 10),
           "Scores of the beam search are divided by length^penalty");
  o.check([&o, &s] { refuse_idle_search_options(o, s); });
}

}  // namespace macgrad::experiments
