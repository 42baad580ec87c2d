// One update of a translation model on a batch of usual size, with softmax attention and with RMFA:
// its time, and its share in each kernel slot by an observer of the slots.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstring>

#include "core/kernel.h"
#include "experiments/bench/groups.h"
#include "nn/accumulation.h"
#include "nn/loss.h"
#include "nn/optimizer.h"
#include "nn/transformer.h"

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

void step_rows(BenchTable& table, const Precision& precision, const ModelSize& size,
               const std::string& kind, const nn::AttentionSettings& attention) {
  const std::string name =
      row_name(fmt::format("training step {}{}{}", size.name, size.name.empty() ? "" : " ", kind),
               precision);
  if (!table.wants(name)) return;
  const Device device = table.place().device;
  nn::TransformerSettings settings;
  settings.source_vocabulary = settings.target_vocabulary = size.vocabulary;
  settings.encoder_layers = settings.decoder_layers = size.layers;
  settings.layer.width = size.width;
  settings.layer.heads = size.heads;
  settings.layer.ffn = size.ffn;
  settings.layer.dropout = 0.1;
  settings.layer.attention = attention;
  nn::Transformer model(settings);
  model.to(device);
  nn::Adam adam(nn::decay_groups(model, 0.0));
  const Tensor source = ids(size, 0, device), target = ids(size, 1, device);
  const Tensor wanted = ids(size, 2, device);
  uint32_t step = 0;
  const auto train = [&] {
    model.begin_step(++step, 0);
    adam.zero_grad();
    nn::Accumulation sum;
    sum.add(nn::token_loss(model.forward(source, Tensor(), target, Tensor()), wanted, 0, 0.1));
    adam.step(1e-4, {.grad_scale = sum.grad_scale(), .clip_norm = 1.0});
  };
  table.run({.name = name, .precision = precision.name}, train, 3.0);
  // Waiting for each kernel slows a GPU's step down: there the step is the one measured above.
  SlotTimer timer(device);
  KernelObserver* previous = set_kernel_observer(&timer);
  const auto start = std::chrono::steady_clock::now();
  constexpr int kSteps = 3;
  for (int i = 0; i < kSteps; ++i) train();
  double all =
      std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
  set_kernel_observer(previous);
  if (device.type != DeviceType::cpu) all = table.find(name)->ms * kSteps;
  std::sort(timer.totals_.begin(), timer.totals_.end(),
            [](const auto& a, const auto& b) { return a.second > b.second; });
  std::string parts;
  for (size_t i = 0; i < timer.totals_.size() && i < 8; ++i)
    parts += fmt::format("{}{} {:.1f}", i ? ", " : "", timer.totals_[i].first,
                         timer.totals_[i].second / kSteps);
  table.note(name, fmt::format("step = {:.2f} x its GEMM time ({:.1f} ms); ms by slot: {}",
                               all / timer.total("matmul"), timer.total("matmul") / kSteps, parts));
}

}  // namespace

void bench_training(BenchTable& table) {
  nn::AttentionSettings softmax;
  softmax.dropout = 0.1;
  nn::AttentionSettings rmfa;
  rmfa.kind = nn::AttentionKind::rmfa;
  rmfa.ppsbn = true;
  rmfa.features = table.place().sizes.features;
  const std::string rmfa_kind = fmt::format("rmfa+ppsbn D={}", rmfa.features);
  for_each_precision(table.place(), [&](const Precision& precision) {
    // A model's parameters are float32.
    if (precision.dtype != DType::float32) return;
    for (const ModelSize& size : table.place().sizes.models) {
      step_rows(table, precision, size, "softmax", softmax);
      step_rows(table, precision, size, rmfa_kind, rmfa);
    }
  });
}

}  // namespace macgrad::experiments
