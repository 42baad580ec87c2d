// Fused ops against their composites, for every fused row of the op table and to second order, and
// the machinery around them: fallback, strict mode, Unfused, ops without a backward kernel.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <optional>

#include "macgrad/autograd/attention.h"
#include "macgrad/autograd/engine.h"
#include "macgrad/autograd/fused.h"
#include "macgrad/autograd/node.h"
#include "macgrad/autograd/scope.h"
#include "macgrad/core/kernels/elementwise.h"
#include "macgrad/core/kernels/rmfa.h"
#include "macgrad/core/kernels/sbn.h"
#include "macgrad/tests/op_cases.h"

namespace macgrad::testing {
namespace {

using doctest::Contains;

TEST_CASE("fused ops equal their composites: values, gradients, second derivatives") {
  const Threads one(1);
  size_t rows = 0;
  for (const OpCase& row : op_cases()) {
    if (!row.fused) continue;
    ++rows;
    for (const DType dtype : {DType::float64, DType::float32}) {
      try {
        const Tensors inputs = make_inputs(row.inputs, dtype);
        const Evaluation got = evaluate(row, inputs, 2);
        const Evaluation expected = [&] {
          const Unfused composite;
          return evaluate(row, inputs, 2);
        }();
        const Worst worst = compare(got, expected);
        const double limit = dtype == DType::float64 ? 1e-11 : 2 * row.tol32;
        const bool within = worst.value <= limit;
        CHECK_MESSAGE(within, row.name, " ", name(dtype), ": ", worst.where, " differs by ",
                      worst.value, ", allowed ", limit);
      } catch (const std::exception& e) {
        FAIL_CHECK(row.name << " threw: " << e.what());
      }
    }
  }
  CHECK(rows > 60);
}

// Beyond the second order the operands of the backward op are Variables of one graph: without fresh
// aliases f(x, x) would count each of them twice.
TEST_CASE("third derivatives of fused ops on shared operands equal those of the composites") {
  const Threads one(1);
  const auto third = [](const OpCase& row) {
    const Variable x(make_inputs(row.inputs, DType::float64)[0], true);
    Variables others{x};
    for (size_t i = 1; i < row.inputs.size(); ++i)
      others.emplace_back(make_inputs(row.inputs, DType::float64)[i], true);
    Variable y = row.f(others);
    for (uint32_t order = 1; order <= 3; ++order) {
      const Variable cotangent(exact_values(y.shape(), order, DType::float64));
      y = grad({y}, {x}, {cotangent}, {.create_graph = order < 3})[0];
    }
    return y.value();
  };
  size_t rows = 0;
  for (const OpCase& row : op_cases()) {
    const auto named = [&](const char* part) { return row.name.find(part) != std::string::npos; };
    if (!row.fused || !(named("x x x") || named("h g(h)") || named("of itself"))) continue;
    ++rows;
    CAPTURE(row.name);
    const Tensor got = third(row);
    const Unfused composite;
    CHECK(difference(got, third(row)) < 1e-10);
  }
  CHECK(rows >= 12);
}

TEST_CASE("fused and composite paths are told apart in the graph") {
  const Variable x(exact_values({2, 3}, 1, DType::float64), true, "x");
  const Scope scope("block");
  const auto recorded = [&](const Variable& y) {
    GradRecord record;
    const Variables g = grad({sum(y * y)}, {x}, {}, {.record = &record});
    std::vector<std::string> seen;
    for (const auto& e : record.entries()) seen.push_back(e.scope + "/" + e.op);
    return seen;
  };
  const auto has = [](const std::vector<std::string>& list, const std::string& entry) {
    return std::find(list.begin(), list.end(), entry) != list.end();
  };
  const auto fused = recorded(softmax(x, 1));
  CHECK(has(fused, "block/softmax"));
  CHECK_FALSE(has(fused, "block.softmax/exp"));
  const Unfused composite;
  const auto inner = recorded(softmax(x, 1));
  CHECK_FALSE(has(inner, "block/softmax"));
  CHECK(has(inner, "block.softmax/exp"));
}

TEST_CASE("inner quantities of attention are named in its composite") {
  const Variable x(exact_values({1, 1, 3, 2}, 2, DType::float64), true, "x");
  const Unfused composite;
  GradRecord record;
  grad({sum(softmax_attention(x, x, x, {}, 0.5))}, {x}, {}, {.record = &record});
  CHECK(record.at("scores").gradient.shape() == Shape{1, 1, 3, 3});
  CHECK(record.at("weights").scope == "softmax_attention");
}

TEST_CASE("the gradient of a fused op is a fused op, when it is recorded") {
  const Variable x(exact_values({2, 3}, 3, DType::float64), true);
  const Variable y = softmax(x, 1);
  const Variable c(exact_values({2, 3}, 4, DType::float64));
  const Variable g = grad({y}, {x}, {c}, {.create_graph = true})[0];
  REQUIRE(g.node());
  CHECK(g.node()->op == "softmax_backward");
  CHECK(g.node()->backward_of == y.node()->id);
}

// y = 3·x², with kernels that count their calls.
class TripleSquare : public FusedOp {
 public:
  TripleSquare(int* forward_calls, int* backward_calls, Support forward = {}, Support backward = {})
      : forward_calls_(forward_calls),
        backward_calls_(backward_calls),
        supports_(std::move(forward)),
        supports_backward_(std::move(backward)) {}

