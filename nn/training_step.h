// TrainingStep: one update of a model, the one place where it is written. A call begins the step,
// runs the loss of one or more micro-batches forward and backward, adds penalties, divides by the
// number of tokens or examples, clips, and calls the optimizer; on a device that can, it does so by
// replaying a captured graph (core/step_graph.h).
//
//   nn::Adam adam(model);
//   nn::TrainingStep step(model, adam, [&](const nn::Examples& b) {
//     return cross_entropy(model.forward(Variable(b.inputs)), b.targets, 0.0, -1, Reduction::sum);
//   });
//   const nn::StepReport report = step({inputs, targets});
#pragma once

#include <concepts>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "macgrad/autograd/attention.h"
#include "macgrad/autograd/variable.h"
#include "macgrad/nn/optimizer.h"
#include "macgrad/nn/schedule.h"

namespace macgrad::nn {

/// A batch: tensors() lists its tensors, some of which may be undefined, and count() is how many
/// tokens or examples its loss is summed over. Two batches whose tensors have the same shapes and
/// dtypes differ in the values of these tensors and in the count alone, since one captured step
/// runs both.
template <class B>
concept BatchOfTensors = std::copyable<B> && requires(B batch, const B& given) {
  { batch.tensors() } -> std::same_as<std::vector<Tensor*>>;
  { given.count() } -> std::convertible_to<int64_t>;
};

/// Inputs and targets with one row per example.
struct Examples {
  Tensor inputs, targets;
  std::vector<Tensor*> tensors() { return {&inputs, &targets}; }
  int64_t count() const { return inputs.size(0); }
};

/// What an update has summed over its micro-batches, before it is scaled and clipped. The gradients
/// are in grad() of the parameters, undefined where they are 0, and contain those of the penalties
/// times `count`. Processes that share an update add up all three.
struct UpdateSums {
  const std::vector<Parameter*>& parameters;  // of the optimizer
  double loss = 0.0;
  int64_t count = 0;  // of tokens or examples
};

struct TrainingStepOptions {
  Schedule lr = constant_schedule(1e-3);
  Schedule momentum = {};  // β₁ of Adam, momentum of SGD; otherwise that of the optimizer
  double clip_norm = 0.0;  // as in StepOptions
  double clip_value = 0.0;
  bool capture = true;  // where the device can
  /// Called once per update, between the passes and the optimizer, on captured updates too (of
  /// which the passes alone are then replayed). It may replace gradients and change the sums.
  std::function<void(UpdateSums& sums)> reduce = {};
  /// Processes that share every update number its micro-batches in turn: the first one of process p
  /// is micro-batch p, the second one p + processes, and so on.
  uint32_t process = 0;
  uint32_t processes = 1;
};

/// One update.
struct StepReport {
  int64_t step = 0;  // counted from 1
  int64_t count = 0;
  double loss = 0.0;           // mean per token or example, without penalties
  double penalty = 0.0;        // sum of the penalties
  double gradient_norm = 0.0;  // of the scaled gradients, before clipping
  double lr = 0.0;
  bool skipped = false;   // the gradients, or the loss, were not finite: not updated
  bool replayed = false;  // a captured step ran
  DenominatorStatistics denominators;
};

/// All of TrainingStep that does not depend on the type of batches.
class TrainingStepBase {
 public:
  TrainingStepBase(const TrainingStepBase&) = delete;
  TrainingStepBase& operator=(const TrainingStepBase&) = delete;

  /// Updates so far, those that were skipped among them.
  int64_t steps() const { return steps_; }
  /// Continues after update `steps` of an earlier run; model and optimizer hold what they held
  /// then.
  void resume(int64_t steps) { steps_ = steps; }
  const TrainingStepOptions& options() const { return options_; }

  /// The second half of update `step`, for tools that ran its passes themselves: grad() holds
  /// gradients summed over `count` tokens or examples, `loss` is their summed loss.
  StepReport apply(int64_t step, double loss, int64_t count);

  /// Updates that were replayed, and those that would have been if Module::captured_state() had not
  /// left them out.
  int64_t replays() const { return replays_; }
  int64_t left_out() const { return left_out_; }
  /// Why updates ran eagerly although the device can capture them; each reason once.
  const std::vector<std::string>& eager_reasons() const { return reasons_; }

 protected:
  /// One micro-batch; `tensors` point into a batch that `loss` keeps.
  struct MicroBatch {
    std::vector<Tensor*> tensors;
    int64_t count = 0;
    std::function<Variable()> loss;
  };

