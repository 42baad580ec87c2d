// A dot-product kernel that is no row of the library's table, made at run time as a user's program
// makes it: exact attention and RMFA with it train, decode and go through a checkpoint.
#include <doctest/doctest.h>

#include "macgrad/core/safetensors.h"
#include "macgrad/nn/training_step.h"
#include "temporary_folder.h"
#include "toy_transformer.h"

namespace macgrad::nn {
namespace {

using namespace macgrad::checks;

DotProductKernel cube() {
  return {"cube", "(1 - t)^-3", 1.0, [](const auto& t) {
            const auto inverse = 1.0 / (1.0 - t);
            return inverse * inverse * inverse;
          }};
}

TransformerSettings with_cube(AttentionKind kind) {
  AttentionSettings attention;
  attention.kind = kind;
  attention.kernel = cube();
  attention.draws = DrawMethod::optimal;
  attention.features = 128;
  attention.ppsbn = true;
  attention.pre_sbn = PreSbnMode::row;
  attention.logit_scale = 2.0;  // |t| <= 1/2 with 16 dimensions per head
  TransformerSettings s = tiny(attention, 32, 64);
  s.layer.norm = NormPlace::pre;
  return s;
}

TEST_CASE("a kernel made at run time trains, decodes and goes through a checkpoint") {
  const OneThread one_thread;
  const testing::TemporaryFolder folder;
  const Batch b = make_batch(16, 5, 7);
  for (const AttentionKind& kind : {attention_kind("exact"), attention_kind("rmfa")}) {
    CAPTURE(kind.name);
    Transformer model(with_cube(kind));
    CHECK(model.decoder.layers[0]->self_attention.core().describe().find("cube") !=
          std::string::npos);
    Adam adam(model, 0.0, {.beta2 = 0.98});
    TrainingStep step(model, adam, [&](const Batch& batch) { return loss_of(model, batch).sum; },
                      {.lr = constant_schedule(5e-3), .clip_norm = 1.0});
    CHECK(step(b).loss > 2.5);  // log 17 words = 2.8
    double loss = 0.0;
    while (step.steps() < 200) loss = step(b).loss;
    CHECK(loss < 0.5);
    model.eval();
    const auto decoded = greedy(model, b, 7);

    const std::string file = folder / "model.safetensors";
    save_safetensors(file, model.state_dict());
    TransformerSettings other_settings = with_cube(kind);
    other_settings.seed = 99;
    Transformer other(other_settings);
    other.eval();
    CHECK(greedy(other, b, 7) != decoded);
    other.load_state_dict(load_safetensors(file).tensors);
    CHECK(greedy(other, b, 7) == decoded);
  }
}

TEST_CASE("a kernel made at run time keeps its domain") {
  AttentionSettings s;
  s.kind = attention_kind("rmfa");
  s.kernel = cube();
  CHECK_THROWS_AS(Transformer(tiny(s)), Error);  // rows of any norm
  s.ppsbn = true;
  s.logit_scale = 2.0;  // t = 1 with 4 dimensions a head
  CHECK_THROWS_AS(Transformer(tiny(s)), Error);
  s.logit_scale = 1.9;
  CHECK_NOTHROW(Transformer(tiny(s)));
}

}  // namespace
}  // namespace macgrad::nn
