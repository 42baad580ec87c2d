// One update: batches of a group add up losses and gradients over their tokens, then Adam steps
// with clipping. A loss that is not finite ends the run; a gradient that is not is passed over, and
// so many in a row end it.
#include "macgrad/experiments/multi30k/training.h"

#include <algorithm>
#include <chrono>
#include <cmath>

#include "macgrad/autograd/ops.h"
#include "macgrad/experiments/common/progress.h"
#include "macgrad/experiments/multi30k/evaluation.h"
#include "macgrad/nn/accumulation.h"

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

}  // namespace

Trainer::Trainer(const Multi30kSettings& settings, const TranslationData& data)
    : settings_(settings),
      data_(data),
      model_(transformer_settings(settings, data.source.size(), data.target.size())),
      optimizer_(make_optimizer(model_, settings)),
      epoch_updates_(count_epoch_updates(settings, data)),
      total_updates_(count_updates(settings, epoch_updates_)),
      schedule_(make_schedule(settings, total_updates_)) {
  if (settings.replays()) recorded_.emplace(model_, optimizer_, settings);
}

std::vector<std::string> Trainer::refused_replays() const {
  return recorded_ ? recorded_->refusals() : std::vector<std::string>{};
}

void Trainer::update(const std::vector<Batch>& batches, size_t first, size_t last, int64_t epoch,
                     UpdateReport& r) {
  const auto stop_unless_finite = [&] {
    if (!std::isfinite(r.loss))
      throw NotFinite(
          "update {} (epoch {}): the training loss is {}; lower --lr (now {}), lengthen --warmup, "
          "or clip more (--clip)",
          r.update, epoch, format_short(r.loss), settings_.lr);
  };
  const int64_t multiple = settings_.shape_multiple > 0 ? settings_.shape_multiple
                           : recorded_                  ? kReplayedMultiple
                                                        : 1;
  const auto tensors = [&](const Batch& batch) {
    return to_tensors(multiple > 1 ? rounded_up(batch, multiple) : batch, settings_.device());
  };
  r.lr = schedule_(r.update);
  if (recorded_) {
    const BatchTensors b = tensors(batches[first]);
    if (const auto replayed = recorded_->run(b, r.update, epoch, r.lr)) {
      r.tokens = b.tokens;
      r.loss = replayed->loss / static_cast<double>(std::max<int64_t>(b.tokens, 1));
      r.norm = replayed->norm;
      r.rmfa = replayed->rmfa;
      ++replays_;
      stop_unless_finite();
      return;
    }
  }
  optimizer_.zero_grad();
  nn::Accumulation accumulated;
  for (size_t i = first; i < last; ++i) {
    const BatchTensors b = tensors(batches[i]);
    accumulated.add(
        nn::token_loss(model_.forward(b.source, b.source_valid, b.input, b.input_valid, b.places),
                       b.output, Vocabulary::kPad, settings_.label_smoothing, b.tokens));
  }
  r.loss = accumulated.loss();
  r.tokens = accumulated.tokens();
  stop_unless_finite();
  r.norm = optimizer_.step(r.lr, {accumulated.grad_scale(), settings_.clip});
  r.rmfa = nn::rmfa_statistics(model_);
}

EpochSummary Trainer::train_epoch(int64_t epoch,
                                  const std::function<bool(const UpdateReport&)>& report) {
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
    UpdateReport r;
    r.update = place_.updates + 1;
    model_.begin_step(static_cast<uint32_t>(r.update), epoch);
    update(batches, first, std::min(first + group, batches.size()), epoch, r);
    r.skipped = !std::isfinite(r.norm);
    r.replays = replays_;
    r.large_draws = recorded_ ? recorded_->large_draws() : 0;
    place_.updates = r.update;
    place_.skipped += r.skipped;
    place_.skipped_in_a_row = r.skipped ? place_.skipped_in_a_row + 1 : 0;
    if (place_.skipped_in_a_row == kMostSkipped)
      throw NotFinite(
          "update {} (epoch {}): the gradients of {} updates in a row were not finite; lower --lr "
          "(now {}) or lengthen --warmup",
          r.update, epoch, kMostSkipped, settings_.lr);
    ++done.updates;
    done.tokens += r.tokens;
    done.loss_sum += r.loss * static_cast<double>(r.tokens);
    done.rmfa += r.rmfa;
    done.seconds += std::chrono::duration<double>(Clock::now() - start).count();
    done.stopped = !report(r);
  }
  return done;
}

}  // namespace macgrad::experiments
