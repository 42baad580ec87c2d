// Loading a model for translation, and batches of lines through it.
#include "macgrad/experiments/multi30k/translator.h"

#include "macgrad/experiments/multi30k/checkpoint.h"
#include "macgrad/experiments/multi30k/evaluation.h"
#include "macgrad/experiments/multi30k/run_files.h"

namespace macgrad::experiments {

Translator::Translator(const std::string& checkpoint, Device device)
    : settings_(checkpoint_settings(checkpoint)),
      device_(device),
      codecs_(load_codecs(settings_, folder_of_run(checkpoint))),
      model_(std::make_unique<nn::Transformer>(
          transformer_settings(settings_, codecs_.source.size(), codecs_.target.size()))) {
  model_->to(dtype_of(settings_.common));
  try {
    load_model(checkpoint, *model_);
  } catch (const Error& error) {
    throw Error("{}; do the vocabularies beside it belong to it?", error.what());
  }
  model_->to(device_);
  model_->eval();
}

std::vector<std::string> Translator::translate(const std::vector<std::string>& lines,
                                               const nn::SearchSettings& search) {
  return *experiments::translate(*model_, codecs_, lines, settings_.batch_tokens, device_, search);
}

}  // namespace macgrad::experiments
