// Settings from options, a run's JSON or a checkpoint, and the step itself. Everything random in a
// step is a function of (seed, step), so begin_step again gives the same pass again.
#include "macgrad/experiments/inspect/model_step.h"

#include <algorithm>
#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>

#include "macgrad/autograd/ops.h"
#include "macgrad/autograd/scope.h"
#include "macgrad/experiments/common/output_files.h"
#include "macgrad/experiments/common/vocabulary.h"
#include "macgrad/experiments/multi30k/checkpoint.h"
#include "macgrad/experiments/multi30k/presets.h"
#include "macgrad/experiments/multi30k/run_files.h"
#include "macgrad/experiments/multi30k/translator.h"

namespace macgrad::experiments {
namespace {

// Of a run of multi30k, or of an inspection, which has its sentences beside them.
void read_config(const std::string& path, StepSettings& s) {
  const Json json = read_json(path);
  try {
    s.model = settings_from_json(json.at("settings"));
    s.sentences = json.value("sentences", s.sentences);
    const std::string checkpoint = json.value("checkpoint", "");
    require(checkpoint.empty(), "it is of an inspection of {}; give --checkpoint {} instead",
            checkpoint, checkpoint);
  } catch (const std::exception& error) {
    throw Error("--config {}: not the settings of a run: {}", path, error.what());
  }
}

std::vector<std::string> tokens(const TextCodec& codec, const PaddedIds& block, int64_t row) {
  std::vector<std::string> list;
  for (int64_t c = 0; c < block.width; ++c) {
    const int64_t id = block.ids[static_cast<size_t>(row * block.width + c)];
    if (id == Vocabulary::kPad) break;
    list.push_back(id == Vocabulary::kBos   ? "<bos>"
                   : id == Vocabulary::kEos ? "<eos>"
                                            : codec.decode({id}));
  }
  return list;
}

}  // namespace

StepSettings step_settings(int argc, const char* const* argv) {
  StepSettings s;
  const std::string config = value_of("--config", argc, argv);
  const std::string checkpoint = checkpoint_at(value_of("--checkpoint", argc, argv));
  if (!checkpoint.empty()) {
    s.model = checkpoint_settings(checkpoint);
  } else if (!config.empty()) {
    read_config(config, s);
  } else {
    start_from_preset(s.model, argc, argv);
  }
  // What the run wrote and tested is no affair of an inspection.
  s.model.common.out.clear();
  s.model.test.clear();
  s.model.graph = "off";
  return s;
}

void declare_step_options(Options& options, StepSettings& s, const StepUse& use) {
  // First, because the checks of declare_options would blame --toy, which nobody typed.
  options.check([&options, &s] {
    s.checkpoint = checkpoint_at(s.checkpoint);
    const auto refuse = [&](bool idle, std::initializer_list<const char*> names,
                            const std::string& reason) {
      if (!idle) return;
      for (const char* name : names)
        if (options.given(name)) throw UsageError("{} has no effect {}", name, reason);
    };
    refuse(!s.config.empty(), {"--preset"}, "with --config, which brings every setting");
    refuse(!s.checkpoint.empty(),
           {"--preset", "--qkv-gain", "--vocabulary-size", "--min-frequency"},
           "with --checkpoint, which brings settings, parameters and vocabularies");
    refuse(s.model.schedule != "one-cycle", {"--epochs", "--max-updates"},
           "without --schedule one-cycle, which alone depends on the end of a run");
  });
  declare_options(options, s.model);
  options.text("--config", s.config, "settings.json of a run: its data, model and training",
               "FILE");
  options.text("--checkpoint", s.checkpoint,
               "A run, or one of its checkpoints or models: its settings", "RUN");
  options.exclude("--checkpoint", "--config");
  options.number("--sentences", s.sentences, between(0, 1 << 30),
                 "Training sentences of a step; 0: a batch of training");
  const std::string why = "has no effect on this command";
  options.refuse({"--patience", "--average", "--keep", "--checkpoint-minutes", "--graph",
                  "--shape-multiple", "--accumulate", "--valid-bleu-sentences", "--bleu-every",
                  "--beam", "--length-penalty", "--test"},
                 why);
  if (use.gradients)
    options.refuse({"--eval-draws"}, why);
  else
    options.refuse({"--sentences", "--dropout", "--attention-dropout", "--label-smoothing"}, why);
  if (!use.updates)
    options.refuse({"--lr", "--warmup", "--warmup-from", "--schedule", "--epochs", "--max-updates",
                    "--clip", "--weight-decay", "--adam-beta1", "--adam-beta2", "--adam-eps"},
                   why);
  if (!use.files) options.refuse({"--out"}, why);
}

ModelStep::ModelStep(const StepSettings& settings)
    : settings_(settings),
      data_(load_translation_data(
          settings.model, settings.checkpoint.empty() ? "" : folder_of_run(settings.checkpoint))),
      trainer_(settings_.model, data_) {
  const std::string& path = settings_.checkpoint;
  if (path.empty()) {
    begin_epoch();
  } else if (!is_training_checkpoint(path)) {
    load_model(path, trainer_.model());
    begin_epoch();
  } else {
    // The optimizer's moments have the precision of the run.
    if (checkpoint_settings(path).common.precision == settings_.model.common.precision) {
      (void)load_checkpoint(path, trainer_.model(), trainer_.optimizer(), data_.crc32());
    } else {
      check_data(path, data_.crc32());
      load_model(path, trainer_.model());
    }
    const TrainingPlace place = checkpoint_state(path).place;
    step_ = place.updates + 1;
    epoch_ = place.epoch;
    begin_epoch();
    skip_batches(place.done.updates * settings_.model.accumulate);
  }
  take_sentences();
}

Variable ModelStep::loss() {
  restore_buffers();
  model().train();
  model().begin_step(static_cast<uint32_t>(step_), epoch_);
  const Variable sum = trainer_.loss(tensors_);
  const Scope scope("loss");
  return mul(sum, 1.0 / static_cast<double>(std::max<int64_t>(tensors_.tokens, 1))).named("loss");
}

double ModelStep::update() {
  const double norm = trainer_.step().apply(step_, 0.0, 1).gradient_norm;
  trainer_.optimizer().zero_grad();
  return norm;
}

void ModelStep::next() {
  ++step_;
  take_sentences();
}

void ModelStep::begin_epoch() {
  const Multi30kSettings& s = settings_.model;
  batches_ =
      shuffled_batches(data_.train, s.batch_tokens, s.common.seed, static_cast<uint64_t>(epoch_));
  order_.clear();
  for (const Batch& b : batches_) order_.insert(order_.end(), b.indices.begin(), b.indices.end());
  next_batch_ = next_pair_ = 0;
}

void ModelStep::skip_batches(int64_t count) {
  for (; count > 0 && next_batch_ < batches_.size(); --count)
    next_pair_ += batches_[next_batch_++].indices.size();
}

void ModelStep::take_sentences() {
  if (settings_.sentences == 0 ? next_batch_ == batches_.size() : next_pair_ == order_.size()) {
    ++epoch_;
    begin_epoch();
  }
  if (settings_.sentences == 0) {
    batch_ = batches_[next_batch_++];
  } else {
    EncodedPairs pairs;
    for (; next_pair_ < order_.size() && std::ssize(pairs.source) < settings_.sentences;
         ++next_pair_) {
      pairs.source.push_back(data_.train.source[order_[next_pair_]]);
      pairs.target.push_back(data_.train.target[order_[next_pair_]]);
    }
    batch_ = ordered_batches(pairs, std::numeric_limits<int32_t>::max()).front();
  }
  tensors_ = to_tensors(batch_, settings_.model.device());
  keep_buffers();
}

void ModelStep::keep_buffers() {
  buffers_.clear();
  std::map<std::string, Tensor> state = model().state_dict();
  for (const auto& [name, parameter] : model().named_parameters()) state.erase(name);
  for (const auto& [name, value] : state)
    if (is_floating(value.dtype())) buffers_.emplace(name, value.clone());
}

void ModelStep::restore_buffers() {
  if (buffers_.empty()) return;
  const std::map<std::string, Tensor> state = model().state_dict();
  for (const auto& [name, value] : buffers_) state.at(name).copy_from(value);
}

std::vector<std::string> ModelStep::source_tokens(int64_t sentence) const {
  return tokens(data_.source, batch_.source, sentence);
}
std::vector<std::string> ModelStep::target_tokens(int64_t sentence) const {
  return tokens(data_.target, batch_.target_input, sentence);
}

Json ModelStep::data_facts() const {
  return data_.facts();
}

std::string ModelStep::title() const {
  const Multi30kSettings& s = settings_.model;
  return fmt::format("{}: {}{}{}, {} + {} layers of width {}", data_.name, s.attention,
                     attention_settings(s).reads("kernel") ? " " + s.kernel : "",
                     s.ppsbn ? " with ppSBN" : "", s.layers, s.layers, s.d_model);
}

}  // namespace macgrad::experiments
