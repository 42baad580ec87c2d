// Adam and AdamW against PyTorch's figures, groups, bounds, clipping, state; schedules; losses.
#include <cmath>
#include <limits>

#include "macgrad/core/safetensors.h"
#include "macgrad/nn/loss.h"
#include "macgrad/nn/optimizer.h"
#include "macgrad/nn/schedule.h"
#include "nn_checks.h"

namespace macgrad::nn {

using namespace macgrad::checks;

namespace {

struct One : Module {
  explicit One(const Tensor& start, ParameterOptions options = {})
      : p(this, "p", start.clone(), options) {}
  Parameter p;
};

Adam make_adam(One& one, double decay, bool decoupled) {
  return Adam({{{&one.p}, decay, 1.0}}, {0.9, 0.98, 1e-9, decoupled});
}

}  // namespace

TEST_CASE("Adam, Adam with L2 and AdamW follow PyTorch") {
  const auto torch =
      load_safetensors(std::string(MACGRAD_FIXTURES) + "/torch_transformer.safetensors").tensors;
  struct Kind {
    const char* name;
    double decay;
    bool decoupled;
  };
  for (const Kind& kind :
       {Kind{"adam", 0.0, true}, Kind{"adam_l2", 0.1, false}, Kind{"adamw", 0.1, true}}) {
    CAPTURE(kind.name);
    One one(torch.at("adam.start"));
    Adam adam = make_adam(one, kind.decay, kind.decoupled);
    for (int64_t t = 0; t < 3; ++t) {
      const Tensor g = torch.at("adam.gradients").select(0, t);
      one.p.set_grad(Variable(g));
      double norm = 0.0;
      for (const double v : g.to_vector<double>()) norm += v * v;
      CHECK(adam.step(0.05, {.clip_norm = 1.0}) == doctest::Approx(std::sqrt(norm)));
      check_near(one.p.value(), torch.at(std::string(kind.name) + ".values").select(0, t), 1e-12);
    }
  }
}

TEST_CASE("Adam: scale, bounds, missing and non-finite gradients") {
  One one(Tensor::full(Shape{2}, 0.15), {true, 0.1});
  One idle(Tensor::full(Shape{1}, 2.0));
  Adam adam({{{&one.p, &idle.p}, 0.5, 1.0}});
  one.p.set_grad(Variable(Tensor::full(Shape{2}, 30.0)));
  CHECK(adam.step(0.5, {.grad_scale = 0.1}) == doctest::Approx(3.0 * std::sqrt(2.0)));
  CHECK(one.p.value().at({0}) == doctest::Approx(0.1));  // held at its bound
  CHECK(idle.p.value().item() == 2.0);                   // no gradient: not even decay
  one.p.set_grad(Variable(Tensor::full(Shape{2}, std::numeric_limits<double>::infinity())));
  CHECK(std::isinf(adam.step(0.5)));
  CHECK(adam.skipped() == 1);
  CHECK(adam.steps() == 1);
  CHECK(one.p.value().at({0}) == doctest::Approx(0.1));
}

TEST_CASE("Adam: a bounded update has the bits of one that is clamped, in a call per bound") {
  struct Calls : KernelObserver {
    std::vector<std::string> slots;
    void after(const KernelCall& call) override { slots.push_back(call.name); }
  };
  for (const DType dtype : {DType::float32, DType::float64, DType::bfloat16}) {
    CAPTURE(name(dtype));
    const Tensor start = normal_tensor(Shape{257}, 1).to(dtype);
    One bounded(start, {true, 0.1}), free(start);
    Adam adam({{{&bounded.p, &free.p}, 0.5, 1.0}});
    const Variable g(normal_tensor(Shape{257}, 2).to(dtype));
    bounded.p.set_grad(g);
    free.p.set_grad(g);
    Calls calls;
    KernelObserver* const previous = set_kernel_observer(&calls);
    adam.step(0.05);
    set_kernel_observer(previous);
    CHECK(calls.slots == std::vector<std::string>{"sum_of_squares", "adam", "adam"});
    const auto clamped = [](const Tensor& value) {
      return clamp(Variable(value), 0.1, std::numeric_limits<double>::infinity()).value();
    };
    CHECK(max_abs_difference(bounded.p.value(), clamped(free.p.value())) == 0.0);
    CHECK(max_abs_difference(bounded.p.value(), free.p.value()) > 1.0);
  }
}

TEST_CASE("Adam: a saved state continues where it stopped") {
  One a(normal_tensor(Shape{5}, 1)), b(normal_tensor(Shape{5}, 1));
  Adam first = make_adam(a, 0.01, true), second = make_adam(b, 0.01, true);
  const auto update = [](One& one, Adam& adam, uint32_t t) {
    one.p.set_grad(Variable(normal_tensor(Shape{5}, 10 + t)));
    adam.step(0.1);
  };
  for (uint32_t t = 0; t < 3; ++t) update(a, first, t);
  b.load_state_dict(a.state_dict());
  second.load_state_dict(first.state_dict());
  CHECK(second.steps() == 3);
  update(a, first, 3);
  update(b, second, 3);
  CHECK(max_abs_difference(a.p.value(), b.p.value()) == 0.0);
  auto state = first.state_dict();
  state.erase("p/first");
  state["q/first"] = Tensor::zeros(Shape{1});
  const std::string message = error_of([&] { second.load_state_dict(state); });
  CHECK(contains(message, "missing: p/first"));
  CHECK(contains(message, "unexpected: q/first"));
}

TEST_CASE("decay spares norms, biases, gamma, beta and the trained scale") {
  TransformerSettings s;
  s.source_vocabulary = s.target_vocabulary = 7;
  s.encoder_layers = s.decoder_layers = 1;
  s.layer.width = 8;
  s.layer.heads = 2;
  s.layer.ffn = 16;
  s.layer.attention = rmfa_settings(16);
  s.layer.attention.train_logit_scale = true;
  Transformer model(s);
  const auto groups = decay_groups(model, 0.01);
  CHECK(groups[0].weight_decay == 0.01);
  CHECK(groups[1].weight_decay == 0.0);
  for (const Parameter* p : groups[0].parameters) CHECK(p->rank() == 2);
  for (const Parameter* p : groups[1].parameters) CHECK(p->rank() == 1);
  CHECK(groups[0].parameters.size() + groups[1].parameters.size() == model.parameters().size());
}

TEST_CASE("mse loss: the mean of squared differences, of operands that match") {
  const Variable x = normal_leaf(Shape{4, 3}, 1), y = normal_leaf(Shape{4, 3}, 2);
  double expected = 0.0;
  for (int64_t i = 0; i < 4; ++i)
    for (int64_t j = 0; j < 3; ++j)
      expected += std::pow(x.value().at({i, j}) - y.value().at({i, j}), 2) / 12;
  const Variable loss = mse_loss(x, y);
  CHECK(loss.rank() == 0);
  CHECK(loss.item() == doctest::Approx(expected));
  CHECK(gradcheck([](const Variables& v) { return mse_loss(v[0], v[1]); }, {x, y}).ok);

  // In bfloat16 the squares and their sum are float32.
  const Tensor ones = Tensor::full(Shape{1000}, 1.0, DType::bfloat16);
  const Variable rounded =
      mse_loss(Variable(ones), Variable(Tensor::full(Shape{1000}, 0.90625, DType::bfloat16)));
  CHECK(rounded.dtype() == DType::float32);
  CHECK(rounded.item() == doctest::Approx(0.09375 * 0.09375).epsilon(1e-6));

  const auto error = [&](const Variable& target) { return error_of([&] { mse_loss(x, target); }); };
  CHECK(contains(error(normal_leaf(Shape{4, 1}, 3)), "[mse_loss]"));
  CHECK(contains(error(normal_leaf(Shape{4, 1}, 3)), "(4, 1)"));
  CHECK(contains(error(normal_leaf(Shape{4, 3}, 3, DType::float32)), "float32"));
}

TEST_CASE("token loss: smoothing, padding, and the mean a token") {
  const Variable logits = normal_leaf(Shape{2, 3, 5}, 1);
  const Tensor targets = Tensor::from_vector(std::vector<int64_t>{1, 4, 0, 2, 0, 0}, Shape{2, 3});
  const TokenLoss loss = token_loss(logits, targets, 0, 0.1);
  CHECK(loss.tokens == 3);
  const Variable lp = log_softmax(logits, -1);
  double expected = 0.0;
  const std::vector<std::array<int64_t, 3>> places{{0, 0, 1}, {0, 1, 4}, {1, 0, 2}};
  for (const auto& [b, t, y] : places) {
    expected -= 0.9 * lp.value().at({b, t, y});
    for (int64_t c = 0; c < 5; ++c) expected -= 0.1 / 5 * lp.value().at({b, t, c});
  }
  CHECK(loss.sum.item() == doctest::Approx(expected));
  CHECK(loss.mean().item() == doctest::Approx(expected / 3));
  const Tensor g = grad({loss.sum}, {logits})[0].value();
  CHECK(max_abs_difference(g.select(0, 1).slice(0, 1, 3),
                           Tensor::zeros(Shape{2, 5}, DType::float64)) == 0.0);
}

TEST_CASE("schedules") {
  const Schedule constant = constant_schedule(2.0, 4);
  CHECK(constant(1) == 0.5);
  CHECK(constant(4) == 2.0);
  CHECK(constant(1000) == 2.0);
  const Schedule root = inverse_sqrt_schedule(1.0, 100);
  CHECK(root(50) == 0.5);
  CHECK(root(100) == 1.0);
  CHECK(root(400) == 0.5);
  const Schedule cycle = one_cycle_schedule(1.0, 10, 110);
  CHECK(cycle(5) == 0.5);
  CHECK(cycle(10) == 1.0);
  CHECK(cycle(60) == 0.5);
  CHECK(cycle(110) == 0.0);
  CHECK(cycle(200) == 0.0);
  CHECK(contains(error_of([] { parse_schedule("cosine", 1, 1, 2); }), "inverse-sqrt"));
  CHECK_THROWS_AS(one_cycle_schedule(1.0, 10, 10), Error);
}

}  // namespace macgrad::nn
