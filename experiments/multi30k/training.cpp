// An epoch of updates by nn::TrainingStep. A loss that is not finite ends the run; an update whose
// gradients are not is skipped, and many of them in a row end it.
#include "macgrad/experiments/multi30k/training.h"

#include <algorithm>
#include <chrono>
#include <cmath>

#include "macgrad/autograd/ops.h"
#include "macgrad/autograd/scope.h"
#include "macgrad/experiments/common/progress.h"
#include "macgrad/experiments/multi30k/evaluation.h"
#include "macgrad/nn/loss.h"

namespace macgrad::experiments {
namespace {

// Adam passes over an update whose gradients are not finite; so many in a row are no accident.
constexpr int64_t kMostSkipped = 10;
// Rows and widths of batches whose updates are replayed: few distinct shapes for little padding.
constexpr int64_t kReplayedMultiple = 8;

// fairseq starts queries, keys and values with a smaller gain than nn::Linear.
void scale_projections(nn::Transformer& model, double gain) {
  if (gain == 1.0) return;
  for (const auto& [name, parameter] : model.named_parameters())
    for (const char* projection : {"q_proj.weight", "k_proj.weight", "v_proj.weight"})
      if (name.ends_with(projection)) {
        const Tensor value = parameter->value();
        value.copy_from(mul(Variable(value), gain).value());
      }
}

nn::Adam make_optimizer(nn::Transformer& model, const Multi30kSettings& s) {
  const NoGrad no_grad;
  scale_projections(model, s.qkv_gain);
  model.to(dtype_of(s.common));
  model.to(s.device());
  return nn::Adam(nn::decay_groups(model, s.weight_decay),
                  {s.adam_beta1, s.adam_beta2, s.adam_eps, true});
}

// Batches are cut by length alone, so every epoch has as many.
int64_t count_epoch_updates(const Multi30kSettings& s, const TranslationData& data) {
  const auto batches = static_cast<int64_t>(ordered_batches(data.train, s.batch_tokens).size());
  return (batches + s.accumulate - 1) / s.accumulate;
}

int64_t count_updates(const Multi30kSettings& s, int64_t epoch_updates) {
  const int64_t all = s.epochs * epoch_updates;
  return s.max_updates > 0 ? std::min(all, s.max_updates) : all;
}

nn::Schedule make_schedule(const Multi30kSettings& s, int64_t total) {
  require(s.schedule != "one-cycle" || s.warmup < total,
          "--warmup {} with --schedule one-cycle must be below the run's {} updates; lower "
          "--warmup or train longer",
          s.warmup, total);
  return nn::parse_schedule(s.schedule, s.lr, s.warmup, total, s.warmup_from);
}

int64_t up(int64_t n, int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

PaddedIds rounded_up(const PaddedIds& block, int64_t multiple) {
  PaddedIds result;
  result.rows = up(block.rows, multiple);
  result.width = up(block.width, multiple);
  result.ids.assign(static_cast<size_t>(result.rows * result.width), Vocabulary::kPad);
  for (int64_t r = 0; r < block.rows; ++r)
    std::copy_n(block.ids.begin() + r * block.width, block.width,
                result.ids.begin() + r * result.width);
  return result;
}

// Rows and widths rounded up to `multiple`; what is added is padding.
Batch rounded_up(const Batch& batch, int64_t multiple) {
  Batch result = batch;
  for (PaddedIds Batch::*block : {&Batch::source, &Batch::target_input, &Batch::target_output})
    result.*block = rounded_up(batch.*block, multiple);
  return result;
}

}  // namespace

Trainer::Trainer(const Multi30kSettings& settings, const TranslationData& data)
    : settings_(settings),
      data_(data),
      model_(transformer_settings(settings, data.source.size(), data.target.size())),
      optimizer_(make_optimizer(model_, settings)),
      epoch_updates_(count_epoch_updates(settings, data)),
      total_updates_(count_updates(settings, epoch_updates_)),
      step_(model_, optimizer_, [this](const BatchTensors& batch) { return loss(batch); },
            {.lr = make_schedule(settings, total_updates_),
             .clip_norm = settings.clip,
             .capture = settings.replays()}) {}

Variable Trainer::loss(const BatchTensors& b) {
  const Variable logits =
      model_.forward(b.source, b.source_valid, b.input, b.input_valid, b.places);
  const Scope scope("loss");
  return nn::token_loss(logits, b.output, Vocabulary::kPad, settings_.label_smoothing, b.tokens)
      .sum;
}

BatchTensors Trainer::tensors(const Batch& batch) const {
  const int64_t multiple = settings_.shape_multiple > 0 ? settings_.shape_multiple
                           : settings_.replays()        ? kReplayedMultiple
                                                        : 1;
  return to_tensors(multiple > 1 ? rounded_up(batch, multiple) : batch, settings_.device());
}

EpochSummary Trainer::train_epoch(int64_t epoch,
                                  const std::function<bool(const nn::StepReport&)>& report) {
  using Clock = std::chrono::steady_clock;
  const std::vector<Batch> batches = shuffled_batches(
      data_.train, settings_.batch_tokens, settings_.common.seed, static_cast<uint64_t>(epoch));
  const auto group = static_cast<size_t>(settings_.accumulate);
  if (epoch != place_.epoch) place_.done = {};
  place_.epoch = epoch;
  EpochSummary& done = place_.done;
  done.stopped = false;
  model_.train();
  while (!epoch_complete() && !finished() && !done.stopped) {
    const auto start = Clock::now();
    const size_t first = static_cast<size_t>(done.updates) * group;
    std::vector<BatchTensors> micro_batches;
    for (size_t i = first; i < std::min(first + group, batches.size()); ++i)
      micro_batches.push_back(tensors(batches[i]));
    const nn::StepReport r = step_(micro_batches, epoch);
    if (!std::isfinite(r.loss))
      throw NotFinite(
          "update {} (epoch {}): the training loss is {}; lower --lr (now {}), lengthen --warmup, "
          "or clip more (--clip)",
          r.step, epoch, format_short(r.loss), settings_.lr);
    place_.updates = r.step;
    place_.skipped += r.skipped;
    place_.skipped_in_a_row = r.skipped ? place_.skipped_in_a_row + 1 : 0;
    if (place_.skipped_in_a_row == kMostSkipped)
      throw NotFinite(
          "update {} (epoch {}): the gradients of {} updates in a row were not finite; lower --lr "
          "(now {}) or lengthen --warmup",
          r.step, epoch, kMostSkipped, settings_.lr);
    ++done.updates;
    done.tokens += r.count;
    done.loss_sum += r.loss * static_cast<double>(r.count);
    done.denominators += r.denominators;
    done.seconds += std::chrono::duration<double>(Clock::now() - start).count();
    done.stopped = !report(r);
  }
  return done;
}

}  // namespace macgrad::experiments
