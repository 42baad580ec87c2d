// The engine and its tools: order, hooks, retained gradients, graph lifetime, higher orders, names
// and scopes, records, version checks, anomaly mode, deep graphs, and the errors.
#include <doctest/doctest.h>

#include <cmath>

#include "macgrad/autograd/attention.h"
#include "macgrad/autograd/engine.h"
#include "macgrad/autograd/node.h"
#include "macgrad/autograd/ops.h"
#include "macgrad/autograd/scope.h"

namespace macgrad {
namespace {

using doctest::Contains;

Variable leaf(const std::vector<double>& values, const std::string& name = "") {
  return Variable(Tensor::from_vector(values), true, name);
}
Variable scalar_leaf(double value, const std::string& name = "") {
  return Variable(Tensor::scalar(value, DType::float64), true, name);
}
std::vector<double> values(const Variable& v) {
  REQUIRE(v.defined());
  return v.value().to_vector<double>();
}
using List = std::vector<double>;

TEST_CASE("backward fills leaves, adds to what is there, and zero_grad clears") {
  const Variable x = leaf({1, 2, 3}, "x");
  const Variable c(Tensor::from_vector(List{5, 6, 7}));
  CHECK_FALSE(x.grad().defined());
  backward(sum(x * c));
  CHECK(values(x.grad()) == List{5, 6, 7});
  backward(sum(x * x));
  CHECK(values(x.grad()) == List{7, 10, 13});
  CHECK_FALSE(x.grad().requires_grad());
  CHECK_FALSE(c.grad().defined());
  x.zero_grad();
  CHECK_FALSE(x.grad().defined());
}

TEST_CASE("a leaf used many times gets the sum") {
  const Variable x = leaf({2, -1});
  Variable y = x * 0.0;
  for (int k = 1; k <= 100; ++k) y = y + x * static_cast<double>(k);
  backward(sum(y));
  CHECK(values(x.grad()) == List{5050, 5050});
  // On both sides of one op, through views, and as the output itself.
  const Variable z = leaf({3, 4});
  CHECK(values(grad({sum(z * z) + select(z, 0, 1)}, {z})[0]) == List{6, 9});
  CHECK(values(grad({z}, {z}, {Variable(Tensor::from_vector(List{8, 9}))})[0]) == List{8, 9});
}

TEST_CASE("several outputs with cotangents, and the same output twice") {
  const Variable x = leaf({1, 2});
  const Variable a = x * 3.0, b = x * x;
  const Variable one(Tensor::from_vector(List{1, 1})), ten(Tensor::from_vector(List{10, 20}));
  CHECK(values(grad({a, b}, {x}, {one, ten}, {.retain_graph = true})[0]) == List{3 + 20, 3 + 80});
  CHECK(values(grad({a * 1.0, a * 1.0}, {x}, {one, ten})[0]) == List{33, 63});
  const Variable y = x * 2.0;
  CHECK(values(grad({y, y}, {x}, {one, ten})[0]) == List{22, 42});
}

TEST_CASE("gradients of intermediates, alone and together with leaves") {
  const Variable x = leaf({1, 2});
  const Variable h = x * x;
  const Variable y = sum(exp(h) + h);
  const Variables g = grad({y}, {h, x}, {}, {.retain_graph = true});
  CHECK(values(g[0])[1] == doctest::Approx(std::exp(4) + 1));
  CHECK(values(g[1])[1] == doctest::Approx(4 * (std::exp(4) + 1)));
  CHECK(values(grad({y}, {h})[0])[0] == doctest::Approx(std::exp(1) + 1));
}

TEST_CASE("inputs the outputs do not depend on") {
  const Variable x = leaf({1}, "x"), other = leaf({1}, "other");
  const Variable y = sum(x * 2.0);
  CHECK_THROWS_WITH_AS(grad({y}, {x, other}), Contains("do not depend on 'other'"), Error);
  const Variables g = grad({y}, {x, other}, {}, {.allow_unused = true});
  CHECK(values(g[0]) == List{2});
  CHECK_FALSE(g[1].defined());
  CHECK_THROWS_WITH_AS(grad({y}, {Variable(Tensor::zeros({1}))}),
                       Contains("does not require a gradient"), Error);
  // An op with gradient 0 keeps the dependence: zeros, not an error.
  CHECK(values(grad({sum(sign(x))}, {x})[0]) == List{0});
}

TEST_CASE("the graph is freed after one pass unless it is retained") {
  const Variable x = leaf({1, 2});
  const Variable y = sum(exp(x));
  grad({y}, {x});
  CHECK_THROWS_WITH_AS(grad({y}, {x}), Contains("pass retain_graph"), Error);
  const Variable z = sum(x * x);
  backward(z, {}, {.retain_graph = true});
  backward(z);
  CHECK(values(x.grad()) == List{4, 8});
  CHECK_THROWS_AS(backward(z), Error);
}

TEST_CASE("create_graph: derivatives of x^4 to the fourth order, by products and by pow") {
  for (const bool by_pow : {false, true}) {
    const Variable x = scalar_leaf(1.5);
    const double expected[] = {4 * std::pow(1.5, 3), 12 * 1.5 * 1.5, 24 * 1.5, 24, 0};
    Variable y = by_pow ? pow(x, 4.0) : x * x * x * x;
    for (int order = 0; order < 5; ++order) {
      CAPTURE(order);
      const Variables g = grad({y}, {x}, {}, {.create_graph = true, .allow_unused = true});
      if (!g[0].defined()) {
        CHECK(expected[order] == 0);
        break;
      }
      CHECK(g[0].item() == doctest::Approx(expected[order]));
      y = g[0];
      if (!y.requires_grad()) break;
    }
  }
}

TEST_CASE("mixed second derivatives, and the derivative with respect to a cotangent") {
  const Variable x = scalar_leaf(0.7), y = scalar_leaf(1.2), c = scalar_leaf(2.0);
  const Variables g = grad({sin(x * y)}, {x, y}, {c}, {.create_graph = true});
  CHECK(g[0].item() == doctest::Approx(2 * 1.2 * std::cos(0.84)));
  const Variables h = grad({g[0]}, {y, c});
  CHECK(h[0].item() == doctest::Approx(2 * (std::cos(0.84) - 0.84 * std::sin(0.84))));
  CHECK(h[1].item() == doctest::Approx(1.2 * std::cos(0.84)));
}

TEST_CASE("hooks see the whole gradient, may replace it, and can be removed") {
  const Variable x = leaf({1, 2}, "x");
  std::vector<List> seen;
  const int id = x.add_hook([&](const Variable& g) {
    seen.push_back(values(g));
    return Variable();
  });
  backward(sum(x * 2.0) + sum(x * 3.0));
  REQUIRE(seen.size() == 1);
  CHECK(seen[0] == List{5, 5});
  x.zero_grad();
  const int doubling = x.add_hook([](const Variable& g) { return g * 2.0; });
  x.add_hook([&](const Variable& g) {
    seen.push_back(values(g));
    return Variable();
  });
  backward(sum(x));
  CHECK(values(x.grad()) == List{2, 2});
  CHECK(seen.back() == List{2, 2});  // hooks run in order
  x.remove_hook(id);
  x.remove_hook(doubling);
  x.zero_grad();
  backward(sum(x));
  CHECK(values(x.grad()) == List{1, 1});
  CHECK(seen.size() == 4);

  // An intermediate: what the hook returns goes on to its inputs.
  const Variable z = leaf({3});
  const Variable h = z * z;
  h.add_hook([](const Variable& g) { return g * 10.0; });
  CHECK(values(grad({sum(h) + sum(h)}, {z}, {}, {.retain_graph = true})[0]) == List{120});
  CHECK(values(grad({sum(h * 1.0)}, {h})[0]) == List{10});
  h.add_hook([](const Variable&) { return Variable(Tensor::zeros({2}, DType::float64)); });
  CHECK_THROWS_WITH_AS(backward(sum(h * 1.0)), Contains("a hook"), Error);
  CHECK_THROWS_AS(Variable(Tensor::zeros({1})).add_hook({}), Error);
}

TEST_CASE("retain_grad keeps an intermediate's gradient") {
  const Variable x = leaf({1, 2});
  const Variable h = x * x;
  h.retain_grad();
  const Variable y = sum(h * 3.0);
  backward(y, {}, {.retain_graph = true});
  CHECK(values(h.grad()) == List{3, 3});
  backward(y);
  CHECK(values(h.grad()) == List{6, 6});
  CHECK(values(x.grad()) == List{12, 24});
  CHECK_THROWS_AS(Variable(Tensor::zeros({1})).retain_grad(), Error);
}

TEST_CASE("NoGrad, EnableGrad and detach") {
  const Variable x = leaf({1});
  {
    const NoGrad off;
    CHECK_FALSE(grad_enabled());
    CHECK_FALSE((x * x).requires_grad());
    const EnableGrad on;
    CHECK((x * x).requires_grad());
  }
  CHECK(grad_enabled());
  CHECK_FALSE((x * x).detach().requires_grad());
  const Variable y = x * x.detach();
  CHECK(values(grad({sum(y)}, {x})[0]) == List{1});
  CHECK_FALSE((x.detach() * 2.0).requires_grad());
  CHECK_THROWS_WITH_AS(backward(x.detach()), Contains("nothing requires a gradient"), Error);
}

TEST_CASE("names and scopes") {
  const Variable x = leaf({1, 2}, "encoder.weight");
  CHECK(x.name() == "encoder.weight");
  CHECK(leaf({1}).name() == "leaf");
  Variable y;
  {
    const Scope outer("encoder"), inner("layers.0"), nothing("");
    y = x * x;
    CHECK(*Scope::current() == "encoder.layers.0");
  }
  CHECK(*Scope::current() == "");
  CHECK(*y.node()->scope == "encoder.layers.0");
  CHECK(y.name() == fmt::format("encoder.layers.0/mul#{}", y.node()->id));
  const Variable z = x + x;
  CHECK(z.name() == fmt::format("add#{}", z.node()->id));
  CHECK(z.node()->id > y.node()->id);
  z.named("scores");
  CHECK(z.name() == "scores");
  const Variable copy = z;
  CHECK(copy.name() == "scores");
  const Attribute dims = sum(x, {0}, true).node()->attributes.at(0);
  CHECK(dims.name == "dims");
  CHECK(dims.text() == "(0)");
}

TEST_CASE("nodes of a recorded backward pass know the op they come from and its scope") {
  const Variable x = leaf({1, 2});
  Variable y;
  {
    const Scope scope("block");
    y = exp(x);
  }
  CHECK(y.node()->backward_of == 0);
  const Variables g = grad({sum(y)}, {x}, {}, {.create_graph = true});
  REQUIRE(g[0].node());
  CHECK(g[0].node()->backward_of == y.node()->id);
  CHECK(*g[0].node()->scope == "block");
  CHECK(current_backward_of() == 0);
}

TEST_CASE("GradRecord: order, gradients, statistics, filter") {
  const Variable w = leaf({1, -2, 0}, "layer.weight"), b = leaf({1, 1, 1}, "layer.bias");
  const auto run = [&](GradRecord& record) {
    const Scope scope("layer");
    const Variable h = (w * b).named("product");
    const Variable y = sum(exp(h) + h);
    return grad({y}, {w, b}, {}, {.record = &record});
  };
  GradRecord full;
  const Variables g = run(full);
  // Nodes come in falling order, then the leaves.
  uint64_t last = UINT64_MAX;
  size_t leaves = 0;
  for (const auto& e : full.entries()) {
    if (e.node == 0) {
      ++leaves;
      CHECK(e.op == "leaf");
      continue;
    }
    CHECK(leaves == 0);
    CHECK(e.node < last);
    CHECK(e.scope == "layer");
    last = e.node;
  }
  CHECK(leaves == 2);
  CHECK(full.entries().size() == 6);  // sum, add, exp, mul, and two leaves
  CHECK(full.entries()[0].op == "sum");
  CHECK(full.at("product").op == "mul");
  CHECK(full.at("product").gradient.at({1}) == doctest::Approx(std::exp(-2) + 1));
  CHECK(max_abs_difference(full.at("layer.weight").gradient, g[0].value()) == 0);
  CHECK(full.at("layer.weight").scope == "layer");
  CHECK_THROWS_WITH_AS(full.at("nothing"), Contains("'nothing'"), Error);

  GradRecord numbers(GradRecord::Keep::statistics,
                     [](const std::string& scope, const std::string& op) {
                       return scope == "layer" && op == "leaf";
                     });
  run(numbers);
  REQUIRE(numbers.entries().size() == 2);
  const auto& entry = numbers.at("layer.bias");
  CHECK_FALSE(entry.gradient.defined());
  CHECK(entry.stats.count == 3);
  CHECK(entry.stats.zeros == 1);  // where w is 0
  CHECK(entry.stats.max == doctest::Approx(std::exp(1) + 1));
  CHECK(entry.stats.min == doctest::Approx(-2 * (std::exp(-2) + 1)));
}

TEST_CASE("GradRecord: norms alone, and the time of gradient rules") {
  // At the second entry log is at 0, and its gradient infinite.
  const Variable x = leaf({3, -4}, "x"), y = leaf({0, 0.25}, "y");
  GradRecord full, norms(GradRecord::Keep::norms);
  const Variable h = (x * x).named("h");
  const auto loss = [&] { return sum(log(x * y + 1.0) + h); };
  grad({loss()}, {x, y}, {}, {.retain_graph = true, .record = &full});
  const Variable again = loss();
  grad({again}, {x, y}, {}, {.retain_graph = true, .record = &norms});
  REQUIRE(norms.entries().size() == full.entries().size());
  int not_finite = 0;
  for (size_t i = 0; i < full.entries().size(); ++i) {
    const auto& a = full.entries()[i];
    const auto& b = norms.entries()[i];
    CAPTURE(a.name);
    CHECK(a.op == b.op);
    CHECK_FALSE(b.gradient.defined());
    CHECK(b.stats.count == a.stats.count);
    if (a.stats.non_finite > 0) {
      CHECK(std::isnan(b.stats.l2));
      ++not_finite;
    } else {
      CHECK(b.stats.l2 == doctest::Approx(a.stats.l2));
      CHECK(b.stats.rms == doctest::Approx(a.stats.rms));
    }
  }
  CHECK(not_finite > 0);
  CHECK(norms.rule_seconds(again.node()->id) > 0);
  CHECK(norms.rule_seconds(again.node()->id + 1) == 0);
}

TEST_CASE("a hook on the engine sees every gradient, complete, and may replace it") {
  const Variable x = leaf({1, 2}, "layer.x");
  std::vector<std::string> seen;
  const auto run = [&](const EngineHook& hook) {
    const Scope scope("layer");
    const Variable h = (x * x).named("h");
    GradOptions options;
    options.hook = hook;
    return values(grad({sum(h + 2.0 * h)}, {x}, {}, options)[0]);
  };
  CHECK(run([&](const GradPlace& place, const Variable& g) {
          if (place.name == "h") CHECK(values(g) == List{3, 3});
          seen.push_back(place.scope + "/" + place.op);
          return Variable();
        }) == List{6, 12});
  CHECK(seen ==
        std::vector<std::string>{"layer/sum", "layer/add", "layer/mul", "layer/mul", "layer/leaf"});
  // A replaced gradient flows on, and a record holds what flows on.
  GradRecord record;
  GradOptions options;
  options.record = &record;
  options.hook = [](const GradPlace& place, const Variable& g) {
    return place.name == "h" ? g * 10.0 : Variable();
  };
  const Variable h = (x * x).named("h");
  CHECK(values(grad({sum(h)}, {x}, {}, options)[0]) == List{20, 40});
  CHECK(record.at("h").gradient.to_vector<double>() == List{10, 10});
  CHECK_THROWS_WITH_AS(run([](const GradPlace&, const Variable& g) {
                         return reshape(g, Shape{g.numel(), 1, 1});
                       }),
                       Contains("a hook on"), Error);
}

TEST_CASE("statistics of a tensor") {
  const GradStatistics s = statistics(Tensor::from_vector(List{3, -4, 0, NAN, INFINITY}));
  CHECK(s.count == 5);
  CHECK(s.non_finite == 2);
  CHECK(s.zeros == 1);
  CHECK(s.min == -4);
  CHECK(s.max == 3);
  CHECK(s.l2 == 5);
  CHECK(s.mean == doctest::Approx(-1.0 / 3));
  CHECK(s.rms == doctest::Approx(5 / std::sqrt(3.0)));
  CHECK(statistics(Tensor::zeros({0})).count == 0);
}

TEST_CASE("the order of a pass is the same every time, to the bit") {
  const auto run = [] {
    const Variable x(Tensor::from_vector(std::vector<float>{0.1f, 0.7f, -1.3f}), true, "x");
    Variable y = x;
    for (int i = 0; i < 20; ++i) y = sin(y) + x * y + tanh(x);
    GradRecord record;
    const Variables g = grad({sum(y)}, {x}, {}, {.record = &record});
    std::vector<std::string> ops;
    for (const auto& e : record.entries()) ops.push_back(e.op);
    return std::pair(ops, g[0].value().to_vector<float>());
  };
  const auto first = run();
  for (int i = 0; i < 3; ++i) CHECK((run() == first));
}

TEST_CASE("a value overwritten after it was saved is an error that names variable and op") {
  const Variable w = leaf({1, 2}, "w");
  const Scope scope("block");
  const Variable y = sum(w * w);
  w.value().fill(3);
  CHECK_THROWS_WITH_AS(grad({y}, {w}), Contains("'w' of shape (2) was overwritten in place"),
                       Error);
  const Variable z = sum(w * w);
  w.value().fill(4);
  CHECK_THROWS_WITH_AS(grad({z}, {w}), Contains("block/mul#"), Error);
  // Masks, indices and targets are read by rules as well.
  const auto refused = [&](const Variable& result, const Tensor& changed, const char* what) {
    changed.fill(1);
    CHECK_THROWS_WITH_AS(grad({sum(result)}, {w}), Contains(what), Error);
  };
  const auto flags = [] { return Tensor::from_vector(std::vector<bool>{true, false}); };
  const auto places = [] { return Tensor::from_vector(std::vector<int64_t>{0, 0}); };
  const Tensor mask = flags(), picked = places(), chosen = places(), added = places(),
               spread = places(), target = places();
  refused(where(mask, w, 0.0), mask, "where's condition");
  refused(gather(w, 0, picked), picked, "gather's index");
  refused(index_select(w, 0, chosen), chosen, "index_select's index");
  refused(index_add(leaf({0, 0}), 0, added, w), added, "index_add's index");
  refused(scatter_add(leaf({0, 0}), 0, spread, w), spread, "scatter_add's index");
  refused(cross_entropy(reshape(concat({w, w}, 0), Shape{2, 2}), target), target,
          "cross_entropy's target");
  const Tensor shown = reshape(Variable(flags()), Shape{1, 2}).value();
  const Variable heads = reshape(w, Shape{1, 1, 2, 1});
  refused(softmax_attention(heads, heads, heads, {shown, {}, false}, 1.0), shown,
          "softmax_attention's key mask");
  // A result that the rule reads.
  const Variable e = exp(w);
  e.value().fill(0);
  CHECK_THROWS_WITH_AS(grad({sum(e)}, {w}), Contains("block/exp#"), Error);
  // Ops that save nothing do not mind.
  const Variable s = sum(w + w);
  w.value().fill(5);
  CHECK(values(grad({s}, {w})[0]) == List{2, 2});
}

TEST_CASE("anomaly mode names op and scope, forward and backward") {
  const Variable x = leaf({0, -1}, "x");
  const Scope scope("block");
  CHECK_FALSE(AnomalyMode::active());
  CHECK_NOTHROW(log(x));
  {
    const AnomalyMode on;
    CHECK(AnomalyMode::active());
    CHECK_THROWS_WITH_AS(log(x), Contains("[log] output 0 is not finite; inputs: x (2), in block"),
                         Error);
    const Variable zero = leaf({0}, "zero");
    const Variable y = sqrt(zero);
    CHECK_THROWS_WITH_AS(backward(sum(y)), Contains("block/sqrt#"), Error);
    // A gradient that is not finite although no op of the rule made it so.
    const Variable z = identity(leaf({1}));
    CHECK_THROWS_WITH_AS(backward(z, Variable(Tensor::from_vector(List{NAN}))),
                         Contains("computed by the rule of block/identity#"), Error);
  }
  CHECK_FALSE(AnomalyMode::active());
}

TEST_CASE("a chain of 200,000 nodes is built, differentiated and freed") {
  const int depth = 200'000;
  const Variable x = scalar_leaf(1.0);
  const Variable one(Tensor::scalar(1.0, DType::float64));
  {
    Variable y = x;
    for (int i = 0; i < depth; ++i) y = add(y, one);
    CHECK(y.item() == depth + 1);
    backward(y);
    CHECK(x.grad().item() == 1);
  }
  {
    // Freed without a backward pass; every node saves its input.
    Variable y = x;
    for (int i = 0; i < depth; ++i) y = mul(y, one.named("one"));
  }
  {
    // Two paths between neighbours: the number of paths must not matter.
    Variable y = x;
    for (int i = 0; i < 1000; ++i) y = mul(add(y, y), 0.5);
    CHECK(grad({y}, {x})[0].item() == 1);
  }
}

TEST_CASE("errors of operands name op, shapes and scope") {
  const Scope scope("encoder");
  const Variable a(Tensor::zeros({2, 3})), b(Tensor::zeros({4})),
      wide(Tensor::zeros({2, 3}, DType::float64));
  CHECK_THROWS_WITH_AS(a + b, "[add] shapes (2, 3) and (4) do not broadcast, in encoder", Error);
  CHECK_THROWS_WITH_AS(a * wide, Contains("[mul] dtypes differ: float32 (2, 3) and float64 (2, 3)"),
                       Error);
  CHECK_THROWS_WITH_AS(a * wide, Contains(", in encoder"), Error);
  CHECK_THROWS_WITH_AS(matmul(Variable(a).named("q"), b), Contains("[matmul]"), Error);
  CHECK_THROWS_WITH_AS(matmul(a, wide), Contains("dtypes differ"), Error);
  CHECK_THROWS_WITH_AS(matmul(a, a), Contains("inner sizes differ"), Error);
  CHECK_THROWS_WITH_AS(exp(Variable()), Contains("[exp] operand is undefined"), Error);
  CHECK_THROWS_WITH_AS(sum(a, {2}), Contains("dimension 2 is out of range for (2, 3)"), Error);
  CHECK_THROWS_WITH_AS(sum(a, {0, -2}), Contains("named twice"), Error);
  CHECK_THROWS_WITH_AS(concat({a, b}, 0), Contains("[concat] (2, 3) and (4)"), Error);
  CHECK_THROWS_WITH_AS(embedding(a, Tensor::full({1}, 2, DType::int64)), Contains("index 2"),
                       Error);
  CHECK_THROWS_WITH_AS(exp(Variable(Tensor::arange(3))), Contains("int64; cast first"), Error);
  CHECK_THROWS_WITH_AS(Variable(Tensor::arange(3), true), Contains("cannot have a gradient"),
                       Error);
  CHECK_THROWS_AS((leaf({1}) * 2.0).set_requires_grad(false), Error);
}

TEST_CASE("cotangents are checked") {
  const Variable x = leaf({1, 2});
  CHECK_THROWS_WITH_AS(grad({x * 2.0}, {x}), Contains("needs a cotangent"), Error);
  CHECK_THROWS_WITH_AS(grad({x * 2.0}, {x}, {Variable(Tensor::zeros({3}, DType::float64))}),
                       Contains("its cotangent float64 (3)"), Error);
  CHECK_THROWS_AS(grad({x * 2.0}, {x}, {Variable(Tensor::zeros({2}))}), Error);
  CHECK_THROWS_WITH_AS(grad({sum(x)}, {x}, {Variable(), Variable()}),
                       Contains("1 outputs and 2 cotangents"), Error);
}

TEST_CASE("record checks rules; the engine sums broadcast gradients and fills missing cotangents") {
  const Variable x = leaf({1, 2, 3});
  const auto pass = [](const Variable& g, const VjpContext&) { return g; };
  CHECK_THROWS_WITH_AS(record("fault", {x}, x.value(), Rules{pass, pass}),
                       Contains("[fault] has 1 inputs and 2 gradient rules"), Error);
  CHECK_THROWS_WITH_AS(record("fault", {x}, x.value(), Rules{nullptr}),
                       Contains("[fault] has no gradient with respect to input 0"), Error);
  CHECK_NOTHROW(record("fine", {x.detach()}, x.value(), Rules{nullptr}));
  const Variable one_sum = record("wide", {scalar_leaf(2)}, x.value(), Rules{pass});
  CHECK(one_sum.shape() == Shape{3});
  const Variable s = scalar_leaf(2);
  CHECK(grad({sum(record("wide", {s}, x.value(), Rules{pass}))}, {s})[0].item() == 3);
  const Variable bad =
      record("narrow", {x}, x.value(),
             Rules{[](const Variable& g, const VjpContext&) { return cast(g, DType::float32); }});
  CHECK_THROWS_WITH_AS(grad({sum(bad)}, {x}), Contains("narrow#"), Error);
  const Variables few =
      record("few", {x}, {x.value()}, [](const VjpContext&) { return Variables(); });
  CHECK_THROWS_WITH_AS(grad({sum(few[0])}, {x}), Contains("0 gradients for 1 inputs"), Error);

  // Two outputs, one of them unused.
  const Variables two =
      record("two", {x}, {x.value().clone(), x.value().clone()}, [](const VjpContext& ctx) {
        CHECK(ctx.cotangent(1).shape() == Shape{3});
        return Variables{ctx.cotangent(0) + ctx.cotangent(1) * 5.0};
      });
  CHECK(two[1].name() == two[0].name() + ".1");
  CHECK(values(grad({sum(two[0])}, {x}, {}, {.retain_graph = true})[0]) == List{1, 1, 1});
  CHECK(values(grad({sum(two[0]) + sum(two[1])}, {x})[0]) == List{6, 6, 6});
}

TEST_CASE("rules of inputs that are not asked for do not run") {
  int calls = 0;
  const Variable x = leaf({1}), y = leaf({2});
  const auto counted = [&calls](const Variable& g, const VjpContext&) {
    ++calls;
    return g;
  };
  const auto make = [&] { return record("both", {x, y}, x.value(), Rules{counted, counted}); };
  grad({make()}, {x});
  CHECK(calls == 1);
  backward(make());
  CHECK(calls == 3);
}

}  // namespace
}  // namespace macgrad
