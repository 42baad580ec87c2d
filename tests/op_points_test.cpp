// First and second derivatives where formulas have corners, ties and holes: at 0, on bounds, at
// equal values, and products with zeros. Conventions as stated in autograd/ops.h.
#include <doctest/doctest.h>

#include <cmath>
#include <functional>
#include <limits>

#include "macgrad/autograd/engine.h"
#include "macgrad/autograd/ops.h"

namespace macgrad {
namespace {

using List = std::vector<double>;

Variable leaf(const List& values) {
  return Variable(Tensor::from_vector(values), true);
}

List read(const Variable& v) {
  return v.value().to_vector<double>();
}

TEST_CASE("var: one far value does not take the digits of the others") {
  List values(1000);
  for (size_t i = 0; i < values.size(); ++i)
    values[i] = i == 0 ? 1e8 : 0.01 * static_cast<double>(i);
  const auto gradient = [&](DType dtype) {
    const Variable x(Tensor::from_vector(values).to(dtype), true);
    return read(grad({var(x, {0})}, {x})[0]);
  };
  const List exact = gradient(DType::float64), rounded = gradient(DType::float32);
  for (size_t i = 0; i < values.size(); ++i)
    CHECK(rounded[i] == doctest::Approx(exact[i]).epsilon(1e-6));
}

// Gradient of Σ f(x), and the diagonal-like second derivative: gradient of Σ of that gradient.
struct Derivatives {
  List value, first, second;
};
Derivatives derivatives(const std::function<Variable(const Variable&)>& f, const List& at) {
  const Variable x = leaf(at);
  const Variable y = f(x);
  const Variable g = grad({sum(y)}, {x}, {}, {.create_graph = true})[0];
  Derivatives d{read(y), read(g), List(at.size(), 0.0)};
  if (g.requires_grad()) {
    const Variable h = grad({sum(g)}, {x}, {}, {.allow_unused = true})[0];
    if (h.defined()) d.second = read(h);
  }
  return d;
}

void check_at(const std::function<Variable(const Variable&)>& f, const List& at, const List& first,
              const List& second) {
  const Derivatives d = derivatives(f, at);
  for (size_t i = 0; i < at.size(); ++i) {
    CAPTURE(at[i]);
    CHECK(d.first[i] == doctest::Approx(first[i]));
    CHECK(d.second[i] == doctest::Approx(second[i]));
  }
}

TEST_CASE("relu, abs, sign and clamp at their corners") {
  check_at([](const Variable& x) { return relu(x); }, {0, -0.0, 1, -1}, {0, 0, 1, 0}, {0, 0, 0, 0});
  check_at([](const Variable& x) { return relu(x) * relu(x); }, {0, 2, -2}, {0, 4, 0}, {0, 2, 0});
  check_at([](const Variable& x) { return abs(x); }, {0, 2, -2}, {0, 1, -1}, {0, 0, 0});
  check_at([](const Variable& x) { return abs(x) * x; }, {0, 2, -2}, {0, 4, 4}, {0, 2, -2});
  check_at([](const Variable& x) { return sign(x); }, {0, 2, -2}, {0, 0, 0}, {0, 0, 0});
  check_at([](const Variable& x) { return clamp(x, -1, 2); }, {-1, 2, -1.5, 2.5, 0},
           {1, 1, 0, 0, 1}, {0, 0, 0, 0, 0});
  CHECK(read(clamp(leaf({-3, NAN, 5}), -1, 2))[0] == -1);
  CHECK(std::isnan(read(clamp(leaf({NAN}), -1, 2))[0]));
}

TEST_CASE("maximum and minimum share the gradient at equal values") {
  const Variable a = leaf({1, 2, 0}), b = leaf({1, 1, 0});
  for (const bool larger : {true, false}) {
    const Variable y = larger ? maximum(a, b) : minimum(a, b);
    const Variables g = grad({sum(y * 2.0)}, {a, b});
    CHECK(read(g[0]) == (larger ? List{1, 2, 1} : List{1, 0, 1}));
    CHECK(read(g[1]) == (larger ? List{1, 0, 1} : List{1, 2, 1}));
  }
  // One Variable on both sides: the whole gradient.
  CHECK(read(grad({sum(maximum(a, a))}, {a})[0]) == List{1, 1, 1});
}

TEST_CASE("max and min along a dimension give the gradient to the first of equals") {
  const Variable x = leaf({3, 1, 3, 1});
  CHECK(read(grad({max(x, 0).first}, {x})[0]) == List{1, 0, 0, 0});
  CHECK(read(grad({min(x, 0).first}, {x})[0]) == List{0, 1, 0, 0});
  CHECK(max(x, 0).second.item() == 0);
  CHECK(min(x, 0).second.item() == 1);
  // Second order: max² has 2 at the place of the maximum.
  check_at([](const Variable& v) { return max(v, 0).first * max(v, 0).first; }, {3, 1, 3, 1},
           {6, 0, 0, 0}, {2, 0, 0, 0});
}

TEST_CASE("argmax gives the index of the first largest element along a dimension") {
  const Tensor x =
      Tensor::from_vector(std::vector<double>{1, 5, 5, 7, 2, 7}, Shape{2, 3}).to(DType::float32);
  const Tensor rows = argmax(x, -1);
  CHECK(rows.dtype() == DType::int64);
  CHECK(rows.shape() == Shape{2});
  CHECK(rows.to_vector<int64_t>() == std::vector<int64_t>{1, 0});
  CHECK(argmax(x, 0).to_vector<int64_t>() == std::vector<int64_t>{1, 0, 1});
  CHECK(argmax(x, 1, /*keepdim=*/true).shape() == Shape{2, 1});
  CHECK_THROWS_WITH_AS(argmax(x, 2), doctest::Contains("[argmax]"), Error);
  CHECK_THROWS_WITH_AS(argmax(Tensor::zeros(Shape{2, 0}), 1), doctest::Contains("empty dimension"),
                       Error);
}

TEST_CASE("pow at base 0 and at exponents 0, 1, 2, 3") {
  check_at([](const Variable& x) { return pow(x, 0.0); }, {0, 2, -2}, {0, 0, 0}, {0, 0, 0});
  check_at([](const Variable& x) { return pow(x, 1.0); }, {0, 2, -2}, {1, 1, 1}, {0, 0, 0});
  check_at([](const Variable& x) { return pow(x, 2.0); }, {0, 2, -2}, {0, 4, -4}, {2, 2, 2});
  check_at([](const Variable& x) { return pow(x, 3.0); }, {0, 2, -2}, {0, 12, 12}, {0, 12, -12});
  CHECK(read(pow(leaf({0}), 0.0)) == List{1});
  // The gradient of the exponent is 0 where the base is 0, a^b·log a elsewhere.
  const Variable a = leaf({0, 2}), b = leaf({2, 3});
  const Variables g = grad({sum(pow(a, b))}, {a, b}, {}, {.create_graph = true});
  CHECK(read(g[0])[1] == doctest::Approx(12));
  CHECK(read(g[1])[0] == 0);
  CHECK(read(g[1])[1] == doctest::Approx(8 * std::log(2)));
  const Variables h = grad({sum(g[1])}, {a, b});
  CHECK(read(h[0])[0] == 0);
  CHECK(read(h[0])[1] == doctest::Approx(12 * std::log(2) + 4));
  CHECK(read(h[1])[0] == 0);
  CHECK(read(h[1])[1] == doctest::Approx(8 * std::log(2) * std::log(2)));
}

// a^b is constant in a at b = 0, yet d²/(da db) = 1/a there: both orders must say so.
TEST_CASE("pow: mixed second derivative at exponent 0") {
  const Variable a = leaf({2, 4}), b = leaf({0, 0});
  const Variables g = grad({sum(pow(a, b))}, {a, b}, {}, {.create_graph = true});
  CHECK(read(grad({sum(g[0])}, {b}, {}, {.retain_graph = true})[0]) == List{0.5, 0.25});
  CHECK(read(grad({sum(g[1])}, {a})[0]) == List{0.5, 0.25});
}

TEST_CASE("signed_pow at 0") {
  const auto with = [](double exponent) {
    return [exponent](const Variable& x) {
      return signed_pow(x, Variable(Tensor::scalar(exponent, DType::float64)));
    };
  };
  check_at(with(1.0), {0, 2, -2}, {1, 1, 1}, {0, 0, 0});
  check_at(with(2.0), {0, 2, -2}, {0, 4, 4}, {0, 2, -2});
  check_at(with(3.0), {0, 2, -2}, {0, 12, 12}, {0, 12, -12});
  CHECK(read(signed_pow(leaf({0, -4, 4}), leaf({0.5, 0.5, 0.5}))) == List{0, -2, 2});
  const Variable a = leaf({0, -2}), b = leaf({2, 2});
  const Variable g = grad({sum(signed_pow(a, b))}, {b})[0];
  CHECK(read(g)[0] == 0);
  CHECK(read(g)[1] == doctest::Approx(-4 * std::log(2)));
}

TEST_CASE("prod with no, one, two and three zeros, to second order") {
  const auto f = [](const Variable& x) { return prod(x, 0); };
  // Second: Σ_i ∂²/∂x_i∂x_j = sum over i≠j of the product of the rest.
  check_at(f, {2, 3, 5}, {15, 10, 6}, {8, 7, 5});
  check_at(f, {2, 0, 5}, {0, 10, 0}, {5, 7, 2});
  check_at(f, {0, 0, 5}, {0, 0, 0}, {5, 5, 0});
  check_at(f, {0, 0, 0}, {0, 0, 0}, {0, 0, 0});
  check_at(f, {0, 3, 0, 5}, {0, 0, 0, 0}, {15, 0, 15, 0});
  check_at(f, {7}, {1}, {0});
  CHECK(read(prod(leaf({}), 0)) == List{1});
  // Third order at two zeros: ∂³(x y z w)/∂x∂y∂z = w.
  const Variable x = leaf({0, 0, 3, 5});
  const Variable g = grad({prod(x, 0)}, {x}, {}, {.create_graph = true})[0];
  const Variable h = grad({select(g, 0, 0)}, {x}, {}, {.create_graph = true})[0];
  CHECK(read(h) == List{0, 15, 0, 0});
  CHECK(read(grad({select(h, 0, 1)}, {x})[0]) == List{0, 0, 5, 3});
}

TEST_CASE("sqrt and division at 0 follow IEEE; where and masked_fill stop what they hide") {
  const Variable x = leaf({0, 4});
  CHECK(read(grad({sum(sqrt(x))}, {x})[0])[0] == INFINITY);
  const Tensor zero = equal(x.value(), 0.0);
  const Variable safe =
      where(zero, Variable(Tensor::zeros({}, DType::float64)), sqrt(masked_fill(x, zero, 1.0)));
  CHECK(read(grad({sum(safe)}, {x})[0]) == List{0, 0.25});
  const Variable bad = leaf({NAN, 2});
  const Tensor mask = Tensor::from_vector(std::vector<bool>{true, false});
  const Variable y = masked_fill(bad, mask, 0.0);
  CHECK(read(grad({sum(y * y)}, {bad})[0]) == List{0, 4});
}

TEST_CASE("logsumexp and softmax with infinite entries") {
  const double inf = std::numeric_limits<double>::infinity();
  const Variable x = leaf({-inf, 1, 1});
  const Variable y = logsumexp(x, 0);
  CHECK(y.item() == doctest::Approx(1 + std::log(2)));
  CHECK(read(grad({y}, {x})[0]) == List{0, 0.5, 0.5});
  for (const DType dtype : {DType::float64, DType::float32, DType::bfloat16})
    CHECK(logsumexp(cast(leaf({-inf, -inf}), dtype), 0).item() == -inf);
  const Variable p = softmax(x, 0);
  CHECK(read(p) == List{0, 0.5, 0.5});
  const Variable c(Tensor::from_vector(List{3, 1, 2}));
  CHECK(read(grad({p}, {x}, {c})[0]) == List{0, -0.25, 0.25});
}

TEST_CASE("dropout replays its mask in every derivative") {
  const DrawKey key{1, 2, 3, 4};
  const Variable x = leaf(List(64, 2.0));
  const Variable y = dropout(x, 0.5, key);
  const List kept = read(y);
  CHECK(read(dropout(x, 0.5, key)) == kept);
  CHECK(read(dropout(x, 0.5, {1, 2, 4, 4})) != kept);
  const List g = read(grad({sum(y)}, {x})[0]);
  for (size_t i = 0; i < kept.size(); ++i) CHECK(g[i] == kept[i] / 2);
  CHECK_THROWS_WITH_AS(dropout(x, 1.0, key), doctest::Contains("[dropout] p = 1"), Error);
}

TEST_CASE("cross entropy refuses what it cannot mean") {
  const Variable x(Tensor::zeros({2, 3}), true);
  using doctest::Contains;
  CHECK_THROWS_WITH_AS(cross_entropy(x, Tensor::full({2}, 3, DType::int64)), Contains("3"), Error);
  CHECK_THROWS_WITH_AS(cross_entropy(x, Tensor::zeros({3}, DType::int64)), Contains("target"),
                       Error);
  CHECK_THROWS_WITH_AS(cross_entropy(x, Tensor::zeros({2})), Contains("int64"), Error);
  CHECK_THROWS_WITH_AS(cross_entropy(x, Tensor::full({2}, -1, DType::int64), 0.0, -1),
                       Contains("ignored"), Error);
}

}  // namespace
}  // namespace macgrad
