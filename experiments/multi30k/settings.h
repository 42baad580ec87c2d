// What one run of the translation experiment does: data, model, training. Defaults are those of the
// small model on Multi30K; make_toy() puts those of the toy corpus in their place.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "macgrad/experiments/common/arguments.h"
#include "macgrad/experiments/common/bleu.h"
#include "macgrad/nn/transformer.h"

namespace macgrad::experiments {

struct Multi30kSettings {
  CommonOptions common;
  std::string preset = "none";  // the table that the other defaults came from (presets.h)

  // Data.
  bool toy = false;
  std::string data;          // folder; "": $MULTI30K_DIR, else ./data/multi30k
  std::string text = "tok";  // tok | raw
  std::string source = "de";
  std::string target = "en";
  std::string subwords = "bpe";       // bpe | word
  std::string vocabularies = "auto";  // auto | shared | separate
  int64_t vocabulary_size = 10000;    // of subwords
  int64_t min_frequency = 2;          // of words
  int64_t toy_train_pairs = 2000;
  int64_t toy_valid_pairs = 200;

  // Model.
  int64_t layers = 3;  // of the encoder, and of the decoder
  int64_t d_model = 256;
  int64_t heads = 8;
  int64_t ffn = 1024;
  double dropout = 0.1;
  bool share_embeddings = false;  // one table for source, target and output
  std::string norm = "pre";
  std::string activation = "relu";
  std::string attention = "softmax";
  double attention_dropout = 0.0;
  std::string map = "maclaurin";  // of --attention linear
  std::string matrix = "auto";    // projection matrix of the map; auto: the map's own
  std::string kernel = "exp";
  double logit_scale = nn::kAutomaticScale;
  bool train_logit_scale = false;
  int64_t features = 128;
  std::string draws = "optimal";
  std::string redraw = "step";
  int64_t eval_draws = 1;
  std::string denominator = "floor";
  bool ppsbn = false;
  std::string presbn = "row";
  double qkv_gain = 1.0;  // on the Xavier values of query, key and value projections

  // Training.
  int64_t epochs = 10;
  int64_t max_updates = 0;      // 0: no limit
  int64_t batch_tokens = 4096;  // padding included
  int64_t accumulate = 1;       // batches per update
  double lr = 1e-3;             // peak
  int64_t warmup = 200;         // updates
  double warmup_from = 0.0;     // learning rate that the warm-up rises from
  std::string schedule = "inverse-sqrt";
  double label_smoothing = 0.1;
  double clip = 1.0;  // global gradient norm; 0: not clipped
  double weight_decay = 0.0;
  double adam_beta1 = 0.9;
  double adam_beta2 = 0.98;
  double adam_eps = 1e-9;
  int64_t patience = 0;           // epochs without a lower validation loss; 0: no early stopping
  int64_t average = 0;            // epochs whose mean is the final model; 0: the best epoch's
  int64_t keep = 0;               // epochs on disk; 0: as many as the average needs
  double checkpoint_minutes = 5;  // between checkpoints within an epoch; 0: none
  std::string graph = "on";       // on | off: capture and replay updates where the device can
  int64_t shape_multiple = 0;     // rows and widths of training batches; 0: 8 where updates replay

  // Evaluation.
  int64_t valid_bleu_sentences = 0;  // translated after an epoch; 0: all
  int64_t bleu_every = 1;            // epochs from one translation to the next
  int64_t beam = 1;                  // 1: greedy
  double length_penalty = 1.0;       // a translation's score is log-probability / length^penalty
  std::vector<std::string> test;     // splits that the final model translates

  /// Epochs that stay on disk.
  int64_t kept_epochs() const { return keep > 0 ? keep : average; }
  /// Source and target are coded alike; auto: with subwords.
  bool shared_vocabulary() const;
  /// Sentences as written; the toy corpus is tokenised.
  bool raw_text() const;
  Device device() const;
  /// Whether updates are captured and replayed: on a device that can, with one batch per update.
  bool replays() const;
  /// Raw text is scored with sacreBLEU's default tokenisation; tokenised text as it is.
  BleuOptions bleu() const;
};

/// What another value of a setting makes of a run.
enum class SettingRole {
  model,  // another run, with a curve of its own
  seed,   // another run of the same curve
  end,    // a curve that ends elsewhere; may change when a run goes on
  use,    // other results of the same training; may change
  place,  // nothing: where and how it is computed and kept; may change
  label   // nothing: where other settings came from
};

/// Every setting, the common ones too, by its name in JSON; `model` where this version has none.
SettingRole setting_role(const std::string& name);

/// Whether a run can go on with another value.
bool may_change(SettingRole role);
/// The options, such as "--epochs", whose settings may.
std::vector<std::string> changeable_options();

/// A model and settings that learn the toy corpus in seconds.
void make_toy(Multi30kSettings& settings);

/// Declares every option. Parsing then also refuses options that the chosen attention, corpus or
/// device would ignore, saying what they need; `one_model` false leaves those of attentions alone,
/// for a command that trains several. `settings` must outlive the options.
void declare_options(Options& options, Multi30kSettings& settings, bool one_model = true);

/// --beam and --length-penalty alone, for commands that only translate; parsing refuses a length
/// penalty that nothing reads.
void declare_search_options(Options& options, Multi30kSettings& settings);

/// Throws an Error that says what to change for values that do not go together (a kernel of finite
/// radius without ppSBN, a width that the heads do not divide, ...).
void check_settings(const Multi30kSettings& settings);

nn::AttentionSettings attention_settings(const Multi30kSettings& settings);
nn::TransformerSettings transformer_settings(const Multi30kSettings& settings,
                                             int64_t source_vocabulary, int64_t target_vocabulary);

Json to_json(const Multi30kSettings& settings);
/// What to_json wrote. An Error when a setting is missing or of another type.
Multi30kSettings settings_from_json(const Json& json);

}  // namespace macgrad::experiments
