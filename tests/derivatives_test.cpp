// Products with Jacobians and Hessians against formulas and central differences; gradients example
// by example against the rows of a Jacobian. Of whole models: transformer_test.cpp.
#include "macgrad/autograd/derivatives.h"

#include <doctest/doctest.h>

#include "macgrad/autograd/attention.h"
#include "macgrad/tests/nn_checks.h"

namespace macgrad::checks {
namespace {

TEST_CASE("jvp: a linear map, several outputs, one that depends on nothing") {
  const Variable a = normal_leaf({3, 4}, 1), x = normal_leaf({4, 2}, 2);
  const Variable da(normal_tensor({3, 4}, 3)), dx(normal_tensor({4, 2}, 4));
  const Variable y = matmul(a, x), constant(normal_tensor({5}, 5));
  const Variables moved = jvp({y, constant, x}, {a, x}, {da, dx});
  check_near(moved[0].value(), (matmul(da, x) + matmul(a, dx)).value(), 1e-14);
  CHECK(max_abs_difference(moved[1].value(), Tensor::zeros({5}, DType::float64)) == 0.0);
  check_near(moved[2].value(), dx.value(), 1e-15);
  // An undefined direction is zero; the graph is still there.
  check_near(jvp({y}, {a, x}, {da, Variable()})[0].value(), matmul(da, x).value(), 1e-14);
  CHECK(grad({sum(y)}, {a})[0].defined());
}

TEST_CASE("hvp: a quadratic form, and a cubic along two inputs") {
  const Variable x = normal_leaf({4}, 1), m(normal_tensor({4, 4}, 2)), v(normal_tensor({4}, 3));
  const Variable row = reshape(x, {1, 4});
  const Variable q = sum(matmul(matmul(row, m), transpose(row, 0, 1)));
  const Variable h = m + transpose(m, 0, 1);
  check_near(hvp(q, {x}, {v})[0].value(), reshape(matmul(h, reshape(v, {4, 1})), {4}).value(),
             1e-13);

  const Variable y = normal_leaf({4}, 4), w(normal_tensor({4}, 5));
  const Variable c = sum(x * x * y);
  const Variables product = hvp(c, {x, y}, {v, w});
  check_near(product[0].value(), (2.0 * (y * v) + 2.0 * (x * w)).value(), 1e-13);
  check_near(product[1].value(), (2.0 * (x * v)).value(), 1e-13);
  // Linear in x: no second derivative.
  CHECK(max_abs_difference(hvp(sum(x), {x}, {v})[0].value(), Tensor::zeros({4}, DType::float64)) ==
        0.0);
}

TEST_CASE("jvp and hvp of fused attention are central differences") {
  const Shape shape{2, 2, 5, 4};
  const Variables inputs{normal_leaf(shape, 1), normal_leaf(shape, 2), normal_leaf(shape, 3)};
  const Variables directions{Variable(normal_tensor(shape, 4)), Variable(normal_tensor(shape, 5)),
                             Variable(normal_tensor(shape, 6))};
  const Variable weight(normal_tensor(shape, 7));
  AttentionMask causal;
  causal.causal = true;
  const auto forward = [&](double t) {
    Variables moved;
    for (size_t i = 0; i < inputs.size(); ++i)
      moved.emplace_back((inputs[i] + t * directions[i]).value(), true);
    return std::pair{softmax_attention(moved[0], moved[1], moved[2], causal, 0.5), moved};
  };
  const auto [y, at] = forward(0.0);
  const double h = 1e-5;
  const Variable slope = (forward(h).first - forward(-h).first) * (0.5 / h);
  check_near(jvp({y}, at, directions)[0].value(), slope.value(), 1e-8);
  const auto gradients = [&](double t) {
    const auto [out, moved] = forward(t);
    return grad({sum(weight * out)}, moved);
  };
  const Variables above = gradients(h), below = gradients(-h);
  const Variables product = hvp(sum(weight * y), at, directions);
  for (size_t i = 0; i < 3; ++i)
    check_near(product[i].value(), ((above[i] - below[i]) * (0.5 / h)).value(), 1e-7);
}

TEST_CASE("gradients example by example are the rows of the Jacobian") {
  const Variable w = normal_leaf({3, 2}, 1), unused = normal_leaf({2}, 2),
                 x(normal_tensor({5, 3}, 3));
  const auto loss = [&](int64_t e) {
    return sum(tanh(matmul(Variable(x.value().slice(0, e, e + 1)), w)));
  };
  const Tensors rows = per_example_gradients(5, loss, {w, unused});
  REQUIRE(rows[0].shape() == Shape{5, 3, 2});
  REQUIRE(rows[1].shape() == Shape{5, 2});
  CHECK(max_abs_difference(rows[1], Tensor::zeros({5, 2}, DType::float64)) == 0.0);
  const Variable all = sum(tanh(matmul(x, w)));
  check_near(sum(Variable(rows[0]), {0}).value(), grad({all}, {w})[0].value(), 1e-13);
  for (int64_t e = 0; e < 5; ++e)
    check_near(rows[0].select(0, e), grad({loss(e)}, {w})[0].value(), 0.0);
}

TEST_CASE("errors name the input") {
  const Variable x = Variable(normal_tensor({3}, 1), true, "x"), y = x * x;
  CHECK_THROWS_WITH_AS(jvp({y}, {x}, {}), "[jvp] 1 inputs and 0 directions", Error);
  CHECK_THROWS_WITH_AS(hvp(sum(y), {x}, {Variable(normal_tensor({2}, 1))}),
                       "[hvp] input 'x' is float64 (3), its direction float64 (2)", Error);
  CHECK_THROWS_WITH_AS(hvp(y, {x}, {x}), "[hvp] the output has shape (3), not one element", Error);
}

}  // namespace
}  // namespace macgrad::checks
