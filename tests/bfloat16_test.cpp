// Training in bfloat16: long sums round once, losses stay float32, and float32 masters take the
// updates that are too small for the parameter.
#include <doctest/doctest.h>

#include <cmath>

#include "macgrad/autograd/fused.h"
#include "macgrad/core/kernels/optimizer.h"
#include "macgrad/core/safetensors.h"
#include "macgrad/nn/loss.h"
#include "macgrad/nn/optimizer.h"
#include "macgrad/tests/temporary_folder.h"
#include "nn_checks.h"

namespace macgrad::nn {

using namespace macgrad::checks;

namespace {

constexpr DType kLow = DType::bfloat16;

Variable leaf(const Shape& shape, double value) {
  return Variable(Tensor::full(shape, value, kLow), true);
}

void check_all(const Tensor& t, double value) {
  for (const double v : t.to_vector<double>()) CHECK(v == value);
}

// Σ y, of which every element has the gradient 1.
Tensors gradients(const Variable& y, const Variables& of) {
  Tensors list;
  for (const Variable& g : grad({sum(y)}, of)) list.push_back(g.value());
  return list;
}

struct One : Module {
  explicit One(const Tensor& start, ParameterOptions options = {})
      : p(this, "p", start.clone(), options) {}
  Parameter p;
};

void update(One& one, Adam& adam, uint32_t draw, double lr) {
  one.p.set_grad(Variable(normal_tensor(one.p.shape(), draw, one.p.dtype())));
  adam.step(lr);
}

}  // namespace

// Added one by one in bfloat16, ones stop at 256.
TEST_CASE("bfloat16: sums over a thousand rows are rounded once") {
  constexpr int64_t n = 1000, c = 3;
  check_all(sum(leaf({n, c}, 1), {0}).value(), n);
  check_all(sum(leaf({c, n}, 1), {1}).value(), n);
  const Variable x = leaf({n, c}, 1), weight = leaf({2, c}, 1), bias = leaf({2}, 0);
  const Tensors d = gradients(linear(x, weight, bias), {weight, bias});
  check_all(d[0], n);
  check_all(d[1], n);
  const Variable row = leaf({c}, 1);
  check_all(gradients(x + row, {row})[0], n);
  const Variable scale = leaf({c}, 1), shift = leaf({c}, 0);
  check_all(gradients(layer_norm(x, scale, shift, 1e-5), {shift})[0], n);
  // A table of which one row is wanted again and again.
  const Variable table = leaf({5, c}, 0);
  const Tensor again = gradients(embedding(table, Tensor::full({n}, 2, DType::int64)), {table})[0];
  check_all(again.select(0, 2), n);
  check_all(again.select(0, 1), 0);
  const Tensor places = Tensor::full({n, c}, 2, DType::int64);
  check_all(gradients(gather(table, 0, places), {table})[0].select(0, 2), n);
}

TEST_CASE("bfloat16: the loss, its sum over tokens and its gradient are those of the same logits") {
  const Tensor values = normal_tensor({40, 10, 50}, 1, kLow);
  const Tensor targets = random_ids(40, 10, 0, 50, 2);
  const auto run = [&](DType dtype) {
    const Variable logits(values.to(dtype), true);
    const TokenLoss loss = token_loss(logits, targets, 0, 0.1);
    return Tensors{loss.sum.value(), grad({loss.sum}, {logits})[0].value()};
  };
  const Tensors exact = run(DType::float64);
  const auto check = [&] {
    const Tensors low = run(kLow);
    CHECK(low[0].dtype() == DType::float32);
    CHECK(std::abs(low[0].item() - exact[0].item()) <= 1e-6 * exact[0].item());
    CHECK(low[1].dtype() == kLow);
    // Gradients lie below 1: half an ulp.
    CHECK(max_abs_difference(low[1].to(DType::float64), exact[1]) <= 0x1p-9);
  };
  check();
  const Unfused composites;
  check();
}

TEST_CASE("bfloat16: running statistics of a model stay float32") {
  TransformerSettings s;
  s.source_vocabulary = s.target_vocabulary = 7;
  s.encoder_layers = s.decoder_layers = 1;
  s.layer.width = 8;
  s.layer.heads = 2;
  s.layer.ffn = 16;
  s.layer.attention = rmfa_settings(16);
  Transformer model(s);
  model.to(kLow);
  int64_t statistics = 0;
  for (const auto& [name, value] : model.state_dict()) {
    CAPTURE(name);
    const bool running = name.find("running_") != std::string::npos;
    statistics += running;
    if (is_floating(value.dtype())) CHECK(value.dtype() == (running ? DType::float32 : kLow));
  }
  CHECK(statistics > 0);
  model.to(DType::float64);
  for (const auto& [name, value] : model.state_dict())
    if (is_floating(value.dtype())) CHECK(value.dtype() == DType::float64);
}

TEST_CASE("adam with masters: the float64 updates of the same gradients, and parameters rounded") {
  constexpr int64_t n = 20000;  // several blocks
  for (const bool decoupled : {true, false}) {
    const Tensor start = normal_tensor({n}, 1, kLow);
    const Tensor parameter = start.clone(), master = start.to(DType::float32);
    const Tensor first = Tensor::zeros({n}), second = Tensor::zeros({n});
    const auto zeros = [] { return Tensor::zeros({n}, DType::float64); };
    const Tensors wide{start.to(DType::float64), zeros(), zeros()};
    AdamArgs args{.lr = 1e-3, .beta2 = 0.98, .weight_decay = 0.01, .decoupled = decoupled};
    args.grad_scale = 0.5;
    for (args.step = 1; args.step <= 5; ++args.step) {
      const Tensor g = normal_tensor({n}, 10 + static_cast<uint32_t>(args.step), kLow);
      kernels::adam(Tensors{parameter}, Tensors{master}, Tensors{g}, Tensors{first},
                    Tensors{second}, args);
      kernels::adam(Tensors{wide[0]}, Tensors{}, Tensors{g.to(DType::float64)}, Tensors{wide[1]},
                    Tensors{wide[2]}, args);
    }
    CHECK(max_abs_difference(master.to(DType::float64), wide[0]) <= 2e-6);
    CHECK(max_abs_difference(first.to(DType::float64), wide[1]) <= 1e-6);
    CHECK(max_abs_difference(second.to(DType::float64), wide[2]) <= 1e-6);
    CHECK(max_abs_difference(parameter, master.to(kLow)) == 0);
    CHECK(max_abs_difference(parameter, start) > 0);
  }
}

TEST_CASE("adam with masters: updates of less than half an ulp add up") {
  // At 1 the next bfloat16 number below is 2^-8 away; Adam's step is lr while gradients are alike.
  constexpr double lr = 1e-4;
  const auto trained = [](bool masters) {
    const Tensor p = Tensor::full({1}, 1, kLow), g = Tensor::full({1}, 0.25, kLow);
    const DType kept = masters ? DType::float32 : kLow;
    const Tensor master = Tensor::full({1}, 1), first = Tensor::zeros({1}, kept),
                 second = Tensor::zeros({1}, kept);
    for (int64_t step = 1; step <= 1000; ++step)
      kernels::adam(Tensors{p}, masters ? Tensors{master} : Tensors{}, Tensors{g}, Tensors{first},
                    Tensors{second}, AdamArgs{.lr = lr, .step = step});
    return p.item();
  };
  CHECK(trained(false) == 1.0);
  CHECK(trained(true) == doctest::Approx(1.0 - 1000 * lr).epsilon(0x1p-8));
}

TEST_CASE("adam with masters: what does not go together is refused") {
  const auto t = [](DType dtype) { return Tensors{Tensor::zeros({2}, dtype)}; };
  const auto run = [](const Tensors& p, const Tensors& w, const Tensors& g, const Tensors& m) {
    return error_of([&] { kernels::adam(p, w, g, m, m, AdamArgs{}); });
  };
  const Tensors low = t(kLow), single = t(DType::float32);
  CHECK(run(low, single, low, single) == "");
  CHECK(
      contains(run(single, single, single, single), "masters are float32 and belong to bfloat16"));
  CHECK(contains(run(low, low, low, low), "its master bfloat16"));
  CHECK(contains(run(low, single, low, low), "moments float32"));
  CHECK(contains(run(low, single, single, single), "its gradient float32"));
  CHECK(contains(run({low[0], low[0]}, single, {low[0], low[0]}, {single[0], single[0]}),
                 "1 masters for 2 parameters"));
}

TEST_CASE("Adam of a bfloat16 model: masters are bounded, saved, and continue exactly") {
  // 0.3 is no bfloat16 number: the bound holds for the master, the parameter is that rounded.
  One held(Tensor::full({2}, 0.35, kLow), {true, 0.3});
  Adam adam({{{&held.p}, 0.0, 1.0}});
  held.p.set_grad(Variable(Tensor::full({2}, 1.0, kLow)));
  adam.step(0.5);
  CHECK(adam.state_dict().at("p/master").at({0}) == doctest::Approx(0.3).epsilon(1e-7));
  check_all(held.p.value(), static_cast<double>(static_cast<float>(bfloat16(0.3f))));

  One a(normal_tensor({50}, 1, kLow)), b(normal_tensor({50}, 2, kLow));
  Adam first({{{&a.p}, 0.01, 1.0}}), second({{{&b.p}, 0.01, 1.0}});
  for (uint32_t t = 0; t < 3; ++t) update(a, first, 10 + t, 1e-3);
  CHECK(first.state_dict().at("p/master").dtype() == DType::float32);
  CHECK(first.state_dict().at("p/first").dtype() == DType::float32);
  // Through a file, and into a model that was not loaded.
  const testing::TemporaryFolder folder;
  save_safetensors(folder / "adam.safetensors", first.state_dict(), {});
  second.load_state_dict(load_safetensors(folder / "adam.safetensors").tensors);
  CHECK(max_abs_difference(a.p.value(), b.p.value()) == 0);
  for (uint32_t t = 0; t < 5; ++t) {
    update(a, first, 20 + t, 1e-3);
    update(b, second, 20 + t, 1e-3);
  }
  CHECK(max_abs_difference(a.p.value(), b.p.value()) == 0);
  for (const auto& [name, value] : first.state_dict())
    CHECK(max_abs_difference(value, second.state_dict().at(name)) == 0);

  One wide(normal_tensor({50}, 1, DType::float32));
  Adam third({{{&wide.p}, 0.01, 1.0}});
  CHECK(contains(error_of([&] { third.load_state_dict(first.state_dict()); }),
                 "in the precision in which it was saved"));
  CHECK(contains(error_of([&] { first.load_state_dict(third.state_dict()); }),
                 "in the precision in which it was saved"));
  One exact(normal_tensor({50}, 1, DType::float64));
  Adam fourth({{{&exact.p}, 0.01, 1.0}});
  CHECK(contains(error_of([&] { third.load_state_dict(fourth.state_dict()); }),
                 "p/first is float64 and must be float32"));
}

TEST_CASE("Adam of a bfloat16 model: parameters written by others are where it goes on from") {
  One a(normal_tensor({50}, 1, kLow));
  Adam adam({{{&a.p}, 0.0, 1.0}});
  for (uint32_t t = 0; t < 3; ++t) update(a, adam, 10 + t, 1e-3);
  // Written with what it is: the master keeps what it knows beyond the parameter.
  const Tensor master = adam.state_dict().at("p/master").clone();
  CHECK(max_abs_difference(master, a.p.value().to(DType::float32)) > 0);
  a.load_state_dict({{"p", a.p.value().clone()}});
  update(a, adam, 20, 0.0);
  CHECK(max_abs_difference(adam.state_dict().at("p/master"), master) == 0);
  // Written with something else, as a state or as another tensor.
  for (const bool as_state : {true, false}) {
    const Tensor other = normal_tensor({50}, as_state ? 2 : 3, kLow);
    if (as_state) {
      a.load_state_dict({{"p", other}});
    } else {
      a.p.set_value(other.clone());
    }
    update(a, adam, 21, 0.0);
    CHECK(max_abs_difference(a.p.value(), other) == 0);
    CHECK(max_abs_difference(adam.state_dict().at("p/master"), other.to(DType::float32)) == 0);
  }
}

TEST_CASE("Adam: float32 and bfloat16 parameters in one group") {
  One low(normal_tensor({9}, 1, kLow)), same(normal_tensor({9}, 1, kLow)),
      wide(normal_tensor({9}, 1, DType::float32)), also(normal_tensor({9}, 1, DType::float32));
  Adam both({{{&low.p, &wide.p}, 0.1, 1.0}}), first({{{&same.p}, 0.1, 1.0}}),
      second({{{&also.p}, 0.1, 1.0}});
  wide.p.set_grad(Variable(normal_tensor({9}, 2, DType::float32)));
  update(low, both, 2, 0.1);
  update(same, first, 2, 0.1);
  update(also, second, 2, 0.1);
  CHECK(max_abs_difference(low.p.value(), same.p.value()) == 0);
  CHECK(max_abs_difference(wide.p.value(), also.p.value()) == 0);
  CHECK(max_abs_difference(low.p.value(), wide.p.value()) < 0x1p-8 * 4);
}

}  // namespace macgrad::nn
