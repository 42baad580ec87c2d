// A real training step of a model that the programs can build, which can be run again and again:
// the same sentences, dropout and feature draws, running statistics as they were. What the commands
// of inspect look at.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "macgrad/experiments/multi30k/training.h"

namespace macgrad::experiments {

/// Exit code of a command that found what it looks for (a difference, a wrong gradient, a NaN); 1
/// and 2 mean that it could not look.
inline constexpr int kFound = 3;

struct StepSettings {
  StepSettings() { model.graph = "off"; }
  Multi30kSettings model;  // data, model and training, as in multi30k
  std::string config;      // settings.json of a run; other options given change it
  std::string checkpoint;  // a file that training left; other options given change its settings
  int64_t sentences = 4;   // of a step; 0: a whole batch of training, each a step of its own
};

/// What --config or --checkpoint of argv say, else defaults, those of --toy among them. Before the
/// options are declared, so that --help shows the defaults in force.
StepSettings step_settings(int argc, const char* const* argv);

/// What a command does with the model besides a forward pass in training mode. Options of multi30k
/// that only other uses read are errors, and not in its --help.
struct StepUse {
  bool gradients = true;  // of the training loss; else it only evaluates
  bool updates = false;   // a learning rate, and what Adam reads
  bool files = true;      // writes to --out
};

/// The options of multi30k that the command reads, and those above.
void declare_step_options(Options& options, StepSettings& settings, const StepUse& use);

class ModelStep {
 public:
  /// Reads data and checkpoint. A training checkpoint brings its optimizer (in its own precision)
  /// and the place of its next update in the data. Throws as multi30k does.
  explicit ModelStep(const StepSettings& settings);

  /// Number of the update under way, from 1.
  int64_t step() const { return step_; }
  double learning_rate() const { return trainer_.learning_rate(step_); }
  nn::Transformer& model() { return trainer_.model(); }
  const Multi30kSettings& settings() const { return settings_.model; }

  /// Mean loss a token of this step's sentences: a forward pass that repeats itself to the bit.
  Variable loss();
  /// Adam's update with the gradients in grad(), clipped as in training; returns their norm before.
  double update();
  /// Goes on to the next step and its sentences.
  void next();

  /// Tokens of a sentence of this step: source with <eos>, and what the decoder reads.
  std::vector<std::string> source_tokens(int64_t sentence) const;
  std::vector<std::string> target_tokens(int64_t sentence) const;
  int64_t rows() const { return batch_.source.rows; }
  const BatchTensors& tensors() const { return tensors_; }

  /// A line for titles: data, model, attention.
  std::string title() const;
  Json data_facts() const;
  const EncodedPairs& valid() const { return data_.valid; }

 private:
  void begin_epoch();
  void skip_batches(int64_t count);
  void take_sentences();
  // Running statistics, as they were when the step began.
  void keep_buffers();
  void restore_buffers();

  StepSettings settings_;
  TranslationData data_;
  Trainer trainer_;
  int64_t step_ = 1;
  int64_t epoch_ = 1;
  std::vector<size_t> order_;  // pairs of the epoch, in the order of training
  size_t next_pair_ = 0;
  std::vector<Batch> batches_;  // of the epoch, for whole batches
  size_t next_batch_ = 0;
  Batch batch_;
  BatchTensors tensors_;
  std::map<std::string, Tensor> buffers_;
};

}  // namespace macgrad::experiments
