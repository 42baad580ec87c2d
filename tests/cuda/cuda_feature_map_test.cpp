// Feature draws on a device that records steps: training draws keep one place in memory, and what
// is larger lies by itself.
#include <doctest/doctest.h>

#include <memory>

#include "macgrad/autograd/engine.h"
#include "macgrad/autograd/ops.h"
#include "macgrad/core/generator.h"
#include "macgrad/core/kernels/rmfa.h"
#include "macgrad/cuda/step_values.h"
#include "macgrad/nn/attention_core.h"
#include "macgrad/nn/maclaurin_features.h"
#include "macgrad/tests/cuda/device.h"
#include "macgrad/tests/op_cases.h"

namespace macgrad::testing {
namespace {

using namespace nn;

struct Map {
  explicit Map(const FeatureSettings& settings, const std::string& redraw = "step")
      : random(3),
        features(nullptr, "features", dot_product_kernel("exp"), settings,
                 RedrawPolicy::parse(redraw), 1, random) {}
  ModelRandom random;
  RandomMaclaurinFeatures features;
};

FeatureSettings settings_of(DrawMethod method, int64_t features, int64_t heads = 1) {
  FeatureSettings s;
  s.method = method;
  s.features = features;
  s.head_dim = 8;
  s.heads = heads;
  return s;
}

// The draw on the GPU is the one on the CPU, widened.
void check_draw(const FeatureDraw& gpu, const FeatureDraw& cpu) {
  const int64_t P = cpu.projections(), M = cpu.weight.numel();
  CHECK(gpu.levels == cpu.levels);
  CHECK(difference(gpu.omega.to(kCpu).slice(gpu.omega.rank() - 1, 0, P), cpu.omega) == 0);
  CHECK(difference(gpu.weight.to(kCpu).slice(0, 0, M), cpu.weight) == 0);
  if (!gpu.layout.defined()) return;
  auto layout = gpu.layout.to_vector<double>();
  CHECK(layout.size() == static_cast<size_t>(kRmfaLayout));
  CHECK(layout[0] == cpu.constant);
  CHECK(layout[1] == cpu.linear);
  CHECK(layout[kRmfaLayoutScale] == cpu.settings.logit_scale);
  for (size_t l = 0; l < kRmfaLayoutLevels; ++l)
    CHECK(layout[kRmfaLayoutHeader + l] ==
          (l < cpu.levels.size() ? static_cast<double>(cpu.levels[l]) : 0.0));
}

TEST_CASE("cuda feature map: draws of any layout keep their place in memory") {
  for (const auto& [method, heads] :
       {std::pair{DrawMethod::iid, 1}, {DrawMethod::optimal, 2}, {DrawMethod::h01, 1}}) {
    Map gpu(settings_of(method, 48, heads)), cpu(settings_of(method, 48, heads));
    CHECK_FALSE(gpu.features.recorded_part().has_value());
    const FeatureDraw first = gpu.features.current(DType::float32, kGpu);
    const auto part = gpu.features.recorded_part();
    REQUIRE(part.has_value());
    const DrawBounds bounds = draw_bounds(gpu.features.function(), first.plan);
    CHECK(first.omega.size(-1) == bounds.projections);
    CHECK(first.weight.size(0) == bounds.features);
    for (uint32_t step = 1; step < 20; ++step) {
      gpu.features.begin_step(step, 0);
      cpu.features.begin_step(step, 0);
      const FeatureDraw& draw = gpu.features.current(DType::float32, kGpu);
      CHECK(draw.omega.raw() == first.omega.raw());
      CHECK(draw.weight.raw() == first.weight.raw());
      CHECK(draw.layout.raw() == first.layout.raw());
      CHECK(gpu.features.recorded_part() == part);
      check_draw(draw, cpu.features.current());
    }
    // Another device and back, and a state that is loaded: the same place.
    check_draw(gpu.features.current(DType::float32, kCpu), cpu.features.current());
    CHECK_FALSE(gpu.features.recorded_part().has_value());
    CHECK(gpu.features.current(DType::float32, kGpu).omega.raw() == first.omega.raw());
    gpu.features.load_state_dict(cpu.features.state_dict());
    CHECK(gpu.features.recorded_part() == part);
    check_draw(gpu.features.current(DType::float32, kGpu), cpu.features.current());
    // Evaluation has draws of its own, of their own size.
    gpu.features.eval();
    CHECK_FALSE(gpu.features.current(DType::float32, kGpu).layout.defined());
    CHECK(gpu.features.recorded_part() == part);
    gpu.features.train();
    // Another type is another place.
    gpu.features.current(DType::bfloat16, kGpu);
    CHECK(gpu.features.recorded_part() != part);
  }
}

TEST_CASE("cuda feature map: a draw above the bounds lies by itself, the next is back") {
  // Few features: 6 standard deviations are soon passed.
  const FeatureSettings settings = settings_of(DrawMethod::iid, 1);
  Map gpu(settings), cpu(settings);
  const FeaturePlan plan = gpu.features.training_draw().plan;
  const DrawBounds bounds = draw_bounds(gpu.features.function(), plan);
  const DrawKey key = gpu.features.training_draw().key;
  const auto projections = [&](uint32_t step) {
    DrawKey one = key;
    one.step = step;
    return draw_features(gpu.features.function(), settings, plan, one).projections();
  };
  uint32_t large = 1;
  while (projections(large) <= bounds.projections) REQUIRE(++large < 100000);
  gpu.features.current(DType::float32, kGpu);
  gpu.features.begin_step(large - 1, 0);
  const auto part = gpu.features.recorded_part();
  REQUIRE(part.has_value());
  gpu.features.begin_step(large, 0);
  cpu.features.begin_step(large, 0);
  CHECK_FALSE(gpu.features.recorded_part().has_value());
  const FeatureDraw& draw = gpu.features.current(DType::float32, kGpu);
  CHECK_FALSE(draw.layout.defined());
  CHECK(draw.omega.size(-1) == projections(large));
  check_draw(draw, cpu.features.current());
  gpu.features.begin_step(large + 1, 0);
  cpu.features.begin_step(large + 1, 0);
  REQUIRE(projections(large + 1) <= bounds.projections);
  CHECK(gpu.features.recorded_part() == part);
  check_draw(gpu.features.current(DType::float32, kGpu), cpu.features.current());
}

TEST_CASE("cuda feature draws: the kernel makes the host's draws, in one launch for many maps") {
  std::vector<std::unique_ptr<Map>> maps, twins;
  for (const DType dtype : {DType::float32, DType::bfloat16, DType::float64})
    for (const auto& [method, heads] : {std::pair{DrawMethod::iid, 1},
                                        {DrawMethod::srht, 2},
                                        {DrawMethod::optimal, 1},
                                        {DrawMethod::stratified, 1},
                                        {DrawMethod::h01, 2}}) {
      // More maps than one launch takes.
      for (int i = 0; i < (method == DrawMethod::iid ? 40 : 1); ++i) {
        const FeatureSettings settings = settings_of(method, 48 + i, heads);
        maps.push_back(std::make_unique<Map>(settings));
        twins.push_back(std::make_unique<Map>(settings));
        maps.back()->features.current(dtype, kGpu);
      }
    }
  for (const uint32_t step : {5u, 6u}) {
    Tensors laws, omegas, weights, layouts;
    std::vector<FeatureDrawArgs> args;
    std::vector<size_t> drawn;
    for (size_t i = 0; i < maps.size(); ++i) {
      twins[i]->features.begin_step(step, 0);
      maps[i]->features.begin_step(step, 0);
      if (!maps[i]->features.recorded_part()) continue;  // above the bounds
      const auto live = maps[i]->features.live_draw();
      REQUIRE(live.has_value());
      CHECK(live->args.key.step == kLiveStep);
      laws.push_back(live->law);
      omegas.push_back(live->omega);
      weights.push_back(live->weight);
      layouts.push_back(live->layout);
      args.push_back(live->args);
      drawn.push_back(i);
    }
    CHECK(drawn.size() > maps.size() * 9 / 10);
    if (step == 5)
      for (FeatureDrawArgs& a : args) a.key.step = step;
    cuda::set_step_values({.step = step});
    kernels::draw_features(laws, omegas, weights, layouts, args);
    for (size_t i = 0; i < drawn.size(); ++i) {
      const FeatureDraw& wanted = twins[drawn[i]]->features.current(omegas[i].dtype());
      FeatureDraw made = wanted;
      made.omega = omegas[i];
      made.weight = weights[i];
      made.layout = layouts[i];
      check_draw(made, wanted);
    }
  }
}

TEST_CASE("cuda feature map: draws are put off until they are asked for") {
  Map gpu(settings_of(DrawMethod::optimal, 48)), cpu(settings_of(DrawMethod::optimal, 48));
  const Tensor place = gpu.features.current(DType::float32, kGpu).omega;
  const auto before = place.to_vector<float>();
  gpu.features.begin_step(3, 0);
  cpu.features.begin_step(3, 0);
  CHECK(place.to_vector<float>() == before);
  CHECK(gpu.features.state_dict().at("draw").to_vector<int64_t>() ==
        cpu.features.state_dict().at("draw").to_vector<int64_t>());
  CHECK(place.to_vector<float>() != before);
  check_draw(gpu.features.training_draw(), cpu.features.training_draw());
  // A scale that is trained: begin_step draws, and what it had put off before is made first.
  gpu.features.begin_step(4, 0);
  cpu.features.begin_step(4, 0);
  for (Map* map : {&gpu, &cpu}) map->features.set_logit_scale(1.01);
  check_draw(gpu.features.current(DType::float32, kGpu), cpu.features.current());
  gpu.features.begin_step(5, 0);
  CHECK(gpu.features.recorded_part().has_value());
  CHECK_FALSE(gpu.features.live_draw().has_value());
  CHECK(gpu.features.training_draw().settings.logit_scale == 1.01);
}

TEST_CASE("cuda feature map: a state of another law or seed gives draws another place") {
  FeatureSettings settings = settings_of(DrawMethod::iid, 48);
  Map gpu(settings);
  gpu.features.current(DType::float32, kGpu);
  const auto part = gpu.features.recorded_part();
  REQUIRE(part.has_value());
  gpu.features.load_state_dict(Map(settings).features.state_dict());
  CHECK(gpu.features.recorded_part() == part);
  settings.logit_scale = 0.5;
  Map slower(settings);
  slower.features.begin_step(7, 0);
  gpu.features.load_state_dict(slower.features.state_dict());
  CHECK(gpu.features.recorded_part() != part);
  const auto live = gpu.features.live_draw();
  REQUIRE(live.has_value());
  FeatureDrawArgs args = live->args;
  args.key.step = 7;
  kernels::draw_features(Tensors{live->law}, Tensors{live->omega}, Tensors{live->weight},
                         Tensors{live->layout}, {args});
  check_draw(gpu.features.training_draw(), slower.features.training_draw());
}

TEST_CASE("cuda feature map: backward after the next draw is refused by name") {
  ModelRandom random(3);
  AttentionSettings settings = paper_attention();
  settings.features = 16;
  LinearAttentionCore core(nullptr, "core", settings, {AttentionRole::self, 2, 8, &random});
  core.to(kGpu);
  const Variable x(Tensor::full({1, 2, 3, 8}, 0.1, DType::float32, kGpu), true);
  const auto loss = [&] { return sum(core.forward({x, x, x, {}, {}})); };
  core.begin_step(1, 0);
  const Variable late = loss();
  // Before the draw is made, too: a replay may have made it.
  core.begin_step(2, 0);
  CHECK_THROWS_WITH_AS(backward(late), doctest::Contains("the feature draw"), Error);
  backward(loss());
  CHECK(x.grad().defined());
}

}  // namespace
}  // namespace macgrad::testing
