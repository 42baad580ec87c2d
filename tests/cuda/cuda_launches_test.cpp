// How many slot calls and kernel launches a training step makes: a replayed step of a small model
// is bound by their number. The limits are the counts in cuda/README.md; raise one only for a
// reason.
#include <doctest/doctest.h>
#include <fmt/format.h>

#include <map>
#include <optional>
#include <string>

#include "macgrad/autograd/engine.h"
#include "macgrad/core/kernel.h"
#include "macgrad/core/step_graph.h"
#include "macgrad/nn/loss.h"
#include "macgrad/nn/optimizer.h"
#include "macgrad/nn/transformer.h"
#include "macgrad/tests/cuda/device.h"

namespace macgrad::testing {
namespace {

class SlotCalls : public KernelObserver {
 public:
  SlotCalls() : previous_(set_kernel_observer(this)) {}
  ~SlotCalls() override { set_kernel_observer(previous_); }
  SlotCalls(const SlotCalls&) = delete;
  SlotCalls& operator=(const SlotCalls&) = delete;

  void after(const KernelCall& call) override { ++calls_[call.name]; }
  const std::map<std::string, int64_t>& calls() const { return calls_; }

 private:
  std::map<std::string, int64_t> calls_;
  KernelObserver* previous_;
};

struct Cost {
  int64_t slot_calls = 0, launches = 0;  // launches: on the emulator
  std::string by_slot;
};

// One update of a model of 4 + 4 layers, captured as nn::TrainingStep does.
Cost cost_of_step(const nn::AttentionSettings& attention) {
  nn::TransformerSettings settings;
  settings.source_vocabulary = settings.target_vocabulary = 12;
  settings.encoder_layers = settings.decoder_layers = 4;
  settings.layer.width = 16;
  settings.layer.heads = 2;
  settings.layer.ffn = 16;
  settings.layer.dropout = 0.1;
  settings.layer.attention = attention;
  nn::Transformer model(settings);
  model.to(kGpu);
  nn::Adam adam(model);
  const Tensor ids = Tensor::full({2, 4}, 5.0, DType::int64, kGpu);
  const Tensor valid = Tensor::full({2, 4}, 1.0, DType::boolean, kGpu);
  const auto loss = [&] {
    return nn::token_loss(model.forward(ids, valid, ids, valid), ids, 0, 0.1, 8).sum;
  };
  model.begin_step(1, 0);
  backward(loss());
  adam.step(1e-3, {.clip_norm = 1.0});
  adam.zero_grad();
  Cost cost;
  model.begin_step(2, 0);
  REQUIRE(model.captured_state());
  std::optional<StepGraph> graph;
  {
    const SlotCalls calls;
    graph.emplace(kGpu, [&] {
      model.queue_captured_draws();
      model.begin_micro_batch(kLiveStep, 0);
      const Variable sum = loss();
      backward(sum);
      adam.capture_step({.clip_norm = 1.0}, sum.value());
      adam.zero_grad();
    });
    for (const auto& [slot, n] : calls.calls()) {
      cost.slot_calls += n;
      cost.by_slot += fmt::format(" {} {}", slot, n);
    }
  }
#ifdef MACGRAD_CUDA_EMULATED
  const uint64_t before = emulation::launches();
  graph->replay({.step = 2, .update = 2, .lr = 1e-3});
  cost.launches = static_cast<int64_t>(emulation::launches() - before);
#endif
  return cost;
}

TEST_CASE("cuda launches: a training step of 4 + 4 layers stays within its counts") {
  [[maybe_unused]] const OpenMemory open;
  nn::AttentionSettings softmax;
  softmax.dropout = 0.1;
  nn::AttentionSettings rmfa = nn::paper_attention();
  rmfa.features = 16;
  for (const auto& [attention, calls, launches] :
       {std::tuple{&softmax, 551, 600}, {&rmfa, 625, 806}}) {
    const Cost cost = cost_of_step(*attention);
    CAPTURE(cost.by_slot);
    CHECK(cost.slot_calls <= calls);
    CHECK(cost.launches <= launches);
  }
}

}  // namespace
}  // namespace macgrad::testing
