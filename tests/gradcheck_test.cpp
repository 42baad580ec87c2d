// gradcheck itself: it must accept right rules and reject wrong ones, those included that a
// cotangent of ones or a first derivative cannot tell from right ones.
#include <doctest/doctest.h>

#include "macgrad/autograd/gradcheck.h"
#include "macgrad/autograd/node.h"
#include "macgrad/autograd/ops.h"
#include "macgrad/tests/op_cases.h"

namespace macgrad::testing {
namespace {

using doctest::Contains;

Variable input(const Shape& shape, uint32_t draw = 1) {
  return Variable(exact_values(shape, draw, DType::float64), true);
}

// x² with a rule of our own.
template <class Rule>
Variable square_with(const Variable& x, Rule rule) {
  return record("square", {x}, (x * x).value(), Rules{std::move(rule)});
}

TEST_CASE("right rules pass, and the result says how close the worst entry is") {
  const Variable x = input({2, 3});
  const auto f = [](const Variables& v) {
    return square_with(v[0],
                       [x = v[0]](const Variable& g, const VjpContext&) { return 2.0 * (g * x); });
  };
  const GradcheckResult result = gradcheck(f, {x}, {.order = 2});
  CHECK(result.ok);
  CHECK(static_cast<bool>(result));
  CHECK(result.worst < 1);
  CHECK(result.message.find("analytic") != std::string::npos);
}

TEST_CASE("a wrong factor is rejected, and the message names the entry") {
  const Variable y = input({2, 3}, 2), x = input({2, 3});
  const auto f = [](const Variables& v) {
    return v[0] + square_with(v[1], [x = v[1]](const Variable& g, const VjpContext&) {
             return 2.002 * (g * x);
           });
  };
  const GradcheckResult result = gradcheck(f, {y, x});
  CHECK_FALSE(result.ok);
  CHECK(result.worst > 1);
  CHECK(result.message.find("input 1 element") != std::string::npos);
}

TEST_CASE("a missing gradient is rejected") {
  const auto f = [](const Variables& v) {
    return square_with(v[0], [](const Variable&, const VjpContext&) { return Variable(); });
  };
  CHECK_FALSE(gradcheck(f, {input({3})}).ok);
}

TEST_CASE("a NaN gradient is rejected") {
  const auto f = [](const Variables& v) {
    return square_with(v[0],
                       [](const Variable& g, const VjpContext&) { return log(0.0 * g - 1.0); });
  };
  CHECK_FALSE(gradcheck(f, {input({3})}).ok);
}

// With a cotangent of ones the gradient of softmax is 0, whatever the rule does with it.
TEST_CASE("a wrong softmax rule that ones cannot see is rejected") {
  const auto f = [](const Variables& v) {
    const Variable y = softmax(v[0].detach(), 1);
    return record("softmax", {v[0]}, y.value(), Rules{[y](const Variable& g, const VjpContext&) {
                    return 0.5 * (y * (g - sum(g * y, {1}, true)));
                  }});
  };
  const Variable x = input({2, 4});
  CHECK_FALSE(gradcheck(f, {x}).ok);
  CHECK(gradcheck([](const Variables& v) { return softmax(v[0], 1); }, {x}, {.order = 2}).ok);
}

// Right to first order; the rule forgets that it depends on x.
TEST_CASE("a rule whose second derivative is wrong is rejected at order 2 only") {
  const auto f = [](const Variables& v) {
    return square_with(
        v[0], [x = v[0].detach()](const Variable& g, const VjpContext&) { return 2.0 * (g * x); });
  };
  const Variable x = input({3});
  CHECK(gradcheck(f, {x}).ok);
  CHECK_FALSE(gradcheck(f, {x}, {.order = 2}).ok);
}

// Right in x, but the gradient does not depend on the cotangent as it should.
TEST_CASE("a rule that loses the graph of its cotangent is rejected at order 2") {
  const auto f = [](const Variables& v) {
    return square_with(
        v[0], [x = v[0]](const Variable& g, const VjpContext&) { return 2.0 * (g.detach() * x); });
  };
  const Variable x = input({3});
  CHECK(gradcheck(f, {x}).ok);
  CHECK_FALSE(gradcheck(f, {x}, {.order = 2}).ok);
}

TEST_CASE("inputs are checked, and left as they were") {
  const Variable x = input({3});
  const auto before = x.value().to_vector<double>();
  const auto f = [](const Variables& v) { return v[0] * v[0]; };
  CHECK(gradcheck(f, {x}, {.order = 2}).ok);
  CHECK(x.value().to_vector<double>() == before);
  CHECK_FALSE(x.grad().defined());
  CHECK_THROWS_WITH_AS(gradcheck(f, {Variable(Tensor::zeros({2}), true)}),
                       Contains("needs float64"), Error);
  CHECK_THROWS_WITH_AS(gradcheck(f, {x.detach()}), Contains("no input asks for a gradient"), Error);
}

TEST_CASE("different seeds draw different cotangents") {
  const Variable x = input({3});
  const auto f = [](const Variables& v) { return exp(v[0]); };
  const auto a = gradcheck(f, {x}, {.seed = 1}), b = gradcheck(f, {x}, {.seed = 2});
  CHECK(a.ok);
  CHECK(b.ok);
  CHECK(a.message != b.message);
}

}  // namespace
}  // namespace macgrad::testing
