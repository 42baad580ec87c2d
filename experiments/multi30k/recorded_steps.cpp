#include "macgrad/experiments/multi30k/recorded_steps.h"

#include <algorithm>

#include "macgrad/autograd/engine.h"
#include "macgrad/core/kernel.h"
#include "macgrad/nn/attention_core.h"
#include "macgrad/nn/loss.h"

namespace macgrad::experiments {
namespace {

constexpr int64_t kEagerRuns = 1;  // makes what a capture cannot: tables copied from the host

std::vector<Tensor BatchTensors::*> members() {
  return {&BatchTensors::source, &BatchTensors::source_valid, &BatchTensors::input,
          &BatchTensors::input_valid, &BatchTensors::output};
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

}  // namespace

Batch rounded_up(const Batch& batch, int64_t multiple) {
  Batch result = batch;
  for (PaddedIds Batch::*block : {&Batch::source, &Batch::target_input, &Batch::target_output})
    result.*block = rounded_up(batch.*block, multiple);
  return result;
}

RecordedSteps::RecordedSteps(nn::Transformer& model, nn::Adam& optimizer,
                             const Multi30kSettings& settings)
    : model_(model), optimizer_(optimizer), settings_(settings) {}

void RecordedSteps::refuse(Entry& entry, const std::string& reason) {
  entry.refused = true;
  entry.graph.reset();
  tell(reason);
}

void RecordedSteps::tell(const std::string& reason) {
  if (std::find(refusals_.begin(), refusals_.end(), reason) == refusals_.end())
    refusals_.push_back(reason);
}

void RecordedSteps::record(Entry& entry, const BatchTensors& batch) {
  entry.batch = batch;
  // Gradients of the last update make room for those of the recorded one.
  optimizer_.zero_grad();
  Variable loss;
  entry.graph = std::make_unique<StepGraph>(settings_.device(), [&] {
    model_.record_live_step();
    const BatchTensors& b = entry.batch;
    loss = nn::token_loss(model_.forward(b.source, b.source_valid, b.input, b.input_valid),
                          b.output, Vocabulary::kPad, settings_.label_smoothing, b.tokens)
               .sum;
    backward(loss);
    optimizer_.record_step(settings_.clip);
    optimizer_.zero_grad();
  });
  entry.loss = loss.value();
  entry.statistics = nn::pending_statistics(model_);
}

std::optional<RecordedSteps::Outcome> RecordedSteps::run(const BatchTensors& batch, int64_t update,
                                                         int64_t epoch, double lr) {
  if (kernel_observer() != nullptr) return std::nullopt;
  if (model_.has_forward_hooks()) {
    tell("modules have forward hooks, which a replay would not call");
    return std::nullopt;
  }
  Entry& entry = entries_[{batch.source.size(0), batch.source.size(1), batch.input.size(1)}];
  if (entry.refused) return std::nullopt;
  const auto draws = nn::recorded_draws(model_);
  if (!draws) {
    // A step of other sizes than those that are recorded: it warms nothing up.
    if (entry.seen >= kEagerRuns) ++large_draws_;
    return std::nullopt;
  }
  if (entry.draws != *draws) {
    // The place moved: steps of other sizes from here on.
    entry = Entry{};
    entry.draws = *draws;
  }
  if (++entry.seen <= kEagerRuns) return std::nullopt;
  optimizer_.take_written_parameters();
  if (!entry.graph) {
    try {
      record(entry, batch);
    } catch (const Error& error) {
      optimizer_.zero_grad();
      refuse(entry, error.what());
      // What was drawn while recording is drawn again by the eager step.
      model_.begin_step(static_cast<uint32_t>(update), epoch);
      return std::nullopt;
    }
  } else {
    for (Tensor BatchTensors::*member : members()) (entry.batch.*member).copy_from(batch.*member);
  }
  ReplayValues values;
  values.step = static_cast<uint32_t>(update);
  values.adam_step = optimizer_.steps() + 1;
  values.lr = lr;
  values.grad_scale = 1.0 / static_cast<double>(std::max<int64_t>(batch.tokens, 1));
  entry.graph->replay(values);
  Outcome outcome;
  outcome.loss = entry.loss.item();
  outcome.norm = recorded_gradient_norm(settings_.device());
  for (const Tensor& one : entry.statistics) outcome.rmfa += read_statistics(one);
  optimizer_.count_replay(outcome.norm);
  return outcome;
}

}  // namespace macgrad::experiments
