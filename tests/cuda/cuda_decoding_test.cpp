// Decoding on the CUDA device beside the CPU: the same model, states that grow, move and leave, and
// beam search.
#include <doctest/doctest.h>

#include "macgrad/autograd/ops.h"
#include "macgrad/nn/decoding.h"
#include "macgrad/tests/cuda/device.h"
#include "macgrad/tests/op_cases.h"

namespace macgrad::testing {
namespace {

using namespace nn;

TransformerSettings small(AttentionKind kind) {
  TransformerSettings s;
  s.source_vocabulary = s.target_vocabulary = 12;
  s.encoder_layers = s.decoder_layers = 1;
  s.layer.width = 8;
  s.layer.heads = 2;
  s.layer.ffn = 12;
  s.layer.attention.kind = kind;
  s.layer.attention.ppsbn = kind.name != "softmax";
  s.layer.attention.sbn_eps = 1e-6;
  s.layer.attention.features = 24;
  s.layer.attention.eval_draws = kind.name == "rmfa" ? 2 : 1;
  s.tie_output = false;
  s.seed = 4;
  return s;
}

}  // namespace

TEST_CASE("cuda decoding: steps and searches stay within 1e-4 of the CPU's") {
  const Threads one(1);
  const Tensor source = Tensor::from_vector(
      std::vector<int64_t>{3, 9, 5, 7, 2, 4, 11, 2, 0, 0, 8, 6, 10, 2, 0}, Shape{3, 5});
  const Tensor valid = not_equal(source.to(DType::float32), Tensor::zeros({3, 5}));
  const auto steps = [&](Transformer& model, Device device) {
    const NoGrad no_grad;
    const EvalScope evaluation(model);
    StepDecoder decoder(model, source.to(device), valid.to(device));
    const auto step = [&](const std::vector<int64_t>& tokens, int64_t rows) {
      return decoder
          .advance(Tensor::from_vector(tokens, Shape{rows, std::ssize(tokens) / rows}, device))
          .to(kCpu);
    };
    Tensors seen{step({1, 3, 1, 4, 1, 5}, 3)};
    decoder.select({0, 0, 1, 1, 2, 2}, {0, 1, 2});
    seen.push_back(step({3, 4, 5, 6, 7, 8}, 6));
    decoder.select({1, 0, 5, 5}, {0, 2});
    seen.push_back(step({9, 10, 11, 3}, 4));
    return seen;
  };
  for (const AttentionKind& kind :
       {attention_kind("softmax"), attention_kind("exact"), attention_kind("rmfa")}) {
    CAPTURE(kind.name);
    Transformer on_cpu(small(kind)), on_card(small(kind));
    for (Transformer* model : {&on_cpu, &on_card}) {
      // Preferences, so that no two hypotheses are nearly as good.
      const Tensor weight = model->output->weight.value();
      weight.copy_from(mul(Variable(weight.clone()), 4.0).value());
      model->output->bias->value().select(0, 2).fill(1.0);
    }
    on_card.to(kGpu);
    const Tensors cpu = steps(on_cpu, kCpu), gpu = steps(on_card, kGpu);
    for (size_t i = 0; i < cpu.size(); ++i) CHECK(difference(gpu[i], cpu[i]) < 1e-4);
    const auto search = [&](Transformer& model, Device device) {
      return beam_search(model, source.to(device), valid.to(device), {5, 3, 6}, {1, 2, {0, 1}},
                         {.beam = 3});
    };
    const auto a = search(on_cpu, kCpu), b = search(on_card, kGpu);
    for (size_t s = 0; s < a.size(); ++s) {
      REQUIRE(a[s].size() == b[s].size());
      for (size_t h = 0; h < a[s].size(); ++h) {
        CHECK(b[s][h].tokens == a[s][h].tokens);
        CHECK(b[s][h].score == doctest::Approx(a[s][h].score).epsilon(1e-4));
      }
    }
  }
}

}  // namespace macgrad::testing
