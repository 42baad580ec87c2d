// One update of the translation model on a batch of usual size, with softmax attention and with
// RMFA: its time, and its share in each kernel slot by an observer of the slots.
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
  void before(const KernelCall&) override { start_ = Clock::now(); }
  void after(const KernelCall& call) override {
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
  Clock::time_point start_;
};

constexpr int64_t kRows = 128, kLength = 20, kVocabulary = 10000;

Tensor ids(uint32_t draw) {
  DrawReader reader(DrawKey{7, 6, draw, 0});
  std::vector<int64_t> values(static_cast<size_t>(kRows * kLength));
  for (int64_t& v : values) v = 4 + static_cast<int64_t>(reader.below(kVocabulary - 4));
  return Tensor::from_vector(values, {kRows, kLength});
}

void step_rows(BenchTable& table, const std::string& name, const nn::AttentionSettings& attention) {
  if (!table.wants(name)) return;
  nn::TransformerSettings settings;
  settings.source_vocabulary = settings.target_vocabulary = kVocabulary;
  settings.layer.width = 256;
  settings.layer.heads = 8;
  settings.layer.ffn = 1024;
  settings.layer.dropout = 0.1;
  settings.layer.attention = attention;
  nn::Transformer model(settings);
  nn::Adam adam(nn::decay_groups(model, 0.0));
  const Tensor source = ids(0), target = ids(1), wanted = ids(2);
  uint32_t step = 0;
  const auto train = [&] {
    model.begin_step(++step, 0);
    adam.zero_grad();
    nn::Accumulation sum;
    sum.add(nn::token_loss(model.forward(source, Tensor(), target, Tensor()), wanted, 0, 0.1));
    adam.step(1e-4, {.grad_scale = sum.grad_scale(), .clip_norm = 1.0});
  };
  table.run({.name = name}, train, 3.0);
  SlotTimer timer;
  KernelObserver* previous = set_kernel_observer(&timer);
  const auto start = std::chrono::steady_clock::now();
  constexpr int kSteps = 3;
  for (int i = 0; i < kSteps; ++i) train();
  const double all =
      std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
  set_kernel_observer(previous);
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
  step_rows(table, "training step softmax", softmax);
  nn::AttentionSettings rmfa;
  rmfa.kind = nn::AttentionKind::rmfa;
  rmfa.ppsbn = true;
  rmfa.features = 128;
  step_rows(table, "training step rmfa+ppsbn D=128", rmfa);
}

}  // namespace macgrad::experiments
