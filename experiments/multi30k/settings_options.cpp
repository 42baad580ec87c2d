// The options. One that the chosen attention or corpus never reads is refused.
#include "experiments/multi30k/presets.h"
#include "experiments/multi30k/settings.h"
#include "nn/allocation.h"

namespace macgrad::experiments {
namespace {

void refuse_idle_search_options(const CLI::App& app, const Multi30kSettings& s) {
  if (s.beam == 1 && app.count("--length-penalty") > 0)
    throw CLI::ValidationError("--length-penalty", "has no effect without --beam 2 or more");
}

// Options that only some attentions, or only the real corpus, read.
void refuse_idle_options(const CLI::App& app, const Multi30kSettings& s, bool one_model) {
  const auto refuse = [&](bool idle, std::initializer_list<const char*> options,
                          const std::string& why) {
    if (!idle) return;
    for (const char* option : options)
      if (app.count(option) > 0)
        throw CLI::ValidationError(option, fmt::format("has no effect {}", why));
  };
  if (one_model) {
    refuse(s.attention == "softmax", {"--kernel"},
           "with --attention softmax; add --attention rmfa or --attention exact");
    refuse(s.attention != "rmfa",
           {"--features", "--draws", "--redraw", "--eval-draws", "--denominator"},
           fmt::format("with --attention {}; add --attention rmfa", s.attention));
    refuse(s.attention != "softmax", {"--attention-dropout"},
           fmt::format("with --attention {}, which has no weights to drop; use --dropout",
                       s.attention));
    refuse(!s.ppsbn, {"--presbn"}, "without --ppsbn; add --ppsbn");
  }
  refuse(s.subwords == "bpe", {"--min-frequency"},
         "with --subwords bpe, which knows every word; add --subwords word");
  refuse(s.subwords == "word", {"--vocabulary-size"},
         "with --subwords word, whose size follows from --min-frequency; add --subwords bpe");
  refuse(s.toy, {"--data", "--text", "--source", "--target"},
         "with --toy, which makes its own corpus; leave one of the two out");
  refuse(s.toy, {"--preset", "--test"},
         "with --toy, which brings settings of its own and has no test splits");
  refuse_idle_search_options(app, s);
}

}  // namespace

void declare_options(CLI::App& app, Multi30kSettings& s, bool one_model) {
  // Their own text beside the type would repeat in every line of --help.
  const auto quiet = [](CLI::Validator range) { return range.description(""); };
  const CLI::Validator share = quiet(CLI::Range(0.0, 0.999));
  add_common_options(app, s.common, {"float32", "float64", "bf16"});
  add_choice(app, "--preset", s.preset, preset_names(), "Another set of defaults: README.md");
  app.add_option("--data", s.data,
                 "Folder of the Multi30K repository (default: $MULTI30K_DIR, else data/multi30k)");
  add_choice(app, "--text", s.text, {"tok", "raw"}, "The tokenised or the raw text");
  app.add_option("--source", s.source, "Source language: a file suffix")->capture_default_str();
  app.add_option("--target", s.target, "Target language: a file suffix")->capture_default_str();
  app.add_flag("--toy", s.toy, "A small corpus made by a grammar, with settings to match");
  const auto whole = [&](const char* name, int64_t& value, int64_t smallest, const char* text) {
    app.add_option(name, value, text)
        ->check(quiet(CLI::Range(smallest, int64_t{1} << 40)))
        ->type_name("INT")
        ->capture_default_str();
  };
  add_choice(app, "--subwords", s.subwords, {"bpe", "word"},
             "Tokens: byte-pair encoding of the training text, or whole words");
  add_choice(app, "--vocabularies", s.vocabularies, {"auto", "shared", "separate"},
             "Of source and target; auto: shared with bpe, separate with word");
  whole("--vocabulary-size", s.vocabulary_size, 1, "Subwords of a vocabulary, at most");
  whole("--min-frequency", s.min_frequency, 1, "Rarer words are unknown to the vocabulary");

  whole("--layers", s.layers, 1, "Layers of the encoder, and of the decoder");
  whole("--d-model", s.d_model, 1, "Model width");
  whole("--heads", s.heads, 1, "Attention heads");
  whole("--ffn", s.ffn, 1, "Hidden width of the feed-forward blocks");
  app.add_option("--dropout", s.dropout, "Dropout of embeddings and sublayers")
      ->check(share)
      ->capture_default_str();
  add_choice(app, "--norm", s.norm, {"pre", "post"}, "Where the layer norms stand");
  add_choice(app, "--activation", s.activation, {"relu", "gelu", "gelu_tanh"},
             "Of the feed-forward blocks");
  add_choice(app, "--attention", s.attention, {"softmax", "rmfa", "exact"},
             "Softmax, random Maclaurin features, or the kernel exactly");
  app.add_option("--attention-dropout", s.attention_dropout, "Dropout of softmax weights")
      ->check(share)
      ->capture_default_str();
  app.add_option("--kernel", s.kernel, "Dot-product kernel: " + nn::dot_product_kernel_names())
      ->capture_default_str();
  app.add_option("--logit-scale", s.logit_scale, "tau: logits are tau q.k/sqrt(d)")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_flag("--train-logit-scale", s.train_logit_scale, "Train tau, from --logit-scale on");
  whole("--features", s.features, 1, "Random features D");
  add_choice(app, "--draws", s.draws, nn::draw_method_names(), "How features are drawn");
  app.add_option("--redraw", s.redraw, "New features in training: step, epoch, every:K, never")
      ->capture_default_str();
  app.add_option("--eval-draws", s.eval_draws,
                 "Fixed draws whose log-probabilities evaluation averages")
      ->check(quiet(CLI::Range(1, 1000)))
      ->capture_default_str();
  app.add_option("--denominator", s.denominator,
                 "Small denominators of RMFA: floor (0.001 a visible key), floor:DELTA, none")
      ->capture_default_str();
  app.add_flag("--ppsbn", s.ppsbn, "ppSBN around the attention");
  add_choice(
      app, "--presbn", s.presbn, {"auto", "batch", "row"},
      "preSBN statistics; auto: batch in the encoder (the paper; row is better), row elsewhere");
  app.add_flag("--share-embeddings,!--separate-embeddings", s.share_embeddings,
               "One embedding table for source, target and output");
  app.add_option("--qkv-gain", s.qkv_gain,
                 "Gain on the initial query, key and value projections (fairseq: 0.7071)")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();

  whole("--epochs", s.epochs, 1, "Passes over the training pairs");
  whole("--max-updates", s.max_updates, 0, "Stop after this many updates; 0: no limit");
  whole("--batch-tokens", s.batch_tokens, 1, "Sentences x longest sentence of a batch, at most");
  whole("--accumulate", s.accumulate, 1, "Batches an update");
  app.add_option("--lr", s.lr, "Peak learning rate")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  whole("--warmup", s.warmup, 0, "Updates of warm-up");
  app.add_option("--warmup-from", s.warmup_from, "Learning rate that the warm-up rises from")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  add_choice(app, "--schedule", s.schedule, {"inverse-sqrt", "constant", "one-cycle"},
             "Learning rate after the warm-up");
  app.add_option("--label-smoothing", s.label_smoothing, "Of the training loss")
      ->check(share)
      ->capture_default_str();
  app.add_option("--clip", s.clip, "Largest global gradient norm; 0: not clipped")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  app.add_option("--weight-decay", s.weight_decay, "AdamW decay (not on norms, biases, ppSBN)")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  app.add_option("--adam-beta1", s.adam_beta1, "Decay of Adam's mean gradient")
      ->check(share)
      ->capture_default_str();
  app.add_option("--adam-beta2", s.adam_beta2, "Decay of Adam's mean squared gradient")
      ->check(quiet(CLI::Range(0.0, 0.999999)))
      ->capture_default_str();
  app.add_option("--adam-eps", s.adam_eps, "Added to Adam's divisor")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  whole("--patience", s.patience, 0,
        "Stop after so many epochs without a lower validation loss; 0: never");
  whole("--average", s.average, 0,
        "The final model is the mean of so many last epochs; 0: the epoch of the lowest loss");
  whole("--keep", s.keep, 0, "Last epochs kept on disk; 0: as many as --average needs");
  app.add_option("--checkpoint-minutes", s.checkpoint_minutes,
                 "Between checkpoints within an epoch; 0: at the ends of epochs alone")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  add_choice(app, "--graph", s.graph, {"on", "off"},
             "Record an update once a batch shape and replay it (CUDA)");
  whole("--shape-multiple", s.shape_multiple, 0,
        "Round rows and widths of batches up to it; 0: 8 where updates are replayed, else 1");
  whole("--valid-bleu-sentences", s.valid_bleu_sentences, 0,
        "Validation sentences to translate after an epoch; 0: all");
  whole("--bleu-every", s.bleu_every, 1, "Epochs from one translation to the next");
  declare_search_options(app, s);
  app.add_option("--test", s.test,
                 "Splits that the final model translates: test_2016_flickr,... or none")
      ->delimiter(',')
      ->type_name("LIST")
      ->default_str(fmt::format("{}", fmt::join(s.test, ",")));
  app.parse_complete_callback([&app, &s, one_model] {
    refuse_idle_options(app, s, one_model);
    if (s.test == std::vector<std::string>{"none"}) s.test.clear();
  });
}

void declare_search_options(CLI::App& app, Multi30kSettings& s) {
  app.add_option("--beam", s.beam, "Hypotheses of the beam search over test sentences; 1: greedy")
      ->check(CLI::Validator(CLI::Range(1, 1000)).description(""))
      ->type_name("INT")
      ->capture_default_str();
  app.add_option("--length-penalty", s.length_penalty,
                 "Scores of the beam search are divided by length^penalty")
      ->check(CLI::Validator(CLI::Range(0.0, 10.0)).description(""))
      ->capture_default_str();
  app.parse_complete_callback([&] { refuse_idle_search_options(app, s); });
}

}  // namespace macgrad::experiments
