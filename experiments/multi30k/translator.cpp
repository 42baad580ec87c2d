// Loading a model for translation, and batches of lines through it.
#include "experiments/multi30k/translator.h"

#include "experiments/common/batches.h"
#include "experiments/common/unicode.h"
#include "experiments/multi30k/checkpoint.h"
#include "experiments/multi30k/evaluation.h"
#include "experiments/multi30k/run_files.h"

namespace macgrad::experiments {
namespace {

constexpr int64_t kBatchTokens = 4096;

}  // namespace

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
  EncodedPairs pairs;
  std::vector<size_t> places;  // of the lines with words
  for (size_t i = 0; i < lines.size(); ++i) {
    if (split_words(lines[i]).empty()) continue;
    std::vector<int64_t> ids = codecs_.source.encode(lines[i]);
    if (ids.empty()) continue;
    pairs.source.push_back(std::move(ids));
    pairs.target.emplace_back();
    places.push_back(i);
  }
  std::vector<std::string> translations(lines.size());
  const auto found =
      experiments::translate(*model_, codecs_.target, ordered_batches(pairs, kBatchTokens),
                             pairs.size(), device_, {}, search);
  for (size_t i = 0; i < places.size(); ++i) translations[places[i]] = found->at(i);
  return translations;
}

}  // namespace macgrad::experiments
