// One update of a translation model on a batch of usual size, with softmax attention and with RMFA:
// its time, and its share in each kernel slot by an observer of the slots.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <optional>

#include "macgrad/autograd/engine.h"
#include "macgrad/autograd/graph_record.h"
#include "macgrad/core/kernel.h"
#include "macgrad/core/step_graph.h"
#include "macgrad/experiments/bench/groups.h"
#include "macgrad/nn/loss.h"
#include "macgrad/nn/training_step.h"
#include "macgrad/nn/transformer.h"

namespace macgrad::experiments {
namespace {

// Time spent in each kernel slot.
class SlotTimer : public KernelObserver {
 public:
  explicit SlotTimer(Device device) : device_(device) {}
  void before(const KernelCall&) override {
    wait_for(device_);
    start_ = Clock::now();
  }
  void after(const KernelCall& call) override {
    wait_for(device_);
    const double ms = std::chrono::duration<double, std::milli>(Clock::now() - start_).count();
    for (auto& [name, total] : totals_)
      if (std::strcmp(name, call.name) == 0) {
        total += ms;
        return;
      }
    totals_.emplace_back(call.name, ms);
  }
  double total(const char* slot) const {
    for (const auto& [name, ms] : totals_)
      if (std::strcmp(name, slot) == 0) return ms;
    return 0;
  }
  std::vector<std::pair<const char*, double>> totals_;

 private:
  using Clock = std::chrono::steady_clock;
  Device device_;
  Clock::time_point start_;
};

Tensor ids(const ModelSize& size, uint32_t draw, Device device) {
  DrawReader reader(DrawKey{7, 6, draw, 0});
  std::vector<int64_t> values(static_cast<size_t>(size.rows * size.length));
  for (int64_t& v : values)
    v = 4 + static_cast<int64_t>(reader.below(static_cast<uint64_t>(size.vocabulary - 4)));
  return Tensor::from_vector(values, {size.rows, size.length}).to(device);
}

struct BenchBatch {
  Tensor source, target, wanted;
  std::vector<Tensor*> tensors() { return {&source, &target, &wanted}; }
  int64_t count() const { return wanted.numel(); }
};

// A model, its optimizer and one batch.
struct Step {
  nn::Transformer model;
  nn::Adam adam;
  BenchBatch batch;
  GraphRecord* graph = nullptr;  // of the forward passes that are recorded
  nn::TrainingStep<BenchBatch> step;

