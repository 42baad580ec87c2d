// A trained model with the codecs of its text, ready to translate lines of text.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "macgrad/experiments/multi30k/data.h"
#include "macgrad/experiments/multi30k/settings.h"
#include "macgrad/nn/decoding.h"

namespace macgrad::experiments {

class Translator {
 public:
  /// Reads a checkpoint and the vocabularies beside it. `device`: where the model works. Throws an
  /// Error naming the file that is missing, broken, or of another model.
  Translator(const std::string& checkpoint, Device device);

  /// As experiments::translate, in the batches of the run. Lines must be written as the training
  /// text was: tokenised and lower-cased for --text tok.
  std::vector<std::string> translate(const std::vector<std::string>& lines,
                                     const nn::SearchSettings& search);

 private:
  Multi30kSettings settings_;
  Device device_;
  TextCodecs codecs_;
  std::unique_ptr<nn::Transformer> model_;
};

}  // namespace macgrad::experiments