  TrainingStepBase(Module& model, Optimizer& optimizer, TrainingStepOptions options);
  ~TrainingStepBase();
  StepReport run(std::vector<MicroBatch> batches, int64_t epoch,
                 const std::function<void(const Variable& loss)>& differentiate);

 private:
  // What the passes leave on the device.
  struct Results {
    Tensors losses;  // one per micro-batch
    Tensor penalty;  // undefined without one
    double loss() const;
  };
  struct Captured;
  StepReport begin(int64_t step) const;
  Results run_passes(const std::vector<MicroBatch>& batches, uint32_t step, const Tensor& count,
                     const std::function<void(const Variable&)>& differentiate);
  void finish(StepReport& report, double loss, int64_t count);
  // The entry of these shapes when this update may be captured or replayed.
  Captured* captured_for(const std::vector<MicroBatch>& batches);
  void capture(Captured& entry, std::vector<MicroBatch> batches, int64_t count);
  void replay(Captured& entry, const std::vector<MicroBatch>& batches, StepReport& report);
  void drop(Captured& entry, const std::string& reason);
  StepOptions clipping() const;
  void run_eagerly(const std::string& reason);

  Module& model_;
  Optimizer& optimizer_;
  TrainingStepOptions options_;
  std::vector<Parameter*> parameters_;
  std::map<std::vector<int64_t>, std::unique_ptr<Captured>>
      captured_;  // by the shapes of all micro-batches
  int64_t steps_ = 0;
  int64_t replays_ = 0;
  int64_t left_out_ = 0;
  std::vector<std::string> reasons_;
};

/// Runs updates of `model`, of which the optimizer has the parameters.
///
/// Step n of epoch e begins with model.begin_step(n, e), micro-batch m with begin_micro_batch(n,
/// m): what a micro-batch draws depends on (seed, n, m) alone, so that it does not matter which
/// process or call runs it, while the micro-batches of a step share its feature draws. The model's
/// mode (train, eval) is the caller's.
///
/// On a device that captures steps, the first update whose micro-batches have the shapes at hand
/// runs eagerly, the second is captured and replayed, and later ones are replays: bit for bit what
/// an eager step computes. Updates run eagerly when a tool watches kernels, ops, gradients or
/// modules, when a module's captured_state() leaves them out, and when they cannot be captured;
/// eager_reasons() lists the reasons of the last kind. A captured step is checked: random numbers
/// that are not drawn for the step of the replay are an error of the capture, it may read no tensor
/// from outside that the eager step before did not use, and it is replayed only while these tensors
/// exist. The loss is not called by replays; what it computes on the host must follow from the
/// shapes.
///
/// An update whose loss or gradient norm is not finite leaves parameters and optimizer as they
/// were; running statistics that its forward pass has moved stay so.
template <BatchOfTensors Batch>
class TrainingStep : public TrainingStepBase {
 public:
  /// The loss of a batch, summed over its count() tokens or examples; 0-dimensional.
  using Loss = std::function<Variable(const Batch& batch)>;
  TrainingStep(Module& model, Optimizer& optimizer, Loss loss, TrainingStepOptions options = {})
      : TrainingStepBase(model, optimizer, std::move(options)), loss_(std::move(loss)) {}

  StepReport operator()(const Batch& batch, int64_t epoch = 0) {
    return (*this)(std::vector<Batch>{batch}, epoch);
  }
  /// An update of several micro-batches. `differentiate` replaces backward() for tools that record
  /// gradients.
  StepReport operator()(const std::vector<Batch>& batches, int64_t epoch = 0,
                        const std::function<void(const Variable& loss)>& differentiate = {}) {
    std::vector<MicroBatch> list;
    for (const Batch& b : batches) {
      auto own = std::make_shared<Batch>(b);
      list.push_back({own->tensors(), own->count(), [this, own] { return loss_(*own); }});
    }
    return run(std::move(list), epoch, differentiate);
  }

 private:
  Loss loss_;
};

namespace detail {
template <class R, class F, class Batch>
Batch batch_of(R (F::*)(const Batch&) const);
}  // namespace detail

/// From a lambda of one batch.
template <class F>
TrainingStep(Module&, Optimizer&, F, TrainingStepOptions = {})
    -> TrainingStep<decltype(detail::batch_of(&F::operator()))>;

}  // namespace macgrad::nn