  const char* name() const override { return "triple_square"; }
  Support supports(const Tensors&) const override { return supports_; }
  Support supports_backward(const Tensors&) const override { return supports_backward_; }
  Result forward(const Tensors& in) override {
    ++*forward_calls_;
    const Tensor y = Tensor::empty(in[0].shape(), in[0].dtype());
    kernels::mul(in[0], in[0], y);
    kernels::mul(y, Tensor::scalar(3, y.dtype()).expand(y.shape()), y);
    return {{y}, {}};
  }
  bool has_backward() const override { return backward_calls_ != nullptr; }
  Tensors backward(const Tensors& in, const Result&, const Tensors& g,
                   const std::vector<bool>&) const override {
    ++*backward_calls_;
    const Tensor dx = Tensor::empty(in[0].shape(), in[0].dtype());
    kernels::mul(in[0], g[0], dx);
    kernels::mul(dx, Tensor::scalar(6, dx.dtype()).expand(dx.shape()), dx);
    return {dx};
  }
  Variables composite(const Variables& in) const override { return {in[0] * in[0] * 3.0}; }

 private:
  int *forward_calls_, *backward_calls_;
  Support supports_, supports_backward_;
};

template <class... Args>
std::shared_ptr<FusedOp> triple_square(Args... args) {
  return std::make_shared<TripleSquare>(args...);
}

TEST_CASE("kernels are used where they are, with and without a backward kernel") {
  const Variable x(Tensor::from_vector(std::vector<double>{2, -1}), true);
  int forward = 0, backward = 0;
  for (const bool with_backward : {true, false}) {
    const auto op = triple_square(&forward, with_backward ? &backward : nullptr);
    const Variable y = apply_fused(op, {x})[0];
    const Variable g = grad({sum(y)}, {x}, {}, {.create_graph = true})[0];
    CHECK(g.value().to_vector<double>() == std::vector<double>{12, -6});
    CHECK(grad({sum(g)}, {x})[0].value().to_vector<double>() == std::vector<double>{6, 6});
  }
  CHECK(forward == 2);
  CHECK(backward == 1);
  {
    const Unfused composite;
    apply_fused(triple_square(&forward, &backward), {x});
  }
  CHECK(forward == 2);
  // A value changed after the forward pass is noticed here too.
  const Variable y = apply_fused(triple_square(&forward, &backward), {x})[0];
  x.value().fill(1);
  CHECK_THROWS_WITH_AS(grad({sum(y)}, {x}), Contains("overwritten in place"), Error);
  // So is a result that the backward kernel reads.
  const Variable p = softmax(x, 0);
  p.value().fill(1);
  CHECK_THROWS_WITH_AS(grad({sum(p)}, {x}), Contains("result of softmax was overwritten"), Error);
}

// x·y with no backward kernel: the composite is differentiated under create_graph.
TEST_CASE("one Variable as both operands of an op without a backward kernel") {
  class Product : public FusedOp {
    const char* name() const override { return "product"; }
    Result forward(const Tensors& in) override {
      const Tensor y = Tensor::empty(in[0].shape(), in[0].dtype());
      kernels::mul(in[0], in[1], y);
      return {{y}, {}};
    }
    bool has_backward() const override { return false; }
    Variables composite(const Variables& in) const override { return {in[0] * in[1]}; }
  };
  const auto op = std::make_shared<Product>();
  const Variable x(Tensor::from_vector(std::vector<double>{3}), true);
  const Variable y = apply_fused(op, {x, apply_fused(op, {x, x})[0]})[0];
  const Variable g = grad({y}, {x}, {}, {.create_graph = true})[0];
  CHECK(g.item() == 27);
  const Variable h = grad({g}, {x}, {}, {.create_graph = true})[0];
  CHECK(h.item() == 18);
  CHECK(grad({h}, {x})[0].item() == 6);
}

TEST_CASE("anomaly mode names the output of an op that is not recorded") {
  class Two : public FusedOp {
    const char* name() const override { return "two"; }
    Result forward(const Tensors& in) override {
      return {{in[0], Tensor::full(in[0].shape(), NAN, in[0].dtype())}, {}};
    }
    Variables composite(const Variables& in) const override { return {in[0], in[0]}; }
  };
  const AnomalyMode anomaly;
  const NoGrad off;
  CHECK_THROWS_WITH_AS(apply_fused(std::make_shared<Two>(), {Variable(Tensor::full({2}, 1.0))}),
                       Contains("[two] output 1 is not finite"), AnomalyError);
}

class Environment {
 public:
  explicit Environment(const char* value) {
    const char* old = std::getenv("MACGRAD_FUSED");
    previous_ = old ? old : "";
    setenv("MACGRAD_FUSED", value, 1);
  }
  ~Environment() { setenv("MACGRAD_FUSED", previous_.c_str(), 1); }
  Environment(const Environment&) = delete;
  Environment& operator=(const Environment&) = delete;