  Step(const nn::TransformerSettings& settings, const ModelSize& size, Device device, DType dtype,
       bool captured = false)
      : model(settings),
        adam(moved(model, device, dtype)),
        batch{ids(size, 0, device), ids(size, 1, device), ids(size, 2, device)},
        step(model, adam, [this](const BenchBatch& b) { return loss(b); },
             {.lr = nn::constant_schedule(1e-4), .clip_norm = 1.0, .capture = captured}) {}
  // Before the optimizer makes moments and masters like the parameters.
  static nn::Transformer& moved(nn::Transformer& model, Device device, DType dtype) {
    model.to(dtype);
    model.to(device);
    return model;
  }
  Variable loss(const BenchBatch& b) {
    std::optional<GraphRecord::Recording> recording;
    if (graph) recording.emplace(*graph);
    return nn::token_loss(model.forward(b.source, Tensor(), b.target, Tensor()), b.wanted, 0, 0.1,
                          b.count())
        .sum;
  }
  nn::StepReport train() { return step(batch); }
  // The same update, looked at: gradients by `gradients`, and the graph by `graph` if given.
  void train(GradRecord& gradients, GraphRecord* recorded) {
    graph = recorded;
    step({batch}, 0, [&](const Variable& sum) {
      GradOptions options;
      options.record = &gradients;
      backward(sum, {}, options);
      (void)gradients.entries();  // norms are read here
    });
    graph = nullptr;
  }
};

std::string step_name(const ModelSize& size, const std::string& kind) {
  return fmt::format("training step {}{}{}", size.name, size.name.empty() ? "" : " ", kind);
}

// Milliseconds of one step, and where they go.
std::string shares_of_step(Step& step, Device device, double ms) {
  // Waiting for each kernel slows a GPU's step down: there the step is the one measured before.
  SlotTimer timer(device);
  KernelObserver* previous = set_kernel_observer(&timer);
  const auto start = std::chrono::steady_clock::now();
  constexpr int kSteps = 3;
  for (int i = 0; i < kSteps; ++i) step.train();
  double all =
      std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
  set_kernel_observer(previous);
  if (device.type != DeviceType::cpu) all = ms * kSteps;
  std::sort(timer.totals_.begin(), timer.totals_.end(),
            [](const auto& a, const auto& b) { return a.second > b.second; });
  std::string parts;
  for (size_t i = 0; i < timer.totals_.size() && i < 8; ++i)
    parts += fmt::format("{}{} {:.1f}", i ? ", " : "", timer.totals_[i].first,
                         timer.totals_[i].second / kSteps);
  return fmt::format("step = {:.2f} x its GEMM time ({:.1f} ms); ms by slot: {}",
                     all / timer.total("matmul"), timer.total("matmul") / kSteps, parts);
}

nn::TransformerSettings settings_of(const ModelSize& size, const nn::AttentionSettings& attention) {
  nn::TransformerSettings settings;
  settings.source_vocabulary = settings.target_vocabulary = size.vocabulary;
  settings.encoder_layers = settings.decoder_layers = size.layers;
  settings.layer.width = size.width;
  settings.layer.heads = size.heads;
  settings.layer.ffn = size.ffn;
  settings.layer.dropout = 0.1;
  settings.layer.attention = attention;
  return settings;
}

void step_rows(BenchTable& table, const Precision& precision, const ModelSize& size,
               const std::string& kind, const nn::AttentionSettings& attention) {
  const Device device = table.place().device;
  const std::string name = row_name(step_name(size, kind), precision);
  const std::string replayed = row_name(step_name(size, kind + " replayed"), precision);
  const bool replays = StepGraph::available(device);
  if (!table.wants(name) && !(replays && table.wants(replayed))) return;
  Step step(settings_of(size, attention), size, device, precision.dtype);
  if (const BenchRow* row = table.run(
          {.name = name, .precision = precision.name}, [&] { step.train(); }, 3.0))
    table.note(name, shares_of_step(step, device, row->ms));
  if (!replays) return;
  Step twin(settings_of(size, attention), size, device, precision.dtype, true);
  twin.train();  // eagerly; the second update is captured
  table.run(
      {.name = replayed, .precision = precision.name},
      [&] {
        const bool replayed_now = twin.train().replayed;
        const std::vector<std::string>& reasons = twin.step.eager_reasons();
        require(replayed_now, "the step was not replayed: {}",
                reasons.empty() ? "a feature draw is larger than its buffer; run the row again"
                                : reasons.back());
      },
      3.0);
  table.compare(replayed, name);
}

// What looking costs: the step as it trains, once more (what noise makes of no difference), with
// the norm of every gradient, with all its numbers, and with graph and values as well.
void recording_rows(BenchTable& table, const ModelSize& size, const std::string& kind,
                    const nn::AttentionSettings& attention) {
  const auto name = [&](const char* what) {
    return fmt::format("recording {} {}{}{}", what, size.name, size.name.empty() ? "" : " ", kind);
  };
  const std::vector<const char*> what{"off", "off again", "norms", "statistics", "everything"};
  if (std::none_of(what.begin(), what.end(), [&](const char* w) { return table.wants(name(w)); }))
    return;
  const Device device = table.place().device;
  Step step(settings_of(size, attention), size, device, DType::float32);
  const std::vector<std::function<void()>> work{[&] { step.train(); }, [&] { step.train(); },
                                                [&] {
                                                  GradRecord norms(GradRecord::Keep::norms);
                                                  step.train(norms, nullptr);
                                                },
                                                [&] {
                                                  GradRecord numbers(GradRecord::Keep::statistics);
                                                  step.train(numbers, nullptr);
                                                },
                                                [&] {
                                                  GradRecord gradients;
                                                  GraphRecord graph;
                                                  step.train(gradients, &graph);
                                                }};
  const std::vector<Timing> times = times_in_turns(device, work, 8.0 * table.place().seconds);
  for (size_t i = 0; i < what.size(); ++i) {
    BenchRow row{.name = name(what[i])};
    row.ms = times[i].median;
    row.ms_min = times[i].min;
    if (i > 0) {
      row.against = name(what[0]);
      row.ratio = times[0].median / times[i].median;
      row.note = fmt::format("{:+.1f} % of time", 100 * (times[i].median / times[0].median - 1));
    }
    table.add(std::move(row));
  }
}

}  // namespace

void bench_recording(BenchTable& table) {
  // A quarter of the batch: more samples of a shorter step, in which looking weighs more.
  ModelSize size = table.place().sizes.models.front();
  size.rows = std::max<int64_t>(1, size.rows / 4);
  recording_rows(table, size, "softmax", {});
  recording_rows(table, size, "rmfa+ppsbn", nn::paper_attention());
}

void bench_training(BenchTable& table) {
  nn::AttentionSettings softmax;
  softmax.dropout = 0.1;
  nn::AttentionSettings rmfa = nn::paper_attention();
  rmfa.features = table.place().sizes.features;
  const std::string rmfa_kind = fmt::format("rmfa+ppsbn D={}", rmfa.features);
  for_each_precision(table.place(), [&](const Precision& precision) {
    for (const ModelSize& size : table.place().sizes.models) {
      for (const auto& [kind, attention] :
           {std::pair{std::string("softmax"), &softmax}, std::pair{rmfa_kind, &rmfa}})
        table.attempt(row_name(step_name(size, kind), precision),
                      [&] { step_rows(table, precision, size, kind, *attention); });
    }
  });
}

}  // namespace macgrad::experiments
