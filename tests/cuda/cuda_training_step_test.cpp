// Captured training steps: bit for bit the eager ones with everything that an update may contain,
// and modules whose changes a replay would miss are detected.
#include <doctest/doctest.h>

#include <cmath>
#include <limits>

#include "macgrad/autograd/engine.h"
#include "macgrad/autograd/ops.h"
#include "macgrad/core/kernels/random.h"
#include "macgrad/nn/dropout.h"
#include "macgrad/nn/linear.h"
#include "macgrad/nn/training_step.h"
#include "macgrad/tests/cuda/device.h"
#include "macgrad/tests/op_cases.h"

namespace macgrad::testing {
namespace {

using nn::Examples;

// A feature map of a user's program: φ(x) = x·Ω, with Ω drawn anew for every step.
struct ForeignMap : nn::Module {
  ForeignMap(nn::Module* parent, std::string name) : Module(parent, std::move(name)) {}
  virtual Variable features(const Variable& x) = 0;
};

Tensor drawn(const DrawKey& key, Device device) {
  const Tensor omega = Tensor::empty({3, 8}, DType::float32, device);
  kernels::random_normal(omega, key);
  return omega;
}

DrawKey key_of(uint32_t step) {
  return {5, 0x3000, 0, step};
}

// Draws at begin_step and does not override on_capture.
struct Silent : ForeignMap {
  using ForeignMap::ForeignMap;
  Variable features(const Variable& x) override { return matmul(x, Variable(omega)); }
  void on_begin_step(uint32_t step, int64_t) override { omega = drawn(key_of(step), kGpu); }
  Tensor omega;
};

// Claims that nothing changes, while one of two tensors is read in turn.
struct TakesTurns : ForeignMap {
  using ForeignMap::ForeignMap;
  Variable features(const Variable& x) override { return matmul(x, Variable(omega[now])); }
  void on_begin_step(uint32_t step, int64_t) override {
    for (uint32_t i = 0; i < 2; ++i)
      if (!omega[i].defined()) omega[i] = drawn(key_of(i), kGpu);
    now = step % 2;
  }
  std::optional<std::vector<int64_t>> on_capture(DType, Device) override {
    return std::vector<int64_t>{};
  }
  Tensor omega[2];
  size_t now = 0;
};

// Claims that nothing changes, and draws in other memory every third step.
struct Replaces : ForeignMap {
  using ForeignMap::ForeignMap;
  Variable features(const Variable& x) override { return matmul(x, Variable(omega)); }
  void on_begin_step(uint32_t step, int64_t) override {
    if (omega.defined() && step % 3 != 0) return;
    omega = drawn(key_of(step), kGpu);  // the old one is released afterwards
  }
  std::optional<std::vector<int64_t>> on_capture(DType, Device) override {
    return std::vector<int64_t>{};
  }
  Tensor omega;
};

// Draws in forward calls, for a step of its own counting.
struct Counts : ForeignMap {
  using ForeignMap::ForeignMap;
  Variable features(const Variable& x) override {
    return matmul(x, Variable(drawn(key_of(++calls), kGpu)));
  }
  uint32_t calls = 0;
};

// Reads random numbers on the host.
struct OnTheHost : ForeignMap {
  using ForeignMap::ForeignMap;
  Variable features(const Variable& x) override {
    return mul(slice(concat({x, x, x}, 1), 1, 0, 8), DrawReader(key).uniform());
  }
  void on_micro_batch(uint32_t step, uint32_t) override { key = key_of(step); }
  DrawKey key;
};

// Draws for the step it is told.
struct Live : ForeignMap {
  using ForeignMap::ForeignMap;
  Variable features(const Variable& x) override { return matmul(x, Variable(drawn(key, kGpu))); }
  void on_micro_batch(uint32_t step, uint32_t) override { key = key_of(step); }
  DrawKey key;
};

// Draws at begin_step into the same memory.
struct InPlace : ForeignMap {
  InPlace(nn::Module* parent, std::string name) : ForeignMap(parent, std::move(name)) {
    omega = Tensor::zeros({3, 8}, DType::float32, kGpu);
  }
  Variable features(const Variable& x) override { return matmul(x, Variable(omega)); }
  void on_begin_step(uint32_t step, int64_t) override {
    kernels::random_normal(omega, key_of(step));
  }
  std::optional<std::vector<int64_t>> on_capture(DType, Device) override {
    return std::vector<int64_t>{};
  }
  Tensor omega;
};

template <class Map>
struct Model : nn::Module {
  Model() : random(1), map(this, "map"), head(this, "head", 8, 1, random) { to(kGpu); }
  Variable loss(const Examples& b) {
    const Variable error = sub(head.forward(map.features(Variable(b.inputs))), Variable(b.targets));
    return sum(mul(error, error));
  }
  nn::ModelRandom random;
  Map map;
  nn::Linear head;
};

Examples examples(int64_t rows, uint32_t draw) {
  const auto on_gpu = [&](const Shape& shape, uint32_t i) {
    return exact_values(shape, 2 * draw + i, DType::float32).to(kGpu);
  };
  return {on_gpu({rows, 3}, 0), on_gpu({rows, 1}, 1)};
}

struct Run {
  std::vector<double> losses, norms;
  int64_t replays = 0;
  std::vector<std::string> reasons;
};

template <class Map>
Run train(bool capture, int updates = 12) {
  Model<Map> model;
  nn::Adam adam(model);
  nn::TrainingStep step(model, adam, [&](const Examples& b) { return model.loss(b); },
                        {.lr = nn::constant_schedule(0.01), .capture = capture});
  Run run;
  for (int i = 0; i < updates; ++i) {
    const nn::StepReport report = step(examples(4, static_cast<uint32_t>(i)));
    run.losses.push_back(report.loss);
    run.norms.push_back(report.gradient_norm);
  }
  run.replays = step.replays();
  run.reasons = step.eager_reasons();
  return run;
}

template <class Map>
Run check_same_as_eager() {
  const Run eager = train<Map>(false), captured = train<Map>(true);
  CHECK(eager.replays == 0);
  CHECK(captured.losses == eager.losses);
  CHECK(captured.norms == eager.norms);
  return captured;
}

void check_reason(const Run& run, const std::string& reason) {
  CHECK(run.replays == 0);
  REQUIRE(run.reasons.size() == 1);
  CAPTURE(run.reasons[0]);
  CHECK(run.reasons[0].find(reason) != std::string::npos);
}

// Updates run eagerly, for a reason that is given once.
template <class Map>
void check_detected(const std::string& reason) {
  check_reason(check_same_as_eager<Map>(), reason);
}

TEST_CASE("cuda training step: modules whose changes a replay would miss are detected") {
  const Threads one(1);
  check_detected<Silent>("'map' overrides on_begin_step but not on_capture");
  check_detected<TakesTurns>("/matmul reads a tensor that the step before did not use");
  // It has also counted the call that was to be captured.
  check_reason(train<Counts>(true), "draws random numbers for step 2 alone");
  check_detected<OnTheHost>("read on the host");
  const Run run = check_same_as_eager<Replaces>();
  CHECK(run.replays == 7);  // not steps 1, 3, 6, 9 and 12
  CHECK(run.reasons.empty());
}

TEST_CASE("cuda training step: modules that draw for the step of each replay are replayed") {
  const Threads one(1);
  for (const Run& run : {check_same_as_eager<Live>(), check_same_as_eager<InPlace>()}) {
    CHECK(run.replays == 11);
    CHECK(run.reasons.empty());
  }
}

struct Mlp : nn::Module {
  Mlp()
      : random(1),
        a(this, "a", 3, 16, random),
        b(this, "b", 16, 1, random),
        drop(this, "drop", 0.3, random) {
    to(kGpu);
  }
  Variable loss(const Examples& batch) {
    const Variable y = b.forward(drop.forward(relu(a.forward(Variable(batch.inputs)))));
    const Variable error = sub(y, Variable(batch.targets));
    return sum(mul(error, error));
  }
  Variable penalty() override { return mul(sum(mul(a.weight, a.weight)), 0.01); }
  nn::ModelRandom random;
  nn::Linear a, b;
  nn::Dropout drop;
};

TEST_CASE("cuda training step: what an update may contain is captured bit for bit") {
  const Threads one(1);
  [[maybe_unused]] const OpenMemory open;
  for (const bool sgd : {false, true})
    for (const bool by_value : {false, true})
      for (const bool reduces : {false, true}) {
        CAPTURE(sgd);
        CAPTURE(by_value);
        CAPTURE(reduces);
        std::vector<double> expected;
        std::map<std::string, Tensor> state;
        for (const bool capture : {false, true}) {
          CAPTURE(capture);
          Mlp model;
          std::unique_ptr<nn::Optimizer> optimizer;
          if (sgd)
            optimizer = std::make_unique<nn::SGD>(model, 0.9, 0.1);
          else
            optimizer = std::make_unique<nn::Adam>(model, 0.1);
          const nn::OneCycle cycle = nn::one_cycle(0.05, 12);
          nn::TrainingStepOptions options{.lr = cycle.lr, .momentum = cycle.momentum};
          options.capture = capture;
          (by_value ? options.clip_value : options.clip_norm) = 0.2;
          int reduced = 0;
          if (reduces)
            options.reduce = [&](nn::UpdateSums& sums) {
              ++reduced;
              for (const nn::Parameter* p : sums.parameters)
                p->set_grad(mul(p->grad(), 2.0).detach());
              sums.count *= 2;
            };
          nn::TrainingStep<Examples> step(
              model, *optimizer, [&](const Examples& b) { return model.loss(b); }, options);
          std::vector<double> seen;
          for (uint32_t i = 0; i < 10; ++i) {
            // Two shapes in turn, of which one has two micro-batches.
            const nn::StepReport r =
                i % 2 == 0 ? step(examples(4, i)) : step({examples(4, i), examples(6, i + 100)});
            seen.insert(seen.end(),
                        {r.loss, r.penalty, r.gradient_norm, static_cast<double>(r.count)});
          }
          CHECK(step.replays() == (capture ? 8 : 0));
          CHECK(reduced == (reduces ? 10 : 0));
          CHECK(step.eager_reasons().empty());
          CHECK(optimizer->steps() == 10);
          if (!capture) {
            expected = seen;
            for (const auto& [name, value] : model.state_dict()) state[name] = value.to(kCpu);
            continue;
          }
          CHECK(seen == expected);
          for (const auto& [name, value] : model.state_dict())
            CHECK_MESSAGE(difference(value.to(kCpu), state.at(name)) == 0, name);
        }
      }
}

// A loss with a term that has no gradient.
struct Offset {
  Examples examples;
  Tensor offset;
  std::vector<Tensor*> tensors() { return {&examples.inputs, &examples.targets, &offset}; }
  int64_t count() const { return examples.count(); }
};

TEST_CASE("cuda training step: a replay whose loss is not finite changes nothing") {
  const Threads one(1);
  for (const bool capture : {false, true}) {
    CAPTURE(capture);
    Mlp model;
    nn::Adam adam(model);
    nn::TrainingStep step(
        model, adam,
        [&](const Offset& b) { return add(model.loss(b.examples), Variable(b.offset)); },
        {.capture = capture});
    const auto update = [&](double offset) {
      const Offset batch{examples(4, 1), Tensor::full({}, offset, DType::float32, kGpu)};
      return step({batch, batch});
    };
    update(0.0);
    CHECK(update(0.0).replayed == capture);
    const Tensor before = model.a.weight.value().to(kCpu);
    const nn::StepReport report = update(std::numeric_limits<double>::infinity());
    CHECK(report.replayed == capture);
    CHECK(report.skipped);
    CHECK(std::isinf(report.loss));
    CHECK(std::isnan(report.gradient_norm));
    CHECK(difference(model.a.weight.value().to(kCpu), before) == 0);
    CHECK(adam.steps() == 2);
    CHECK(adam.skipped() == 1);
    CHECK_FALSE(update(0.0).skipped);
    CHECK(difference(model.a.weight.value().to(kCpu), before) > 0);
  }
}

TEST_CASE("cuda training step: what a replay would not do runs eagerly") {
  const Threads one(1);
  Mlp model;
  nn::Adam adam(model);
  nn::TrainingStep step(model, adam, [&](const Examples& b) { return model.loss(b); });
  const Examples batch = examples(4, 1);
  step(batch);
  CHECK(step(batch).replayed);
  // A mode, a frozen parameter, a hook.
  model.drop.eval();
  CHECK_FALSE(step(batch).replayed);
  CHECK(step(batch).replayed);
  const Tensor frozen = model.a.weight.value().to(kCpu);
  model.a.weight.set_requires_grad(false);
  CHECK_FALSE(step(batch).replayed);
  CHECK(step(batch).replayed);
  CHECK(difference(model.a.weight.value().to(kCpu), frozen) == 0);
  int seen = 0;
  const int id = model.b.weight.add_hook([&](const Variable&) {
    ++seen;
    return Variable();
  });
  CHECK_FALSE(step(batch).replayed);
  CHECK(seen == 1);
  REQUIRE(step.eager_reasons().size() == 1);
  CHECK(step.eager_reasons()[0].find("have hooks") != std::string::npos);
  model.b.weight.remove_hook(id);
  CHECK(step(batch).replayed);
  model.a.weight.set_requires_grad(true);
  int differentiated = 0;
  CHECK_FALSE(step({batch}, 0, [&](const Variable& loss) {
                ++differentiated;
                backward(loss);
              }).replayed);
  CHECK(differentiated == 2);  // the loss, the penalty
}

}  // namespace
}  // namespace macgrad::testing
