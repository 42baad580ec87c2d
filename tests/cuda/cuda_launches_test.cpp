// How many slot calls and kernel launches a training step makes: a replayed step of a small model
// is bound by their number. The limits are the counts in cuda/README.md; raise one only for a
// reason.
#include <doctest/doctest.h>
#include <fmt/format.h>

#include <map>
#include <string>

#include "macgrad/core/kernel.h"
#include "macgrad/nn/loss.h"
#include "macgrad/nn/training_step.h"
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

struct Ids {
  Tensor ids, valid;
  std::vector<Tensor*> tensors() { return {&ids, &valid}; }
  int64_t count() const { return 8; }
};

// An update of a model of 4 + 4 layers: slot calls of an eager one, launches of a replay.
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
  nn::TrainingStep<Ids> step(
      model, adam,
      [&](const Ids& b) {
        return nn::token_loss(model.forward(b.ids, b.valid, b.ids, b.valid), b.ids, 0, 0.1, 8).sum;
      },
      {.clip_norm = 1.0});
  const Ids batch{Tensor::full({2, 4}, 5.0, DType::int64, kGpu),
                  Tensor::full({2, 4}, 1.0, DType::boolean, kGpu)};
  step(batch);
  Cost cost;
  {
    const SlotCalls calls;
    CHECK_FALSE(step(batch).replayed);
    for (const auto& [slot, n] : calls.calls()) {
      cost.slot_calls += n;
      cost.by_slot += fmt::format(" {} {}", slot, n);
    }
  }
  CHECK(step(batch).replayed);
#ifdef MACGRAD_CUDA_EMULATED
  // Once more for what the step itself launches: the batch is copied to where the step reads it.
  const uint64_t before = emulation::launches();
  const auto copies = static_cast<int64_t>(Ids(batch).tensors().size());
  CHECK(step(batch).replayed);
  cost.launches = static_cast<int64_t>(emulation::launches() - before) - copies;
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
