// One update, eagerly or as a captured graph. What a captured step must not miss is checked by the
// storages that its kernels read: see StorageTrace.
#include "macgrad/nn/training_step.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>

#include "macgrad/autograd/engine.h"
#include "macgrad/autograd/node.h"
#include "macgrad/autograd/ops.h"
#include "macgrad/autograd/scope.h"
#include "macgrad/core/kernel.h"
#include "macgrad/core/step_graph.h"
#include "macgrad/nn/attention_core.h"

namespace macgrad::nn {
namespace {

constexpr int kMostDrops = 2;  // in a row, of what was captured for one list of shapes

// Watches kernel calls: which memory they use, and which they read without having written it. Weak
// pointers tell memory from other memory that was later put at its address.
class StorageTrace : public KernelObserver {
 public:
  using Place = std::weak_ptr<Storage>;
  using Order = std::owner_less<Place>;
  struct Read {
    std::string reader;  // the first
    bool updated;        // only by kernels that also write there, as to a new tensor of sums
  };

  explicit StorageTrace(Device device) : device_(device), outer_(set_kernel_observer(this)) {}
  ~StorageTrace() override { set_kernel_observer(outer_); }
  StorageTrace(const StorageTrace&) = delete;
  StorageTrace& operator=(const StorageTrace&) = delete;

  void after(const KernelCall& call) override {
    const auto here = [&](const Tensor* t) {
      return t->defined() && t->storage() && t->device() == device_;
    };
    for (const Tensor* t : call.inputs) {
      if (!here(t) || written_.contains(t->storage())) continue;
      const bool updated =
          std::find(call.outputs.begin(), call.outputs.end(), t) != call.outputs.end();
      auto& read =
          read_.try_emplace(t->storage(), Read{*Scope::current() + "/" + call.name, updated})
              .first->second;
      read.updated = read.updated && updated;
    }
    for (const Tensor* t : call.outputs)
      if (here(t)) written_.insert(t->storage());
  }

  /// Read before anything was written to it.
  const std::map<Place, Read, Order>& read() const { return read_; }
  /// Read or written, and still there.
  std::set<Place, Order> used() const {
    std::set<Place, Order> all;
    for (const auto& [place, read] : read_)
      if (!place.expired()) all.insert(place);
    for (const Place& place : written_)
      if (!place.expired()) all.insert(place);
    return all;
  }

