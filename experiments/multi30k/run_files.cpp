#include "experiments/multi30k/run_files.h"

#include <filesystem>

#include "experiments/multi30k/run.h"

namespace macgrad::experiments {
namespace fs = std::filesystem;

std::string checkpoint_path(const std::string& out) {
  return (fs::path(out) / "checkpoint.safetensors").string();
}

RunFiles::RunFiles(const Multi30kSettings& settings, const TranslationData& data, bool resume)
    : settings_(settings),
      data_(data.facts.at("crc32")),
      out_(settings.common.out, "multi30k", resume) {
  // Epochs of an earlier run that never saved a checkpoint.
  if (!resume) fs::remove_all(out_.file("epochs"));
  if (!resume) save_codecs(settings, data.codecs(), out_.path());
}

void RunFiles::save(nn::Transformer& model, const nn::Adam& optimizer, const RunState& state) {
  save_checkpoint(checkpoint_path(out_.path()), model, optimizer, state, settings_, data_);
}

RunState RunFiles::load(nn::Transformer& model, nn::Adam& optimizer) const {
  return load_checkpoint(checkpoint_path(out_.path()), model, optimizer, data_);
}

std::string RunFiles::epoch_file(int64_t epoch) const {
  return out_.file(fmt::format("epochs/epoch-{}.safetensors", epoch));
}

void RunFiles::save_epoch(nn::Transformer& model, int64_t epoch, bool best) {
  if (best) save_model(out_.file("best.safetensors"), model, settings_);
  const int64_t kept = settings_.kept_epochs();
  if (kept == 0) return;
  fs::create_directories(out_.file("epochs"));
  save_model(epoch_file(epoch), model, settings_);
  for (int64_t old = epoch - kept; old > 0 && fs::remove(epoch_file(old)); --old) {
  }
}

Json RunFiles::load_final(nn::Transformer& model, const RunState& state) {
  const std::string averaged = out_.file("averaged.safetensors");
  const std::string best = out_.file("best.safetensors");
  if (settings_.average == 0) {
    // Without a finite validation loss there is no best epoch, and the last model stays.
    if (state.best_epoch > 0) load_model(best, model);
    return {{"file", state.best_epoch > 0 ? "best.safetensors" : "checkpoint.safetensors"},
            {"epochs", {state.best_epoch}}};
  }
  std::vector<std::string> files;
  Json epochs = Json::array();
  const int64_t last = state.epochs.back().epoch;
  for (int64_t e = std::max<int64_t>(1, last - settings_.average + 1); e <= last; ++e) {
    // Missing when --average was raised on the way.
    if (!fs::exists(epoch_file(e))) continue;
    files.push_back(epoch_file(e));
    epochs.push_back(e);
  }
  average_models(files, averaged, model, settings_);
  load_model(averaged, model);
  return {{"file", "averaged.safetensors"}, {"epochs", epochs}};
}

std::string RunFiles::what_stays() const {
  const std::string path = checkpoint_path(out_.path());
  return fs::exists(path) ? fmt::format("The last checkpoint stays in {}", path)
                          : "There is no checkpoint: no epoch had ended";
}

}  // namespace macgrad::experiments
