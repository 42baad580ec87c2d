// Modules: names, modes, strict state dicts, casts; the small layers and their initial values.
#include <cmath>

#include "macgrad/autograd/engine.h"
#include "macgrad/nn/attention_core.h"
#include "macgrad/nn/init.h"
#include "macgrad/nn/multi_head_attention.h"
#include "macgrad/nn/sequential.h"
#include "macgrad/nn/transformer.h"
#include "nn_checks.h"

namespace macgrad::nn {

using namespace macgrad::checks;

namespace {

struct Pair : Module {
  explicit Pair(ModelRandom& random)
      : first(this, "first", 3, 4, random),
        second(this, "second", 4, random),
        count(this, "count", Tensor::zeros(Shape{2})) {}
  struct Inner : Module {
    Inner(Module* parent, std::string name, int64_t width, ModelRandom& random)
        : Module(parent, std::move(name)),
          table(this, "table", 5, width, random),
          drop(this, "drop", 0.5, random) {}
    Embedding table;
    Dropout drop;
  };
  Linear first;
  Inner second;
  Buffer count;
};

}  // namespace

TEST_CASE("modules: names come from declaration") {
  ModelRandom random(1);
  Pair pair(random);
  std::vector<std::string> names;
  for (const auto& [name, p] : pair.named_parameters()) {
    names.push_back(name);
    CHECK(p->name() == name);
    CHECK(p->requires_grad());
  }
  CHECK(names == std::vector<std::string>{"first.weight", "first.bias", "second.table.weight"});
  CHECK(pair.second.table.path() == "second.table");
  CHECK(pair.parameter_count() == 12 + 4 + 20);
  CHECK(pair.modules().size() == 5);
  struct Twice : Module {
    explicit Twice(ModelRandom& r) : a(this, "x", 2, 2, r), b(this, "x", 2, 2, r) {}
    Linear a, b;
  };
  CHECK(contains(error_of([&] { Twice twice(random); }), "two members named 'x'"));
}

TEST_CASE("modules: forward hooks see and replace results, on every module of a model") {
  TransformerSettings settings;
  settings.source_vocabulary = settings.target_vocabulary = 11;
  settings.encoder_layers = settings.decoder_layers = 1;
  settings.layer.width = 8;
  settings.layer.heads = 2;
  settings.layer.ffn = 12;
  settings.layer.attention.kind = attention_kind("rmfa");
  settings.layer.attention.ppsbn = true;
  settings.layer.attention.features = 16;
  Transformer model(settings);
  std::map<std::string, int> calls;
  std::map<std::string, int> ids;
  for (Module* m : model.modules())
    ids[m->path()] = m->add_forward_hook([&calls, path = m->path()](const Variable& y) {
      CHECK(y.defined());
      ++calls[path];
      return Variable();
    });
  const Tensor tokens = Tensor::from_vector(std::vector<int64_t>{4, 5, 6, 7}, Shape{2, 2});
  const auto run = [&] {
    model.begin_step(1, 0);
    return model.forward(tokens, Tensor(), tokens, Tensor());
  };
  const Tensor plain = run().value();
  for (Module* m : model.modules()) {
    // These have no forward call: the features are drawn, a fixed logit scale is a number.
    const bool silent = m->path().ends_with(".features") || m->path().ends_with(".logit_scale");
    CAPTURE(m->path());
    CHECK(calls[m->path()] == (silent ? 0 : 1));
  }

  // Another result takes its place; the gradient of a module's result can be hooked there.
  model.encoder.remove_forward_hook(ids.at("encoder"));
  const int id = model.encoder.add_forward_hook([](const Variable& y) { return y * 2.0; });
  CHECK(max_abs_difference(run().value(), plain) > 0);
  CHECK(calls["encoder"] == 1);
  model.encoder.remove_forward_hook(id);
  CHECK(max_abs_difference(run().value(), plain) == 0);
  int seen = 0;
  model.encoder.add_forward_hook([&seen](const Variable& y) {
    y.add_hook([&seen](const Variable& g) {
      CHECK(g.shape() == Shape{2, 2, 8});
      ++seen;
      return Variable();
    });
    return Variable();
  });
  backward(sum(run()));
  CHECK(seen == 1);
  model.decoder.add_forward_hook([](const Variable& y) { return reshape(y, Shape{y.numel()}); });
  CHECK(contains(error_of([&] { run(); }), "a forward hook of 'decoder' returned"));
}

TEST_CASE("modules: a result that a hook of preSBN puts in place keeps its gradient") {
  PreSbn norm(nullptr, "norm", /*batch_statistics=*/true, 2, 4, 1e-6);
  norm.add_forward_hook([](const Variable& y) { return y * 2.0; });
  const Variable x = normal_leaf(Shape{3, 2, 5, 4}, 1, DType::float32);
  const Variable y = norm.forward(x, Tensor());
  REQUIRE(y.requires_grad());
  CHECK(grad({sum(y * y * y)}, {x})[0].defined());
}

TEST_CASE("modules: a state that a module refuses changes nothing") {
  AttentionSettings settings = rmfa_settings(16, false);
  ModelRandom random(1);
  MultiHeadAttention attention(nullptr, "attention", 8, 2, settings, AttentionRole::self, random);
  std::map<std::string, Tensor> state;
  for (const auto& [name, value] : attention.state_dict()) {
    state.emplace(name, value.clone());
    if (is_floating(value.dtype())) state.at(name).fill(7);
  }
  bool damaged = false;
  for (auto& [name, value] : state)
    if (name.ends_with("draw")) {
      // Dimensions of a head: beyond what memory holds, and of another model.
      value.data<int64_t>()[3] = int64_t{1} << 62;
      damaged = true;
    }
  REQUIRE(damaged);
  const auto before = [&] {
    std::map<std::string, std::vector<double>> values;
    for (const auto& [name, value] : attention.state_dict())
      values.emplace(name, value.to_vector<double>());
    return values;
  };
  const auto kept = before();
  CHECK(contains(error_of([&] { attention.load_state_dict(state); }), "sizes out of range"));
  CHECK(before() == kept);
  for (auto& [name, value] : state)
    if (name.ends_with("draw")) value.data<int64_t>()[3] = 8;
  CHECK(contains(error_of([&] { attention.load_state_dict(state); }), "8 dimensions for 1 heads"));
  CHECK(before() == kept);
}

TEST_CASE("modules: modes reach every child") {
  ModelRandom random(1);
  Pair pair(random);
  CHECK(pair.second.drop.training());
  pair.eval();
  CHECK_FALSE(pair.second.drop.training());
  pair.train();
  CHECK(pair.second.drop.training());
}

TEST_CASE("modules: a state dict goes in whole or not at all") {
  ModelRandom random(1);
  Pair pair(random);
  ModelRandom other_random(2);
  Pair other(other_random);
  CHECK(max_abs_difference(pair.first.weight.value(), other.first.weight.value()) > 0.01);
  other.count.set(Tensor::full(Shape{2}, 3.0));
  pair.load_state_dict(other.state_dict());
  CHECK(max_abs_difference(pair.first.weight.value(), other.first.weight.value()) == 0.0);
  CHECK(pair.count.value().at({1}) == 3.0);

  auto state = pair.state_dict();
  state.erase("first.bias");
  state["first.weight"] = Tensor::zeros(Shape{4, 2});
  state["count"] = Tensor::from_vector(std::vector<int64_t>{1, 2});
  state["third"] = Tensor::zeros(Shape{1});
  state["second.table.weight"] = Tensor::full(Shape{5, 4}, 9.0);
  const std::string message = error_of([&] { pair.load_state_dict(state); });
  CHECK(contains(message, "missing: first.bias (4)"));
  CHECK(contains(message, "misshapen: first.weight is (4, 2) and must be (4, 3)"));
  CHECK(contains(message, "misshapen: count holds int64 and must hold float32"));
  CHECK(contains(message, "unexpected: third (1)"));
  CHECK(pair.second.table.weight.value().at({0, 0}) != 9.0);
}

TEST_CASE("modules: a change of dtype keeps names and values") {
  ModelRandom random(1);
  Pair pair(random);
  const Tensor before = pair.first.weight.value().clone();
  pair.to(DType::float64);
  CHECK(pair.first.weight.dtype() == DType::float64);
  CHECK(pair.count.value().dtype() == DType::float64);
  CHECK(pair.first.weight.name() == "first.weight");
  CHECK(max_abs_difference(pair.first.weight.value().to(DType::float32), before) == 0.0);
  const Variable y = pair.first.forward(Variable(normal_tensor(Shape{2, 3}, 1)));
  backward(sum(y));
  CHECK(pair.first.bias->grad().value().at({0}) == 2.0);
}

TEST_CASE("modules: errors and records carry the path") {
  ModelRandom random(1);
  Pair pair(random);
  const Variable x(Tensor::zeros(Shape{2, 3}));
  CHECK(contains(pair.first.forward(x).name(), "first/"));
  const std::string message = error_of([&] {
    pair.first.forward(Variable(Tensor::zeros(Shape{2, 7})));
  });
  CHECK(contains(message, "in first"));
}

TEST_CASE("sequential: layers and functions in order, named by position") {
  ModelRandom random(3), same_values(3);
  Sequential model;
  Linear& first = model.add<Linear>(3, 8, random);
  model.add(relu);
  Sequential& inner = model.add<Sequential>();
  inner.add<Linear>(8, 2, random, /*with_bias=*/false);
  inner.add([](const Variable& x) { return 2.0 * x; });

  std::vector<std::string> names;
  for (const auto& [name, p] : model.named_parameters()) names.push_back(name);
  CHECK(names == std::vector<std::string>{"0.weight", "0.bias", "2.0.weight"});
  CHECK(first.path() == "0");

  const Variable x(Tensor::randn(Shape{5, 3}, 1), true);
  Linear a(nullptr, "a", 3, 8, same_values), b(nullptr, "b", 8, 2, same_values, false);
  const Variable y = model.forward(x), expected = 2.0 * b.forward(relu(a.forward(x)));
  CHECK(max_abs_difference(y.value(), expected.value()) == 0.0);
  CHECK(max_abs_difference(grad({sum(y)}, {x})[0].value(), grad({sum(expected)}, {x})[0].value()) ==
        0.0);
  CHECK(contains(inner.forward(relu(first.forward(x))).name(), "2/"));

  int seen = 0;
  model.add_forward_hook([&](const Variable&) {
    ++seen;
    return Variable();
  });
  model.forward(x);
  CHECK(seen == 1);
  model.eval();
  CHECK_FALSE(inner.training());
  CHECK(max_abs_difference(Sequential().forward(x).value(), x.value()) == 0.0);
  CHECK(contains(error_of([&] { model.add(nullptr); }), "[sequential] position 3"));
}

TEST_CASE("initial values are set by the seed and have the stated spread") {
  Generator a(3, 1), b(3, 1);
  const Tensor x = xavier_uniform(Shape{200, 100}, a);
  CHECK(max_abs_difference(x, xavier_uniform(Shape{200, 100}, b)) == 0.0);
  CHECK(max_abs_difference(x, xavier_uniform(Shape{200, 100}, b)) > 0.0);
  const double bound = std::sqrt(6.0 / 300.0);
  double largest = 0.0, square = 0.0;
  for (const double v : x.to_vector<double>()) {
    largest = std::max(largest, std::abs(v));
    square += v * v;
  }
  CHECK(largest <= bound);
  CHECK(largest > 0.99 * bound);
  CHECK(square / 20000.0 == doctest::Approx(bound * bound / 3.0).epsilon(0.03));
  double spread = 0.0;
  for (const double v : normal(Shape{10000}, a, 0.5).to_vector<double>()) spread += v * v;
  CHECK(spread / 10000.0 == doctest::Approx(0.25).epsilon(0.05));
}

TEST_CASE("dropout: off in evaluation, replayed by step, scaled") {
  ModelRandom random(4);
  Dropout drop(nullptr, "drop", 0.25, random);
  const Variable x(Tensor::full(Shape{4000}, 1.0), true);
  random.begin_step(7);
  const Variable a = drop.forward(x);
  const Variable b = drop.forward(x);
  random.begin_step(7);
  const Variable again = drop.forward(x);
  CHECK(max_abs_difference(a.value(), again.value()) == 0.0);
  CHECK(max_abs_difference(a.value(), b.value()) > 0.0);
  CHECK(mean(a).item() == doctest::Approx(1.0).epsilon(0.05));
  CHECK(max_abs_difference(grad({sum(a)}, {x})[0].value(), a.value()) == 0.0);
  drop.eval();
  CHECK(max_abs_difference(drop.forward(x).value(), x.value()) == 0.0);
  CHECK(contains(error_of([&] { Dropout bad(nullptr, "d", 1.0, random); }), "[0, 1)"));
}

TEST_CASE("embedding: the table serves both ends") {
  ModelRandom random(1);
  Embedding table(nullptr, "table", 6, 4, random);
  const Tensor ids = Tensor::from_vector(std::vector<int64_t>{1, 5, 1}, Shape{1, 3});
  const Variable logits = table.project(table.forward(ids));
  CHECK(logits.shape() == Shape{1, 3, 6});
  double square = 0.0;
  for (int64_t c = 0; c < 4; ++c) square += std::pow(table.weight.value().at({5, c}), 2);
  CHECK(logits.value().at({0, 1, 5}) == doctest::Approx(square));
  backward(sum(logits));
  CHECK(table.weight.grad().shape() == Shape{6, 4});
  CHECK_THROWS_AS(table.forward(Tensor::from_vector(std::vector<int64_t>{6}, Shape{1, 1})), Error);
}

TEST_CASE("positions: the sinusoids of the paper, and a limit for learned ones") {
  const Tensor p = sinusoidal_positions(10, 6);
  CHECK(p.at({0, 0}) == 0.0);
  CHECK(p.at({0, 1}) == 1.0);
  CHECK(p.at({7, 2}) == doctest::Approx(std::sin(7.0 / std::pow(10000.0, 2.0 / 6.0))));
  CHECK(p.at({7, 3}) == doctest::Approx(std::cos(7.0 / std::pow(10000.0, 2.0 / 6.0))));
  ModelRandom random(1);
  const Variable x(Tensor::zeros(Shape{2, 3, 6}));
  Positions fixed(nullptr, "fixed", PositionKind::sinusoidal, 0, 6, random);
  check_near(fixed.forward(x, 70).value().select(0, 1),
             sinusoidal_positions(73, 6).slice(0, 70, 73), 0.0);
  Positions learned(nullptr, "learned", PositionKind::learned, 4, 6, random);
  check_near(learned.forward(x, 1).value().select(0, 0), learned.weight->value().slice(0, 1, 4),
             0.0);
  CHECK(contains(error_of([&] { learned.forward(x, 2); }), "raise max_length"));
}

}  // namespace macgrad::nn