 private:
  Device device_;
  KernelObserver* outer_;
  std::map<Place, Read, Order> read_;
  std::set<Place, Order> written_;
};

DenominatorStatistics read_all(const Tensors& list) {
  DenominatorStatistics total;
  for (const Tensor& one : list) total += read_statistics(one);
  return total;
}

}  // namespace

struct TrainingStepBase::Captured {
  std::vector<int64_t> state;  // Module::captured_state() of the eager run and of what was captured
  // By the eager run of these shapes; empty before it.
  std::set<StorageTrace::Place, StorageTrace::Order> used;
  int drops = 0;
  bool refused = false;
  std::unique_ptr<StepGraph> graph;
  std::vector<StorageTrace::Place> inputs;  // read by the graph, apart from its batches
  std::vector<MicroBatch> batches;          // what the graph reads
  Tensor count;                             // () float64, what penalties are multiplied by
  Results results;
  Tensors statistics;
  Tensors gradients;  // of all parameters, for options().reduce
};

double TrainingStepBase::Results::loss() const {
  double sum = 0;
  for (const Tensor& t : losses) sum += t.item();
  return sum;
}

TrainingStepBase::TrainingStepBase(Module& model, Optimizer& optimizer, TrainingStepOptions options)
    : model_(model),
      optimizer_(optimizer),
      options_(std::move(options)),
      parameters_(optimizer.parameters()) {
  require(!parameters_.empty(), "[training step] the optimizer has no parameters");
  require(options_.process < options_.processes,
          "[training step] process {} of {}; they are counted from 0", options_.process,
          options_.processes);
  require(options_.lr != nullptr, "[training step] there is no schedule for the learning rate");
}

TrainingStepBase::~TrainingStepBase() = default;

StepReport TrainingStepBase::begin(int64_t step) const {
  require(step >= 1 && step < static_cast<int64_t>(kLiveStep),
          "[training step] the number of the step is {} and must be in [1, {})", step, kLiveStep);
  StepReport report;
  report.step = step;
  report.lr = options_.lr(step);
  return report;
}

StepOptions TrainingStepBase::clipping() const {
  return {.clip_norm = options_.clip_norm, .clip_value = options_.clip_value};
}

StepReport TrainingStepBase::run(std::vector<MicroBatch> batches, int64_t epoch,
                                 const std::function<void(const Variable&)>& differentiate) {
  require(!batches.empty(), "[training step] an update needs at least one micro-batch");
  StepReport report = begin(steps_ + 1);
  const auto step = static_cast<uint32_t>(report.step);
  int64_t count = 0;
  for (const MicroBatch& b : batches) count += b.count;
  model_.begin_step(step, epoch);
  Captured* const entry = differentiate ? nullptr : captured_for(batches);
  if (entry && !entry->used.empty()) {
    // The optimizer may have to take over what something else has written to parameters.
    optimizer_.take_written_parameters();
    if (!entry->graph) {
      capture(*entry, batches, count);
      // What was drawn while capturing is drawn again by the eager step.
      if (!entry->graph) model_.begin_step(step, epoch);
    }
    if (entry->graph) {
      replay(*entry, batches, report);
      steps_ = report.step;
      return report;
    }
  }
  optimizer_.zero_grad();
  std::optional<StorageTrace> trace;
  if (entry && !entry->refused) trace.emplace(parameters_[0]->device());
  const Results results = run_passes(batches, step, Tensor(), differentiate);
  if (results.penalty.defined()) report.penalty = results.penalty.item();
  finish(report, results.loss(), count);
  if (trace) entry->used = trace->used();
  report.denominators = denominator_statistics(model_);
  steps_ = report.step;
  return report;
}

StepReport TrainingStepBase::apply(int64_t step, double loss, int64_t count) {
  StepReport report = begin(step);
  finish(report, loss, count);
  report.denominators = denominator_statistics(model_);
  steps_ = step;
  return report;
}

TrainingStepBase::Results TrainingStepBase::run_passes(
    const std::vector<MicroBatch>& batches, uint32_t step, const Tensor& live_count,
    const std::function<void(const Variable&)>& differentiate) {
  const auto pull = [&](const Variable& term) {
    differentiate ? differentiate(term) : backward(term);
  };
  Results results;
  int64_t count = 0;
  for (size_t m = 0; m < batches.size(); ++m) {
    model_.begin_micro_batch(step,
                             options_.process + static_cast<uint32_t>(m) * options_.processes);
    const Variable loss = batches[m].loss();
    check(loss.defined() && loss.numel() == 1,
          "[training step] the loss has the shape {}; it must be one number, summed over the batch",
          loss.defined() ? loss.shape() : Shape{0});
    pull(loss);
    results.losses.push_back(loss.value());
    count += batches[m].count;
  }
  Variable penalty;
  for (Module* module : model_.modules())
    if (const Variable one = module->penalty(); one.defined())
      penalty = penalty.defined() ? add(penalty, one) : one;
  if (!penalty.defined()) return results;
  // Times the count, by which all gradients are divided.
  const Variable times(live_count.defined() ? live_count
                                            : Tensor::full({}, static_cast<double>(count),
                                                           DType::float64, penalty.device()));
  const Variable term = mul(penalty, cast(times, penalty.dtype()));
  if (term.requires_grad()) pull(term);
  results.penalty = penalty.value();
  return results;
}

void TrainingStepBase::finish(StepReport& report, double loss, int64_t count) {
  UpdateSums sums{parameters_, loss, count};
  if (options_.reduce) options_.reduce(sums);
  const auto divisor = static_cast<double>(std::max<int64_t>(sums.count, 1));
  report.count = sums.count;
  report.loss = sums.loss / divisor;
  report.gradient_norm = std::numeric_limits<double>::quiet_NaN();
  if (std::isfinite(sums.loss)) {
    StepOptions options = clipping();
    options.grad_scale = 1.0 / divisor;
    if (options_.momentum) options.momentum = options_.momentum(report.step);
    report.gradient_norm = optimizer_.step(report.lr, options);
  } else {
    optimizer_.count_update(report.gradient_norm);
  }
  report.skipped = !std::isfinite(report.gradient_norm);
}

void TrainingStepBase::run_eagerly(const std::string& reason) {
  if (std::find(reasons_.begin(), reasons_.end(), reason) == reasons_.end())
    reasons_.push_back(reason);
}

TrainingStepBase::Captured* TrainingStepBase::captured_for(const std::vector<MicroBatch>& batches) {
  if (!options_.capture || !StepGraph::available(parameters_[0]->device())) return nullptr;
  if (kernel_observer() || RecordTool::active() || AnomalyMode::active()) return nullptr;
  if (model_.has_forward_hooks()) {
    run_eagerly("modules have forward hooks, which a replay would not call");
    return nullptr;
  }
  if (std::any_of(parameters_.begin(), parameters_.end(),
                  [](const Parameter* p) { return !p->meta()->hooks.empty(); })) {
    run_eagerly("gradients of parameters have hooks, which a replay would not call");
    return nullptr;
  }
  std::vector<int64_t> key;
  for (const MicroBatch& b : batches) {
    key.push_back(static_cast<int64_t>(b.tensors.size()));
    for (const Tensor* t : b.tensors) {
      key.push_back(t->defined() ? static_cast<int64_t>(t->dtype()) : -1);
      if (!t->defined()) continue;
      key.push_back(t->rank());
      for (int d = 0; d < t->rank(); ++d) key.push_back(t->size(d));
    }
  }
  auto& entry = captured_[key];
  if (!entry) entry = std::make_unique<Captured>();
  if (entry->refused) return nullptr;
  std::optional<std::vector<int64_t>> state;
  try {
    state = model_.captured_state();
  } catch (const Error& error) {
    run_eagerly(error.what());
    return nullptr;
  }
  if (!state) {
    // This step differs from those that are captured, so it is no warm-up for them.
    left_out_ += !entry->used.empty();
    return nullptr;
  }
  if (entry->state != *state) {
    *entry = Captured{};
    entry->state = *state;
  }
  if (entry->graph && std::any_of(entry->inputs.begin(), entry->inputs.end(),
                                  [](const auto& place) { return place.expired(); }))
    drop(*entry, "a tensor that the captured step reads is gone: a module has replaced it");
  return entry->refused ? nullptr : entry.get();
}

// The shapes are captured again after another eager run; after too many drops they stay eager.
void TrainingStepBase::drop(Captured& entry, const std::string& reason) {
  const int drops = entry.drops + 1;
  std::vector<int64_t> state = std::move(entry.state);
  entry = Captured{};
  entry.state = std::move(state);
  entry.drops = drops;
  entry.refused = drops == kMostDrops;
  if (entry.refused) run_eagerly(reason);
}

void TrainingStepBase::capture(Captured& entry, std::vector<MicroBatch> batches, int64_t count) {
  const Device device = parameters_[0]->device();
  for (MicroBatch& b : batches)
    for (Tensor* t : b.tensors)
      if (t->defined()) *t = t->clone();
  entry.batches = std::move(batches);
  entry.count = Tensor::full({}, static_cast<double>(count), DType::float64, device);
  // Gradients of the last update make room for those of the captured one.
  optimizer_.zero_grad();
  std::optional<StorageTrace> trace;
  try {
    entry.graph = std::make_unique<StepGraph>(device, [&] {
      model_.queue_captured_draws();
      // What modules queue here is covered by captured_state().
      trace.emplace(device);
      entry.results = run_passes(entry.batches, kLiveStep, entry.count, {});
      if (options_.reduce) {
        for (const Parameter* p : parameters_) entry.gradients.push_back(p->grad().value());
      } else {
        Variable sum(entry.results.losses[0]);
        for (size_t m = 1; m < entry.results.losses.size(); ++m)
          sum = add(sum, Variable(entry.results.losses[m]));
        optimizer_.capture_step(clipping(), sum.value());
      }
      optimizer_.zero_grad();
    });
  } catch (const Error& error) {
    optimizer_.zero_grad();
    entry = Captured{};
    entry.refused = true;
    run_eagerly(error.what());
    return;
  }
  entry.statistics = pending_statistics(model_);
  std::set<const Storage*> own{entry.count.storage().get()};
  for (const MicroBatch& b : entry.batches)
    for (const Tensor* t : b.tensors)
      if (t->defined()) own.insert(t->storage().get());
  for (const auto& [place, read] : trace->read()) {
    const bool temporary = place.expired() && read.updated;
    if (temporary || own.contains(place.lock().get())) continue;
    if (place.expired() || !entry.used.contains(place)) {
      drop(entry,
           fmt::format(
               "{} reads a tensor that the step before did not use: a module replaces its tensors "
               "between steps. Let it write into the same ones, or override Module::on_capture",
               read.reader));
      return;
    }
    entry.inputs.push_back(place);
  }
}

void TrainingStepBase::replay(Captured& entry, const std::vector<MicroBatch>& batches,
                              StepReport& report) {
  int64_t count = 0;
  for (size_t m = 0; m < batches.size(); ++m) {
    const std::vector<Tensor*>& kept = entry.batches[m].tensors;
    for (size_t i = 0; i < kept.size(); ++i)
      if (kept[i]->defined() && kept[i]->storage() != batches[m].tensors[i]->storage())
        kept[i]->copy_from(*batches[m].tensors[i]);
    count += batches[m].count;
  }
  if (entry.results.penalty.defined()) entry.count.fill(static_cast<double>(count));
  ReplayValues values;
  values.step = static_cast<uint32_t>(report.step);
  values.update = optimizer_.steps() + 1;
  values.lr = report.lr;
  values.grad_scale = 1.0 / static_cast<double>(std::max<int64_t>(count, 1));
  values.momentum = options_.momentum ? options_.momentum(report.step) : optimizer_.momentum();
  entry.graph->replay(values);
  const double loss = entry.results.loss();
  if (entry.results.penalty.defined()) report.penalty = entry.results.penalty.item();
  if (options_.reduce) {
    for (size_t i = 0; i < parameters_.size(); ++i)
      parameters_[i]->set_grad(entry.gradients[i].defined() ? Variable(entry.gradients[i])
                                                            : Variable());
    finish(report, loss, count);
    optimizer_.zero_grad();
  } else {
    report.count = count;
    report.loss = loss / static_cast<double>(std::max<int64_t>(count, 1));
    report.gradient_norm = recorded_gradient_norm(parameters_[0]->device());
    report.skipped = !std::isfinite(report.gradient_norm);
    optimizer_.count_update(report.gradient_norm);
  }
  report.denominators = read_all(entry.statistics);
  report.replayed = true;
  ++replays_;
  entry.drops = 0;
}

}  // namespace macgrad::nn