 private:
  std::string previous_;
};

TEST_CASE("a refusal runs the composite and marks the node; strict makes it an error") {
  const Variable x(Tensor::from_vector(std::vector<double>{2, -1}), true);
  int forward = 0, backward = 0;
  const auto op = triple_square(&forward, &backward, Support{false, "odd operands"});
  {
    const Environment lenient("");
    const Variable y = apply_fused(op, {x})[0];
    CHECK(forward == 0);
    CHECK(y.value().to_vector<double>() == std::vector<double>{12, 3});
    REQUIRE(y.node());
    CHECK(y.node()->attributes.back().name == "path");
    CHECK(y.node()->attributes.back().text() == "composite");
    CHECK(grad({sum(y)}, {x})[0].value().to_vector<double>() == std::vector<double>{12, -6});
  }
  const Environment strict("strict");
  const Scope scope("block");
  CHECK_THROWS_WITH_AS(apply_fused(op, {x}), Contains("odd operands"), Error);
  CHECK_THROWS_WITH_AS(apply_fused(op, {x}), Contains("[triple_square]"), Error);
  CHECK_THROWS_WITH_AS(apply_fused(op, {x}), Contains("in block"), Error);
}

TEST_CASE("a refusal of the backward kernel is found before the forward kernel runs") {
  const Variable x(Tensor::from_vector(std::vector<double>{2, -1}), true);
  int forward = 0, backward = 0;
  const auto op = triple_square(&forward, &backward, Support{}, Support{false, "too large"});
  const Environment lenient("");
  const Variable y = apply_fused(op, {x})[0];
  CHECK(forward == 0);
  CHECK(grad({sum(y)}, {x})[0].value().to_vector<double>() == std::vector<double>{12, -6});
  CHECK(backward == 0);
  // Without a gradient the forward kernel is enough.
  CHECK(apply_fused(op, {x.detach()})[0].value().to_vector<double>() == std::vector<double>{12, 3});
  CHECK(forward == 1);
  const NoGrad inference;
  apply_fused(op, {x});
  CHECK(forward == 2);
}

TEST_CASE("a mask that hides everything gives zeros and finite gradients on both paths") {
  const Tensor none = Tensor::zeros({1, 3}, DType::boolean);
  for (const bool composite : {false, true}) {
    std::optional<Unfused> unfused;
    if (composite) unfused.emplace();
    const Variable x(exact_values({1, 2, 3, 4}, 5, DType::float64), true);
    const Variable y = softmax_attention(x, x, x, {none, {}, false}, 0.5);
    CHECK(max_abs_difference(y.value(), Tensor::zeros(y.shape(), y.dtype())) == 0);
    const Variable g = grad({sum(y * y + y)}, {x}, {}, {.allow_unused = true})[0];
    CHECK(max_abs_difference(g.value(), Tensor::zeros(x.shape(), x.dtype())) == 0);
    RmfaArgs args;
    args.levels = {3};
    args.constant = 1.0;
    const Variable z = rmfa(x, x, x, {none, {}, true}, exact_signs({4, 3}, 6, DType::float64),
                            exact_values({3}, 7, DType::float64), args);
    CHECK(max_abs_difference(z.value(), Tensor::zeros(z.shape(), z.dtype())) == 0);
    const Variable h = grad({sum(z * z + z)}, {x}, {}, {.allow_unused = true})[0];
    CHECK(max_abs_difference(h.value(), Tensor::zeros(x.shape(), x.dtype())) == 0);
    const Variable n = pre_sbn(x, none, SbnStatistics::batch, 1e-6, nullptr);
    CHECK(max_abs_difference(n.value(), Tensor::zeros(x.shape(), x.dtype())) == 0);
    const Variable m = grad({sum(n * n + n)}, {x}, {}, {.allow_unused = true})[0];
    CHECK(max_abs_difference(m.value(), Tensor::zeros(x.shape(), x.dtype())) == 0);
  }
}

TEST_CASE("rmfa reads of a wider draw only its own columns and weights") {
  RmfaArgs args;
  args.levels = {4, 2};
  args.constant = 30.0;
  args.linear = 0.5;
  const Tensor x = exact_values({2, 3, 5, 4}, 5, DType::float64);
  for (const bool composite : {false, true}) {
    for (const bool causal : {false, true}) {
      for (const Shape& shape : {Shape{4, 6}, Shape{3, 4, 6}}) {
        std::optional<Unfused> unfused;
        if (composite) unfused.emplace();
        const Tensor omega = exact_signs(shape, 9, DType::float64);
        const Tensor weight = exact_values({4}, 10, DType::float64);
        Shape wide = shape;
        wide[shape.rank() - 1] = 9;
        const Tensor wide_omega = Tensor::full(wide, NAN, DType::float64);
        const Tensor wide_weight = Tensor::full({6}, NAN, DType::float64);
        wide_omega.slice(shape.rank() - 1, 0, 6).copy_from(omega);
        wide_weight.slice(0, 0, 4).copy_from(weight);
        const auto results = [&](const Tensor& o, const Tensor& w) {
          const Variable q(x, true);
          const Variable y = rmfa(q, tanh(q), q, {{}, {}, causal}, o, w, args);
          return std::pair{y.value(), grad({sum(y * y)}, {q})[0].value()};
        };
        const auto [y, dy] = results(omega, weight);
        const auto [wide_y, wide_dy] = results(wide_omega, wide_weight);
        CHECK(max_abs_difference(y, wide_y) == 0);
        CHECK(max_abs_difference(dy, wide_dy) == 0);
      }
    }
  }
}

TEST_CASE("values at hidden positions may be NaN: they reach no result and no gradient") {
  const Tensor valid = Tensor::from_vector(std::vector<bool>{true, true, false}, {1, 3});
  const Tensor clean = exact_values({1, 2, 3, 4}, 8, DType::float64);
  const Tensor dirty = clean.clone();
  dirty.slice(2, 2, 3).fill(NAN);
  RmfaArgs args;
  args.levels = {4, 2};
  args.constant = 30.0;
  const Tensor omega = exact_signs({4, 6}, 9, DType::float64);
  const Tensor weight = exact_values({4}, 10, DType::float64);
  const std::vector<std::pair<std::string, std::function<Variable(const Variables&)>>> list = {
      {"softmax_attention",
       [&](const Variables& x) {
         return softmax_attention(x[0], x[0], x[0], {valid, valid, false}, 0.5);
       }},
      {"softmax_attention causal",
       [&](const Variables& x) {
         return softmax_attention(x[0], x[0], x[0], {valid, valid, true}, 0.5);
       }},
      {"rmfa",
       [&](const Variables& x) {
         return rmfa(x[0], x[0], x[0], {valid, valid, false}, omega, weight, args);
       }},
      {"rmfa causal",
       [&](const Variables& x) {
         return rmfa(x[0], x[0], x[0], {valid, valid, true}, omega, weight, args);
       }},
      {"pre_sbn batch",
       [&](const Variables& x) {
         return pre_sbn(x[0], valid, SbnStatistics::batch, 1e-6, nullptr);
       }},
      {"pre_sbn row", [&](const Variables& x) {
         return pre_sbn(x[0], valid, SbnStatistics::row, 1e-6, nullptr);
       }}};
  for (const auto& [what, f] : list) {
    for (const bool composite : {false, true}) {
      CAPTURE(what);
      CAPTURE(composite);
      std::optional<Unfused> unfused;
      if (composite) unfused.emplace();
      const Evaluation a = evaluate(f, {dirty}, {true}, 1), b = evaluate(f, {clean}, {true}, 1);
      CHECK(all_finite(a.value));
      CHECK(compare(a, b).value < 1e-12);
    }
  }
}

}  // namespace
}  // namespace macgrad::testing
