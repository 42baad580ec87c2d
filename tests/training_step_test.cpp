// nn::TrainingStep and the optimizers behind it: PyTorch's trajectories, micro-batches, random
// keys, penalties, the reduce hook, clipping, skipped updates, and steps that were not begun.
#include "macgrad/nn/training_step.h"

#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

#include "macgrad/experiments/common/output_files.h"
#include "macgrad/nn/linear.h"
#include "nn_checks.h"
#include "toy_transformer.h"

namespace macgrad::nn {

using namespace macgrad::checks;

namespace {

using experiments::Json;

// A batch of which the loss is a single number.
struct Given {
  Tensor x;
  std::vector<Tensor*> tensors() { return {&x}; }
  int64_t count() const { return 1; }
};

struct Point : Module {
  explicit Point(Tensor start) : p(this, "p", std::move(start)) {}
  Parameter p;
};

// Two layers with dropout between them.
struct Mlp : Module {
  explicit Mlp(uint64_t seed = 1, double p = 0.0)
      : random(seed),
        a(this, "a", 3, 16, random),
        b(this, "b", 16, 1, random),
        drop(this, "drop", p, random) {}
  Variable forward(const Variable& x) { return b.forward(drop.forward(relu(a.forward(x)))); }
  Variable loss(const Examples& batch) {
    const Variable error = sub(forward(Variable(batch.inputs)), Variable(batch.targets));
    return sum(mul(error, error));
  }
  ModelRandom random;
  Linear a, b;
  Dropout drop;
};

Examples examples(int64_t rows, uint32_t draw) {
  const Tensor x = normal_tensor({rows, 3}, draw, DType::float32);
  return {x, sum(Variable(x), {1}, true).value()};
}

std::map<std::string, Tensor> copies(Module& model) {
  std::map<std::string, Tensor> result;
  for (const auto& [name, value] : model.state_dict()) result[name] = value.clone();
  return result;
}

void check_same(Module& a, Module& b, double tolerance = 0.0) {
  const auto other = b.state_dict();
  for (const auto& [name, value] : a.state_dict()) {
    CAPTURE(name);
    CHECK(max_abs_difference(value, other.at(name)) <= tolerance);
  }
}

}  // namespace

TEST_CASE("200 updates with a one-cycle schedule are PyTorch's") {
  const Json json = experiments::read_json(MACGRAD_FIXTURES "/one_cycle.json");
  struct Kind {
    const char* name;
    double clip;
    OneCycleSettings cycle;
  };
  for (const Kind& kind :
       {Kind{"adamw", 0.0, {}}, Kind{"adamw_clipped", 0.5, {.warmup = 0.1, .start_divisor = 10.0}},
        Kind{"sgd", 0.0, {}}}) {
    CAPTURE(kind.name);
    const Json& expected = json.at(kind.name);
    Point point(Tensor::from_vector(std::vector<double>{-1.0, -0.5, 0.0, 0.5, 1.0}));
    std::unique_ptr<Optimizer> optimizer;
    if (std::string(kind.name) == "sgd")
      optimizer = std::make_unique<SGD>(point, 0.9, 0.01);
    else
      optimizer = std::make_unique<Adam>(point, 0.1, AdamSettings{.beta2 = 0.98, .eps = 1e-9});
    const OneCycle cycle = one_cycle(0.05, 200, kind.cycle);
    TrainingStep<Given> step(point, *optimizer,
                             [&](const Given& given) {
                               return add(sum(mul(point.p, Variable(given.x))),
                                          mul(sum(mul(point.p, point.p)), 0.15));
                             },
                             {.lr = cycle.lr, .momentum = cycle.momentum, .clip_value = kind.clip});
    for (int64_t t = 1; t <= 200; ++t) {
      std::vector<double> s;
      for (int i = 0; i < 5; ++i) s.push_back(std::sin(0.37 * static_cast<double>(t) + i));
      const StepReport report = step(Given{Tensor::from_vector(s)});
      if (t % 20 != 0) continue;
      CAPTURE(t);
      const auto row = static_cast<size_t>(t / 20 - 1);
      CHECK(std::abs(report.lr - expected.at("lr")[row].get<double>()) < 1e-15);
      CHECK(std::abs(cycle.momentum(t) - expected.at("momentum")[row].get<double>()) < 1e-14);
      const auto values = expected.at("values")[row].get<std::vector<double>>();
      CHECK(max_abs_difference(point.p.value(), Tensor::from_vector(values)) < 1e-12);
    }
    CHECK(cycle.lr(201) == cycle.lr(200));
  }
  CHECK_THROWS_AS(one_cycle(0.1, 10, {.warmup = 0.05}), Error);
  CHECK_THROWS_AS(one_cycle(0.1, 10, {.warmup = 1.0}), Error);
}

TEST_CASE("a training step fits a line, with either optimizer") {
  const Examples batch = examples(32, 1);
  Mlp with_adam, with_sgd;
  Adam adam(with_adam);
  SGD sgd(with_sgd, 0.9);
  TrainingStep<Examples> one(with_adam, adam, [&](const Examples& b) { return with_adam.loss(b); },
                             {.lr = constant_schedule(0.02)});
  TrainingStep<Examples> other(with_sgd, sgd, [&](const Examples& b) { return with_sgd.loss(b); },
                               {.lr = constant_schedule(0.02)});
  const double first = one(batch).loss;
  for (auto* step : {&one, &other}) {
    StepReport last;
    for (int i = 0; i < 200; ++i) last = (*step)(batch);
    CHECK(last.loss < 0.02 * first);
    CHECK(last.count == 32);
    CHECK(last.step == step->steps());
    CHECK_FALSE(last.replayed);
  }
  CHECK(adam.steps() == 201);
  CHECK(contains(error_of([&] { other(std::vector<Examples>{}); }), "at least one micro-batch"));
  TrainingStep<Examples> vectors(
      with_sgd, sgd, [&](const Examples& b) { return with_sgd.forward(Variable(b.inputs)); });
  CHECK(contains(error_of([&] { vectors(batch); }), "it must be one number"));
}

TEST_CASE("SGD: decay, bounds, momentum and what it cannot do without one") {
  Point point(Tensor::from_vector(std::vector<double>{1.0, 2.0}));
  SGD sgd(point, 0.5, 0.1);
  std::vector<double> p{1.0, 2.0}, b{0.0, 0.0};
  for (int t = 1; t <= 3; ++t) {
    point.p.set_grad(Variable(Tensor::from_vector(std::vector<double>{1.0, -1.0})));
    sgd.step(0.1, {.grad_scale = 2.0, .momentum = t == 3 ? std::optional(0.25) : std::nullopt});
    for (size_t i = 0; i < 2; ++i) {
      b[i] = (t == 3 ? 0.25 : 0.5) * b[i] + (i == 0 ? 2.0 : -2.0) + 0.1 * p[i];
      p[i] -= 0.1 * b[i];
    }
    check_near(point.p.value(), Tensor::from_vector(p), 1e-14);
  }
  CHECK(sgd.state_dict().contains("p/momentum"));
  SGD plain(point);
  CHECK(plain.state_dict().size() == 1);
  CHECK(contains(error_of([&] { plain.step(0.1, {.momentum = 0.9}); }), "momentum"));
}

TEST_CASE("gradients are clipped by norm and by value, after scaling") {
  Point point(Tensor::zeros({2}, DType::float64));
  SGD sgd(point);
  const auto move = [&](const StepOptions& options) {
    point.p.value().fill(0.0);
    point.p.set_grad(Variable(Tensor::from_vector(std::vector<double>{30.0, -40.0})));
    CHECK(sgd.step(1.0, options) == doctest::Approx(5.0));
    return point.p.value().to_vector<double>();
  };
  const auto by_norm = move({.grad_scale = 0.1, .clip_norm = 1.0});
  CHECK(by_norm[0] == doctest::Approx(-0.6));
  CHECK(by_norm[1] == doctest::Approx(0.8));
  const auto by_value = move({.grad_scale = 0.1, .clip_value = 3.5});
  CHECK(by_value[0] == doctest::Approx(-3.0));
  CHECK(by_value[1] == doctest::Approx(3.5));
}

TEST_CASE("what a micro-batch drops depends on seed, step and micro-batch alone") {
  ModelRandom random(4), twin_random(4);
  Dropout drop(nullptr, "drop", 0.5, random), twin(nullptr, "drop", 0.5, twin_random);
  const Variable x(Tensor::full({200}, 1.0));
  const auto same = [](const Variable& a, const Variable& b) {
    return max_abs_difference(a.value(), b.value()) == 0.0;
  };
  drop.begin_step(7, 0);
  const Variable first = drop.forward(x);
  drop.forward(x);
  drop.begin_micro_batch(7, 1);
  const Variable second = drop.forward(x);
  // Another process, which runs the second micro-batch alone.
  twin.begin_step(7, 3);
  twin.begin_micro_batch(7, 1);
  CHECK(same(twin.forward(x), second));
  CHECK_FALSE(same(first, second));
  drop.begin_step(8, 0);
  CHECK_FALSE(same(drop.forward(x), first));
  drop.begin_micro_batch(7, 0);
  CHECK(same(drop.forward(x), first));
  CHECK(contains(error_of([&] { drop.begin_micro_batch(7, 1 << 16); }), "at most 65536"));
}

TEST_CASE("two processes that add up their sums make the update of one") {
  const Examples a = examples(5, 1), b = examples(9, 2);
  struct Penalised : Mlp {
    Penalised() : Mlp(1, 0.3) {}
    Variable penalty() override { return mul(sum(mul(this->a.weight, this->a.weight)), 0.01); }
  };
  Penalised whole, left, right;
  Adam whole_adam(whole), left_adam(left), right_adam(right);
  TrainingStepOptions options{.lr = constant_schedule(0.01), .clip_norm = 0.7};
  TrainingStep one(
      whole, whole_adam, [&](const Examples& e) { return whole.loss(e); }, options);
  // Process 1 runs first and leaves its sums here; what it makes of them alone does not matter.
  Tensors gradients;
  double loss = 0;
  int64_t count = 0;
  options.processes = 2;
  options.process = 1;
  options.reduce = [&](UpdateSums& sums) {
    gradients.clear();
    for (const Parameter* p : sums.parameters) gradients.push_back(p->grad().value().clone());
    loss = sums.loss;
    count = sums.count;
  };
  TrainingStep second(
      right, right_adam, [&](const Examples& e) { return right.loss(e); }, options);
  options.process = 0;
  options.reduce = [&](UpdateSums& sums) {
    REQUIRE(sums.parameters.size() == gradients.size());
    for (size_t i = 0; i < gradients.size(); ++i) {
      const Parameter* const p = sums.parameters[i];
      p->set_grad(add(p->grad(), Variable(gradients[i])).detach());
    }
    sums.loss += loss;
    sums.count += count;
  };
  TrainingStep first(
      left, left_adam, [&](const Examples& e) { return left.loss(e); }, options);
  for (int n = 1; n <= 3; ++n) {
    right.load_state_dict(left.state_dict());
    second({b, a});
    const StepReport found = first({a, b}), expected = one({a, b, b, a});
    CHECK(found.count == 28);
    CHECK(found.loss == doctest::Approx(expected.loss).epsilon(1e-6));
    CHECK(found.gradient_norm == doctest::Approx(expected.gradient_norm).epsilon(1e-5));
    CHECK(expected.penalty == doctest::Approx(found.penalty).epsilon(1e-6));
    check_same(whole, left, 1e-6);
  }
  options.process = 2;
  const auto third = [&] {
    TrainingStep(
        left, left_adam, [&](const Examples& e) { return left.loss(e); }, options);
  };
  CHECK(contains(error_of(third), "process 2 of 2"));
}

TEST_CASE("penalties are added to the mean loss, once per update") {
  struct Penalised : Point {
    using Point::Point;
    Variable penalty() override {
      ++calls;
      return mul(sum(mul(p, p)), 0.5);
    }
    int calls = 0;
  };
  Penalised point(Tensor::from_vector(std::vector<double>{2.0}));
  SGD sgd(point);
  struct Counted : Given {
    int64_t count() const { return 3; }
  };
  TrainingStep<Counted> step(
      point, sgd, [&](const Counted& given) { return sum(mul(point.p, Variable(given.x))); },
      {.lr = constant_schedule(1.0)});
  const Counted batch{{Tensor::from_vector(std::vector<double>{6.0})}};
  const StepReport report = step({batch, batch});
  CHECK(point.calls == 1);
  CHECK(report.count == 6);
  CHECK(report.loss == doctest::Approx(4.0));
  CHECK(report.penalty == doctest::Approx(2.0));
  CHECK(report.gradient_norm == doctest::Approx(2.0 + 2.0));  // of the mean loss, of the penalty
  CHECK(point.p.value().item() == doctest::Approx(-2.0));
}

TEST_CASE("an update that is not finite changes nothing and is reported") {
  Point point(Tensor::from_vector(std::vector<double>{1.0}));
  Adam adam(point);
  TrainingStep<Given> step(
      point, adam, [&](const Given& given) { return sum(mul(point.p, Variable(given.x))); });
  const double infinite = std::numeric_limits<double>::infinity();
  for (const double bad : {infinite, std::nan("")}) {
    const StepReport report = step(Given{Tensor::from_vector(std::vector<double>{bad})});
    CHECK(report.skipped);
    CHECK_FALSE(std::isfinite(report.loss));
    CHECK(point.p.value().item() == 1.0);
  }
  CHECK(adam.steps() == 0);
  CHECK(adam.skipped() == 2);
  const StepReport report = step(Given{Tensor::from_vector(std::vector<double>{1.0})});
  CHECK_FALSE(report.skipped);
  CHECK(report.step == 3);
  CHECK(point.p.value().item() < 1.0);
}

TEST_CASE("a resumed training step goes on with its number, and draws what it would have drawn") {
  const Examples batch = examples(8, 3);
  const auto make = [](Mlp& model, Adam& adam) {
    return std::make_unique<TrainingStep<Examples>>(
        model, adam, [&model](const Examples& b) { return model.loss(b); },
        TrainingStepOptions{.lr = inverse_sqrt_schedule(0.1, 2)});
  };
  Mlp model(1, 0.5), resumed(9, 0.5);
  resumed.random = ModelRandom(1);
  Adam adam(model), other(resumed);
  const auto step = make(model, adam), rest = make(resumed, other);
  for (int i = 0; i < 3; ++i) (*step)(batch);
  resumed.load_state_dict(copies(model));
  other.load_state_dict(adam.state_dict());
  rest->resume(3);
  for (int i = 0; i < 2; ++i) {
    CHECK((*rest)(batch).loss == (*step)(batch).loss);
    check_same(model, resumed);
  }
}

TEST_CASE("a step that was not begun is an error where it would repeat its draws") {
  const auto attention = [](AttentionKind kind) {
    AttentionSettings s;
    s.kind = kind;
    s.features = 16;
    s.ppsbn = kind.name == "rmfa";
    s.dropout = kind.name == "softmax" ? 0.1 : 0.0;
    return s;
  };
  const auto batch = make_batch(3, 4, 1);
  for (const AttentionKind& kind : {attention_kind("softmax"), attention_kind("rmfa")}) {
    CAPTURE(kind.name);
    Transformer model(tiny(attention(kind))), bystander(tiny(attention(kind)));
    Adam adam(model);
    backward(loss_of(model, batch).sum);  // the first step may do without
    adam.step(0.01);
    const std::string message = error_of([&] { loss_of(model, batch); });
    CHECK(contains(message, "begin_step(step, epoch)"));
    CHECK(contains(message, kind.name == "rmfa" ? "features" : "self_attention"));
    CHECK_NOTHROW(loss_of(bystander, batch));
    {
      const EvalScope evaluation(model);
      CHECK_NOTHROW(loss_of(model, batch));
    }
    model.begin_step(2, 0);
    CHECK_NOTHROW(loss_of(model, batch));
    // Gradients that are not finite change nothing, but the step is over.
    for (Parameter* p : model.parameters())
      p->set_grad(Variable(Tensor::full(p->shape(), std::nan(""))));
    adam.step(0.01);
    CHECK(contains(error_of([&] { loss_of(model, batch); }), "begin_step"));
  }
  // One optimizer of two models: each of them is begun.
  Mlp a(1, 0.5), b(2, 0.5);
  std::vector<Parameter*> both = a.parameters();
  for (Parameter* p : b.parameters()) both.push_back(p);
  Adam adam({{both, 0.0, 1.0}});
  const Examples rows = examples(4, 1);
  backward(add(a.loss(rows), b.loss(rows)));
  adam.step(0.01);
  a.begin_step(2, 0);
  CHECK_NOTHROW(a.loss(rows));
  CHECK(contains(error_of([&] { b.loss(rows); }), "'drop'"));
  // A model that draws nothing needs no begin_step, and neither does one fixed draw of features.
  AttentionSettings fixed = attention(attention_kind("rmfa"));
  fixed.redraw = RedrawPolicy::parse("never");
  Transformer model(tiny(fixed));
  Adam of_fixed(model);
  backward(loss_of(model, batch).sum);
  of_fixed.step(0.01);
  CHECK_NOTHROW(loss_of(model, batch));
}

TEST_CASE("draws of a captured step cannot be read on the host") {
  CHECK(contains(error_of([] { DrawReader({1, 2, 3, kLiveStep}).bits(); }), "on the host"));
}

}  // namespace macgrad::nn
