#include "macgrad/experiments/multi30k/run_files.h"

#include <charconv>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "macgrad/experiments/common/progress.h"

namespace macgrad::experiments {
namespace fs = std::filesystem;

std::string checkpoint_path(const std::string& out) {
  return (fs::path(out) / "checkpoint.safetensors").string();
}

std::string checkpoint_at(const std::string& path) {
  return fs::is_directory(path) ? checkpoint_path(path) : path;
}

std::string folder_of_run(const std::string& checkpoint) {
  const fs::path folder = fs::absolute(checkpoint).parent_path();
  // The models of single epochs lie one folder deeper.
  return (folder.filename() == "epochs" ? folder.parent_path() : folder).string();
}

namespace {

constexpr char kNoEpochs[] = "{}: this run kept no epochs; leave --average out";

// N of "epoch-N.safetensors"; 0 for other names.
int64_t epoch_of(std::string_view name) {
  constexpr std::string_view begin = "epoch-", end = ".safetensors";
  if (!name.starts_with(begin) || !name.ends_with(end)) return 0;
  int64_t epoch = 0;
  const char* last = name.data() + name.size() - end.size();
  const auto parsed = std::from_chars(name.data() + begin.size(), last, epoch);
  return parsed.ec == std::errc() && parsed.ptr == last ? epoch : 0;
}

// Epochs on disk.
std::vector<fs::path> epoch_files(const fs::path& folder) {
  std::vector<fs::path> files;
  if (!fs::is_directory(folder)) return files;
  for (const auto& entry : fs::directory_iterator(folder))
    if (epoch_of(entry.path().filename().string()) > 0) files.push_back(entry.path());
  return files;
}

}  // namespace

void check_no_run(const std::string& out) {
  const std::string checkpoint = checkpoint_path(out);
  require(out.empty() || !fs::exists(checkpoint),
          "--out {} holds a run with its {}; continue it with --resume {}, or choose another --out",
          out, checkpoint, out);
}

void check_average(const Multi30kSettings& settings) {
  const std::string& out = settings.common.out;
  if (settings.average == 0 || !epoch_files(fs::path(out) / "epochs").empty()) return;
  const std::string path = checkpoint_path(out);
  const RunState state = checkpoint_state(path);
  if (state.epochs.empty()) return;
  const int64_t updates = state.place.updates, limit = checkpoint_settings(path).max_updates;
  // A run that --max-updates ended may stand within an epoch, which then goes on.
  const bool epoch_ended = limit == 0 || updates < limit;
  const bool last =
      state.epochs.back().epoch >= settings.epochs ||
      (settings.patience > 0 && state.epochs_without_improvement() >= settings.patience);
  require(!(epoch_ended && last) && (settings.max_updates == 0 || updates < settings.max_updates),
          kNoEpochs, out);
}

RunFiles::RunFiles(const Multi30kSettings& settings, const TranslationData& data, bool resume)
    : settings_(settings),
      data_(data),
      out_(settings.common.out, "multi30k", resume ? Holds::this_run : Holds::other_results) {
  const std::string epochs = out_.file("epochs");
  if (fs::is_directory(epochs)) remove_abandoned_files(epochs);
  if (resume) return;
  // Another run may have begun there while this one read its data.
  check_no_run(settings.common.out);
  // What an earlier run without a checkpoint left, which would pass for this one's.
  for (const fs::path& file : epoch_files(epochs)) fs::remove(file);
  fs::remove(out_.file("results.json"));
  save_codecs(settings, data.codecs(), out_.path());
}

void RunFiles::save(nn::Transformer& model, const nn::Adam& optimizer, const RunState& state) {
  save_checkpoint(checkpoint_path(out_.path()), model, optimizer, state, settings_, data_.crc32());
}

RunState RunFiles::load(nn::Transformer& model, nn::Adam& optimizer) const {
  return load_checkpoint(checkpoint_path(out_.path()), model, optimizer, data_.crc32());
}

Json RunFiles::saved_settings() const {
  return to_json(checkpoint_settings(checkpoint_path(out_.path())));
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
  require(!files.empty(), kNoEpochs, out_.path());
  if (static_cast<int64_t>(files.size()) < settings_.average)
    say(stderr, "note: --average {}: {} of the last epochs are there; the mean is theirs\n",
        settings_.average, files.size());
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
