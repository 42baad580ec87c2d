// The checkpoints and model files of one run, by their place in its folder:
//   checkpoint.safetensors          what training goes on from
//   epochs/epoch-12.safetensors     models of the last epochs, as many as --keep says
//   best.safetensors                the model of the lowest validation loss
//   averaged.safetensors            the mean of the last --average epochs
#pragma once

#include <string>

#include "macgrad/experiments/common/output_files.h"
#include "macgrad/experiments/multi30k/checkpoint.h"
#include "macgrad/experiments/multi30k/data.h"

namespace macgrad::experiments {

/// The checkpoint that a run in folder `out` goes on from.
std::string checkpoint_path(const std::string& out);

/// `path`, or the checkpoint in it where it is a folder.
std::string checkpoint_at(const std::string& path);

/// The folder of the run that a checkpoint or model file is of, where its vocabularies lie.
std::string folder_of_run(const std::string& checkpoint);

/// Throws when a run of its own is in folder `out`.
void check_no_run(const std::string& out);

/// Throws when the run in --out has ended and its epochs, which --average needs, are not there.
void check_average(const Multi30kSettings& settings);

class RunFiles {
 public:
  /// Opens --out and saves the vocabularies there. `resume`: it holds this run's files. Settings
  /// and data must outlive the object.
  RunFiles(const Multi30kSettings& settings, const TranslationData& data, bool resume);

  const RunDirectory& out() const { return out_; }

  void save(nn::Transformer& model, const nn::Adam& optimizer, const RunState& state);
  RunState load(nn::Transformer& model, nn::Adam& optimizer) const;
  /// Those in the checkpoint.
  Json saved_settings() const;

  /// The model after an epoch; removes epochs that no average needs any more.
  void save_epoch(nn::Transformer& model, int64_t epoch, bool best);

  /// Loads the model that a run ends with, averaged or best, and says which it is.
  Json load_final(nn::Transformer& model, const RunState& state);

  /// A sentence on the checkpoint that a failed run can go on from.
  std::string what_stays() const;

 private:
  std::string epoch_file(int64_t epoch) const;

  const Multi30kSettings& settings_;
  const TranslationData& data_;
  RunDirectory out_;
};

}  // namespace macgrad::experiments
