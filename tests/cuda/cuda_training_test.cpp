// Whole programs on the CUDA device beside the CPU: a Transformer trained for 50 updates, greedy
// translations, feature draws, and a cell of the NMSE experiment.
#include <doctest/doctest.h>

#include <cmath>
#include <functional>
#include <optional>

#include "macgrad/core/step_graph.h"
#include "macgrad/experiments/multi30k/evaluation.h"
#include "macgrad/experiments/multi30k/training.h"
#include "macgrad/experiments/nmse/measure.h"
#include "macgrad/nn/maclaurin_features.h"
#include "macgrad/nn/positions.h"
#include "macgrad/tests/composites_allowed.h"
#include "macgrad/tests/cuda/device.h"
#include "macgrad/tests/op_cases.h"

namespace macgrad::testing {
namespace {

using namespace experiments;

Multi30kSettings tiny(const std::string& attention, const std::string& device) {
  Multi30kSettings s;
  make_toy(s);
  s.toy_train_pairs = 200;
  s.toy_valid_pairs = 12;
  s.layers = 1;
  s.d_model = 16;
  s.heads = 2;
  s.ffn = 32;
  s.features = 32;
  s.batch_tokens = 80;
  s.warmup = 10;
  s.epochs = 20;
  s.max_updates = 50;
  s.attention = attention;
  s.ppsbn = attention != "softmax";
  s.common.device = device;
  s.shape_multiple = 1;  // the CPU's batches
  return s;
}

struct Run {
  std::vector<double> losses, norms;
  int64_t replays = 0, large_draws = 0;
  std::vector<std::string> refused;
  std::vector<std::string> translations;
  std::map<std::string, Tensor> state;
};

using AfterUpdate = std::function<void(Trainer&, int64_t update)>;

Run train(const Multi30kSettings& s, const AfterUpdate& after = {}) {
  const TranslationData data = load_translation_data(s);
  Trainer trainer(s, data);
  Run run;
  for (int64_t epoch = 1; !trainer.finished(); ++epoch)
    trainer.train_epoch(epoch, [&](const nn::StepReport& r) {
      run.losses.push_back(r.loss);
      run.norms.push_back(r.gradient_norm);
      if (after) after(trainer, r.step);
      return true;
    });
  run.replays = trainer.step().replays();
  run.large_draws = trainer.step().left_out();
  run.refused = trainer.step().eager_reasons();
  for (const auto& [name, value] : trainer.model().state_dict())
    run.state[name] = value.to(kCpu).clone();
  run.translations =
      *translate(trainer.model(), data.codecs(),
                 {data.valid_source.begin(), data.valid_source.begin() + 6}, 64, s.device());
  return run;
}

TEST_CASE("cuda training: updates of a Transformer stay within 1e-4 of the CPU's") {
  const Threads one(1);
  for (const std::string attention : {"softmax", "rmfa", "exact"}) {
    CAPTURE(attention);
    Multi30kSettings on_cpu = tiny(attention, "cpu"), on_gpu = tiny(attention, "cuda");
    // Exact attention is made of ops that the other two runs have as well.
    if (attention == "exact") on_cpu.max_updates = on_gpu.max_updates = 10;
    [[maybe_unused]] const std::optional<OpenMemory> open =
        attention == "exact" ? std::nullopt : std::optional<OpenMemory>(std::in_place);
    const Run cpu = train(on_cpu), gpu = train(on_gpu);
    REQUIRE(cpu.losses.size() == static_cast<size_t>(on_cpu.max_updates));
    REQUIRE(gpu.losses.size() == cpu.losses.size());
    for (size_t i = 0; i < cpu.losses.size(); ++i)
      CHECK(gpu.losses[i] == doctest::Approx(cpu.losses[i]).epsilon(1e-4));
    CHECK(gpu.losses.back() < gpu.losses.front());
    CHECK(gpu.translations == cpu.translations);
    // Feature draws are whole numbers, and the same on both devices.
    for (const auto& [name, value] : cpu.state)
      if (value.dtype() == DType::int64) CHECK(difference(gpu.state.at(name), value) == 0);
  }
}

// Losses, parameters and the number of replays of a run with and without recorded updates, on
// batches of the same shapes.
TEST_CASE("cuda training: replayed updates are the eager ones, bit for bit") {
  const Threads one(1);
  [[maybe_unused]] const OpenMemory open;
  struct Row {
    std::string attention, draws;
    bool trained_scale = false;
  };
  // iid draws have another layout at every step, `optimal` draws a few. A scale that is trained
  // moves the weights of the draws.
  for (const Row& row : {Row{"softmax", "iid"}, Row{"rmfa", "iid"}, Row{"rmfa", "optimal"},
                         Row{"rmfa", "h01", true}, Row{"exact", "iid"}}) {
    CAPTURE(row.attention);
    CAPTURE(row.draws);
    Multi30kSettings s = tiny(row.attention, "cuda");
    s.dropout = 0.1;
    s.attention_dropout = row.attention == "softmax" ? 0.1 : 0.0;
    s.toy_train_pairs = 24;
    s.batch_tokens = 96;
    s.max_updates = 9;
    s.shape_multiple = 8;
    s.draws = row.draws;
    s.train_logit_scale = row.trained_scale;
    s.graph = "off";
    const Run eager = train(s);
    CHECK(eager.replays == 0);
    s.graph = "on";
    const Run replayed = train(s);
    CHECK(replayed.refused.empty());
    CHECK(replayed.large_draws == 0);
    // All but the first update of each of two shapes.
    CHECK(replayed.replays == s.max_updates - 2);
    CHECK(replayed.losses == eager.losses);
    CHECK(replayed.norms == eager.norms);
    for (const auto& [name, value] : eager.state)
      CHECK_MESSAGE(difference(replayed.state.at(name), value) == 0, name);
  }
}

std::vector<nn::LinearAttentionCore*> rmfa_cores(Trainer& trainer) {
  std::vector<nn::LinearAttentionCore*> cores;
  for (nn::Module* m : trainer.model().modules())
    if (auto* core = dynamic_cast<nn::LinearAttentionCore*>(m)) cores.push_back(core);
  return cores;
}

nn::RandomMaclaurinFeatures& features_of(nn::LinearAttentionCore& core) {
  return dynamic_cast<nn::RandomMaclaurinFeatures&>(core.map());
}

// Small batches of two shapes, nearly all of whose updates can be replayed.
Multi30kSettings two_shapes(const std::string& draws) {
  Multi30kSettings s = tiny("rmfa", "cuda");
  s.toy_train_pairs = 24;
  s.batch_tokens = 96;
  s.shape_multiple = 8;
  s.draws = draws;
  return s;
}

TEST_CASE("cuda training: shapes are recorded anew when the draws get another place in memory") {
  const Threads one(1);
  [[maybe_unused]] const OpenMemory open;
  for (const int64_t first : {4, 6}) {
    CAPTURE(first);
    Multi30kSettings s = two_shapes("optimal");
    s.train_logit_scale = true;
    s.max_updates = first + 7;
    int64_t places = 0;
    // Between the warm-up of shapes and their recording, and after it. A plan of `optimal` depends
    // on the scale.
    const auto grow = [&](Trainer& trainer, int64_t update) {
      for (nn::LinearAttentionCore* core : rmfa_cores(trainer)) {
        if (const auto part = features_of(*core).recorded_part(); part) places = part->front();
        if (update != first) continue;
        const nn::Parameter& theta = *core->logit_scale.theta;
        theta.value().fill(theta.value().item() + std::log(4.0));
      }
    };
    s.graph = "off";
    const Run eager = train(s, grow);
    CHECK(places > 1);
    s.graph = "on";
    const Run replayed = train(s, grow);
    CHECK(replayed.refused.empty());
    CHECK(replayed.large_draws == 0);
    CHECK(replayed.replays >= 3);
    CHECK(replayed.losses == eager.losses);
    for (const auto& [name, value] : eager.state)
      CHECK_MESSAGE(difference(replayed.state.at(name), value) == 0, name);
  }
}

TEST_CASE("cuda training: updates with a draw larger than its place run eagerly and are counted") {
  const Threads one(1);
  [[maybe_unused]] const OpenMemory open;
  Multi30kSettings s = two_shapes("iid");
  s.features = 1;
  s.max_updates = 9;
  // Whether an update from `first` to `last` draws more projections than the bounds.
  const TranslationData data = load_translation_data(s);
  Trainer trainer(s, data);
  const auto exceeds = [&](uint64_t seed, uint32_t first, uint32_t last) {
    for (nn::LinearAttentionCore* core : rmfa_cores(trainer)) {
      const nn::FeatureDraw& draw = features_of(*core).training_draw();
      const auto bounds = nn::draw_bounds(features_of(*core).function(), draw.plan);
      DrawKey key = draw.key;
      REQUIRE(key.seed == s.common.seed);
      key.seed = seed;
      for (key.step = first; key.step <= last; ++key.step)
        if (nn::draw_features(features_of(*core).function(), draw.settings, draw.plan, key)
                .projections() > bounds.projections)
          return true;
    }
    return false;
  };
  for (const auto& [first, last] : {std::pair{1u, 4u}, {7u, 9u}}) {
    CAPTURE(first);
    uint64_t seed = 1;
    while (!exceeds(seed, first, last)) REQUIRE(++seed < 5000);
    Multi30kSettings seeded = s;
    seeded.common.seed = seed;
    seeded.graph = "off";
    const Run eager = train(seeded);
    seeded.graph = "on";
    const Run replayed = train(seeded);
    CHECK(replayed.refused.empty());
    CHECK(replayed.replays >= 2);
    if (first > 4) CHECK(replayed.large_draws > 0);
    CHECK(replayed.losses == eager.losses);
    for (const auto& [name, value] : eager.state)
      CHECK_MESSAGE(difference(replayed.state.at(name), value) == 0, name);
  }
}

TEST_CASE("cuda training: a recorded step keeps the position vectors it was recorded with") {
  const NoGrad no_grad;
  nn::ModelRandom random(3);
  const nn::Positions positions(nullptr, "positions", nn::PositionKind::sinusoidal, 0, 16, random);
  const Variable x(Tensor::full({2, 5, 16}, 0.5, DType::float32, kGpu));
  const Tensor eager = positions.forward(x).value();
  (void)positions.forward(x);
  Variable y;
  const StepGraph graph(kGpu, [&] { y = positions.forward(x); });
  graph.replay({});
  CHECK(difference(y.value(), eager) == 0);
  // Longer than the vectors there are; then what they would have left is used again.
  (void)positions.forward(Variable(Tensor::zeros({1, 100, 16}, DType::float32, kGpu)));
  Tensors others;
  for (int i = 0; i < 8; ++i) others.push_back(Tensor::full({64, 16}, 7.0, DType::float32, kGpu));
  graph.replay({});
  CHECK(difference(y.value(), eager) == 0);
}

// The CPU runs attention as composites, with scores rounded to bfloat16.
TEST_CASE("cuda training: --precision bf16 follows the CPU, and replayed updates the eager ones") {
  const Threads one(1);
  [[maybe_unused]] const OpenMemory open;
  for (const std::string attention : {"softmax", "rmfa"}) {
    CAPTURE(attention);
    Multi30kSettings s = tiny(attention, "cpu");
    s.common.precision = "bf16";
    s.toy_train_pairs = 24;
    s.batch_tokens = 96;
    s.max_updates = attention == "softmax" ? 12 : 9;
    s.shape_multiple = 8;
    s.draws = "optimal";
    const Run cpu = [&] {
      const CompositesAllowed attention_in_bfloat16;
      return train(s);
    }();
    s.common.device = "cuda";
    const Run replayed = train(s);
    s.graph = "off";
    const Run eager = train(s);
    CHECK(replayed.refused.empty());
    CHECK(replayed.replays >= (attention == "softmax" ? 6 : 3));
    CHECK(replayed.losses == eager.losses);
    CHECK(replayed.norms == eager.norms);
    for (const auto& [name, value] : eager.state)
      CHECK_MESSAGE(difference(replayed.state.at(name), value) == 0, name);
    REQUIRE(cpu.losses.size() == eager.losses.size());
    for (size_t i = 0; i < cpu.losses.size(); ++i)
      CHECK(eager.losses[i] == doctest::Approx(cpu.losses[i]).epsilon(0.02));
    CHECK(eager.losses.back() < eager.losses.front());
  }
}

TEST_CASE("cuda training: updates that cannot be recorded run eagerly, and say why") {
  const Threads one(1);
  [[maybe_unused]] const OpenMemory open;
  // Heads wider than the kernel takes: the composite goes by the levels of a draw.
  const CompositesAllowed allowed;
  Multi30kSettings s = tiny("rmfa", "cuda");
  s.d_model = 130;
  s.heads = 1;
  s.toy_train_pairs = 4;
  s.max_updates = 3;
  const Run refused = train(s);
  CHECK(refused.replays == 0);
  REQUIRE(refused.refused.size() == 1);
  CHECK(refused.refused[0].find("--graph off") != std::string::npos);
  CHECK(refused.refused[0].find("composite") != std::string::npos);
  s.graph = "off";
  CHECK(train(s).losses == refused.losses);
}

TEST_CASE("cuda training: the same seed gives the same bits") {
  const Threads one(1);
  [[maybe_unused]] const OpenMemory open;
  Multi30kSettings s = tiny("rmfa", "cuda");
  s.max_updates = 4;
  const Run a = train(s), b = train(s);
  CHECK(a.losses == b.losses);
  for (const auto& [name, value] : a.state) CHECK(difference(b.state.at(name), value) == 0);
}

TEST_CASE("cuda nmse: a cell measures what the CPU measures") {
  const Threads one(1);
  const auto measured = [](const std::string& device) {
    NmseSettings s;
    s.lengths = {48};
    s.features = {32};
    s.draws = {"iid", "optimal"};
    s.batch = 1;
    s.heads = 2;
    s.repeats = 2;
    s.gradients = true;
    s.common.device = device;
    std::vector<NmseRow> rows;
    measure(
        s, [](int64_t, int64_t, const std::string&) { return true; },
        [&](const std::vector<NmseRow>& list) {
          rows.insert(rows.end(), list.begin(), list.end());
        },
        [](const std::string&) {});
    return rows;
  };
  const auto cpu = measured("cpu"), gpu = measured("cuda");
  REQUIRE(cpu.size() == gpu.size());
  for (size_t i = 0; i < cpu.size(); ++i) {
    CHECK(gpu[i].approximate.log10 == doctest::Approx(cpu[i].approximate.log10).epsilon(1e-3));
    CHECK(gpu[i].taylor1.log10 == doctest::Approx(cpu[i].taylor1.log10).epsilon(2e-2));
    CHECK(gpu[i].approximate_gradients[0].log10 ==
          doctest::Approx(cpu[i].approximate_gradients[0].log10).epsilon(1e-2));
  }
}

}  // namespace
}  // namespace macgrad::testing
