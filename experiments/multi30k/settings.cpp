// The options, their checks and their JSON. An option that the chosen attention never reads is
// refused, and so is a combination that would fail or diverge only after minutes of training.
#include "experiments/multi30k/settings.h"

#include <algorithm>
#include <cmath>
#include <type_traits>

#include "core/step_graph.h"
#include "experiments/multi30k/presets.h"
#include "nn/allocation.h"

namespace macgrad::experiments {
namespace {

nn::AttentionSettings attention_settings(const Multi30kSettings& s) {
  nn::AttentionSettings a;
  a.kind = nn::parse_attention(s.attention);
  a.kernel = s.kernel;
  a.logit_scale = s.logit_scale;
  a.train_logit_scale = s.train_logit_scale;
  a.draws = nn::draw_method(s.draws);
  a.features = s.features;
  a.redraw = nn::RedrawPolicy::parse(s.redraw);
  a.eval_draws = static_cast<int>(s.eval_draws);
  a.denominator = nn::parse_denominator(s.denominator);
  a.ppsbn = s.ppsbn;
  a.pre_sbn = nn::parse_pre_sbn(s.presbn);
  a.dropout = s.attention_dropout;
  return a;
}

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
  add_choice(app, "--denominator", s.denominator, {"floor", "none"}, "Small denominators of RMFA");
  app.add_flag("--ppsbn", s.ppsbn, "ppSBN around the attention");
  add_choice(app, "--presbn", s.presbn, {"auto", "batch", "row"},
             "preSBN statistics; auto: batch in the encoder, row in the decoder");
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

void check_settings(const Multi30kSettings& s) {
  require(s.toy || s.source != s.target,
          "--source and --target are both \"{}\"; choose two languages, for instance --source de "
          "--target en",
          s.source);
  require(!s.share_embeddings || s.shared_vocabulary(),
          "--share-embeddings needs one vocabulary of both languages; add --vocabularies shared");
  require(s.d_model % s.heads == 0,
          "--d-model {} cannot be split over --heads {}; make it a multiple of the heads",
          s.d_model, s.heads);
  require(s.d_model % 2 == 0, "--d-model {} must be even, for sine and cosine positions",
          s.d_model);
  for (const double value :
       {s.lr, s.warmup_from, s.clip, s.weight_decay, s.logit_scale, s.qkv_gain, s.adam_beta1,
        s.adam_beta2, s.adam_eps, s.checkpoint_minutes, s.length_penalty})
    require(std::isfinite(value),
            "--lr, --warmup-from, --clip, --weight-decay, --logit-scale, --qkv-gain, --adam-beta1, "
            "--adam-beta2, --adam-eps, --checkpoint-minutes and --length-penalty must be finite");
  require(s.warmup_from <= s.lr, "--warmup-from {} must not be above --lr {}", s.warmup_from, s.lr);
  require(s.keep == 0 || s.keep >= s.average,
          "--keep {} keeps fewer epochs than --average {} needs; raise it, or leave it out", s.keep,
          s.average);
  const nn::AttentionSettings attention = attention_settings(s);
  if (attention.kind == nn::AttentionKind::softmax) return;
  const nn::DotProductKernel kernel = nn::dot_product_kernel(s.kernel);
  if (std::isinf(kernel.radius())) return;
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
      "--logit-scale {} is too large for --kernel {}: with {} dimensions a head it must be below "
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

namespace {

// Every setting but the common ones, by its name in JSON.
template <class Settings, class F>
void each_setting(Settings& s, F&& f) {
  f("preset", s.preset);
  f("toy", s.toy);
  f("toy_train_pairs", s.toy_train_pairs);
  f("toy_valid_pairs", s.toy_valid_pairs);
  f("data", s.data);
  f("text", s.text);
  f("source", s.source);
  f("target", s.target);
  f("subwords", s.subwords);
  f("vocabularies", s.vocabularies);
  f("vocabulary_size", s.vocabulary_size);
  f("min_frequency", s.min_frequency);
  f("layers", s.layers);
  f("d_model", s.d_model);
  f("heads", s.heads);
  f("ffn", s.ffn);
  f("dropout", s.dropout);
  f("share_embeddings", s.share_embeddings);
  f("norm", s.norm);
  f("activation", s.activation);
  f("attention", s.attention);
  f("attention_dropout", s.attention_dropout);
  f("kernel", s.kernel);
  f("logit_scale", s.logit_scale);
  f("train_logit_scale", s.train_logit_scale);
  f("features", s.features);
  f("draws", s.draws);
  f("redraw", s.redraw);
  f("eval_draws", s.eval_draws);
  f("denominator", s.denominator);
  f("ppsbn", s.ppsbn);
  f("presbn", s.presbn);
  f("qkv_gain", s.qkv_gain);
  f("epochs", s.epochs);
  f("max_updates", s.max_updates);
  f("batch_tokens", s.batch_tokens);
  f("accumulate", s.accumulate);
  f("lr", s.lr);
  f("warmup", s.warmup);
  f("warmup_from", s.warmup_from);
  f("schedule", s.schedule);
  f("label_smoothing", s.label_smoothing);
  f("clip", s.clip);
  f("graph", s.graph);
  f("shape_multiple", s.shape_multiple);
  f("weight_decay", s.weight_decay);
  f("adam_beta1", s.adam_beta1);
  f("adam_beta2", s.adam_beta2);
  f("adam_eps", s.adam_eps);
  f("patience", s.patience);
  f("average", s.average);
  f("keep", s.keep);
  f("checkpoint_minutes", s.checkpoint_minutes);
  f("valid_bleu_sentences", s.valid_bleu_sentences);
  f("bleu_every", s.bleu_every);
  f("beam", s.beam);
  f("length_penalty", s.length_penalty);
  f("test", s.test);
}

// A file may hold what no command line gives: each value goes through the checks of its option.
void check_values(const Multi30kSettings& s) {
  Multi30kSettings ignored;
  CLI::App app;
  declare_options(app, ignored);
  each_setting(s, [&](const std::string& name, const auto& value) {
    using T = std::decay_t<decltype(value)>;
    std::string option_name = fmt::format("--{}", name);
    std::replace(option_name.begin(), option_name.end(), '_', '-');
    CLI::Option* option = app.get_option_no_throw(option_name);
    if constexpr (std::is_same_v<T, int64_t> || std::is_same_v<T, double> ||
                  std::is_same_v<T, std::string>) {
      if (option == nullptr || name == "data") return;  // a path may be anything
      option->add_result(fmt::format("{}", value));
      option->run_callback();
    }
  });
}

}  // namespace

Json to_json(const Multi30kSettings& s) {
  Json json;
  each_setting(s, [&](const char* name, const auto& value) { json[name] = value; });
  json["common"] = to_json(s.common);
  return json;
}

Multi30kSettings settings_from_json(const Json& json) {
  Multi30kSettings s;
  try {
    each_setting(s, [&](const char* name, auto& value) {
      const Json& found = json.at(name);
      constexpr bool whole = std::is_same_v<std::decay_t<decltype(value)>, int64_t>;
      // The JSON library would cut off the fraction.
      require(!whole || found.is_number_integer(),
              "settings of a run: {} is {}, not a whole number", name, found.dump());
      found.get_to(value);
    });
    s.common = common_options_from_json(json.at("common"));
    check_values(s);
  } catch (const CLI::Error& error) {
    throw Error("settings of a run: {}", error.what());
  } catch (const nlohmann::json::exception& error) {
    throw Error("settings of a run: {}; they were written by another version of multi30k",
                error.what());
  }
  return s;
}

}  // namespace macgrad::experiments
