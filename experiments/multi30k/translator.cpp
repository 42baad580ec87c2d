// Loading a model for translation, and batches of lines through it.
#include "experiments/multi30k/translator.h"

#include <filesystem>

#include "experiments/common/batches.h"
#include "experiments/common/bleu.h"
#include "experiments/multi30k/checkpoint.h"
#include "experiments/multi30k/evaluation.h"

namespace macgrad::experiments {
namespace fs = std::filesystem;
namespace {

constexpr int64_t kBatchTokens = 4096;

Vocabulary vocabulary_beside(const std::string& checkpoint, const char* name) {
  const std::string path = (fs::path(checkpoint).parent_path() / name).string();
  require(fs::exists(path),
          "{}: missing, but {} needs it: a run leaves both in one folder, so copy it there", path,
          checkpoint);
  return Vocabulary::load(path);
}

}  // namespace

Translator::Text Translator::load_text(const std::string& checkpoint,
                                       const Multi30kSettings& settings) {
  return {vocabulary_beside(checkpoint, "source.vocab"),
          vocabulary_beside(checkpoint, "target.vocab"), settings.text == "raw" && !settings.toy};
}

std::vector<int64_t> Translator::Text::encode(const std::string& line) const {
  return source.encode(raw ? tokenize_13a(line) : line);
}

Translator::Translator(const std::string& checkpoint, Device device) : device_(device) {
  SavedModel saved = read_saved_model(checkpoint);
  settings_ = saved.settings;
  text_ = std::make_unique<Text>(load_text(checkpoint, settings_));
  model_ = std::make_unique<nn::Transformer>(
      transformer_settings(settings_, text_->source.size(), text_->target.size()));
  model_->to(settings_.dtype());
  try {
    model_->load_state_dict(saved.state);
  } catch (const Error& error) {
    throw Error("{}: {}; do the vocabularies beside it belong to it?", checkpoint, error.what());
  }
  model_->to(device_);
  model_->eval();
}

std::vector<std::string> Translator::translate(const std::vector<std::string>& lines,
                                               const nn::SearchSettings& search) {
  EncodedPairs pairs;
  std::vector<size_t> places;  // of the lines with words
  for (size_t i = 0; i < lines.size(); ++i) {
    std::vector<int64_t> ids = text_->encode(lines[i]);
    if (ids.empty()) continue;
    pairs.source.push_back(std::move(ids));
    pairs.target.emplace_back();
    places.push_back(i);
  }
  std::vector<std::string> translations(lines.size());
  const auto found =
      experiments::translate(*model_, text_->target, ordered_batches(pairs, {kBatchTokens, 1}),
                             pairs.size(), device_, {}, search);
  for (size_t i = 0; i < places.size(); ++i) translations[places[i]] = found->at(i);
  return translations;
}

}  // namespace macgrad::experiments
