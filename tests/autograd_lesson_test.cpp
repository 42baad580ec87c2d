// The numbers of autograd/README.md: the worked example of "By hand" (values, cotangents, second
// derivative) and of "f(x, x)", and the order of ids that "Why the order is right" rests on.
#include <doctest/doctest.h>

#include <set>
#include <string>
#include <vector>

#include "macgrad/autograd/engine.h"
#include "macgrad/autograd/fused.h"
#include "macgrad/autograd/node.h"
#include "macgrad/autograd/ops.h"
#include "macgrad/core/kernels/elementwise.h"

namespace macgrad {
namespace {

using List = std::vector<double>;

Variable leaf(const List& values, const std::string& name) {
  return Variable(Tensor::from_vector(values), true, name);
}
Variable scalar_leaf(double value, const std::string& name) {
  return Variable(Tensor::scalar(value, DType::float64), true, name);
}
List values(const Tensor& t) {
  REQUIRE(t.defined());
  return t.to_vector<double>();
}
List values(const Variable& v) {
  REQUIRE(v.defined());
  return values(v.value());
}

/// The example of "By hand".
struct Example {
  Variable x = leaf({1, 2}, "x");
  Variable w = scalar_leaf(3, "w");
  Variable a = w * x;
  Variable b = a * x;
  Variable y = sum(b);
};

struct Seen {
  std::string op;
  List cotangent;
  bool operator==(const Seen&) const = default;
};
std::vector<Seen> seen(const GradRecord& record) {
  std::vector<Seen> list;
  for (const auto& e : record.entries())
    list.push_back({e.op == "leaf" ? e.name : e.op, values(e.gradient)});
  return list;
}

TEST_CASE("autograd/README.md, By hand: values and first derivatives") {
  const Example e;
  CHECK(values(e.a) == List{3, 6});
  CHECK(values(e.b) == List{3, 12});
  CHECK(e.y.item() == 15);
  CHECK(e.a.node()->id + 1 == e.b.node()->id);
  CHECK(e.b.node()->id + 1 == e.y.node()->id);

  GradRecord record;
  const Variables g = grad({e.y}, {e.x, e.w}, {}, {.record = &record});
  CHECK(values(g[0]) == List{6, 12});
  CHECK(g[1].item() == 5);
  CHECK(g[1].shape() == Shape{});
  const std::vector<Seen> turns = seen(record);
  REQUIRE(turns.size() == 5);
  CHECK((turns[0] == Seen{"sum", {1}}));
  CHECK((turns[1] == Seen{"mul", {1, 1}}));
  CHECK((turns[2] == Seen{"mul", {1, 2}}));
  CHECK(values(record.at("x").gradient) == List{6, 12});
  CHECK(values(record.at("w").gradient) == List{5});
}

TEST_CASE("autograd/README.md, By hand: the second derivative") {
  const Example e;
  const Variable dx = grad({e.y}, {e.x}, {}, {.create_graph = true})[0];
  CHECK(values(dx) == List{6, 12});
  // What recorded dx: four nodes, each made by the rule of a node of the forward pass.
  const auto sum_of_two = dx.node();
  REQUIRE(sum_of_two);
  CHECK(sum_of_two->op == "add");
  const auto first = sum_of_two->inputs[0].node, last = sum_of_two->inputs[1].node;
  REQUIRE(first);
  REQUIRE(last);
  CHECK(first->op == "mul");  // b̄·a
  CHECK(first->backward_of == e.b.node()->id);
  CHECK(first->inputs[1].node == e.a.node());
  CHECK(last->op == "mul");  // ā·w
  CHECK(last->backward_of == e.a.node()->id);
  const auto a_bar = last->inputs[0].node;
  REQUIRE(a_bar);
  CHECK(a_bar->op == "mul");  // b̄·x
  CHECK(a_bar->backward_of == e.b.node()->id);
  CHECK(a_bar->id < first->id);
  CHECK(first->id < last->id);

  GradRecord record;
  const Variable c(Tensor::from_vector(List{1, 10}));
  const Variables h = grad({dx}, {e.x, e.w}, {c}, {.record = &record});
  CHECK(values(h[0]) == List{6, 60});  // 2w·c
  CHECK(h[1].item() == 42);            // 2 Σ c x
  const std::vector<Seen> turns = seen(record);
  REQUIRE(turns.size() == 7);
  CHECK((turns[0] == Seen{"add", {1, 10}}));
  CHECK((turns[1] == Seen{"mul", {1, 10}}));  // ā·w
  CHECK((turns[2] == Seen{"mul", {1, 10}}));  // b̄·a
  CHECK((turns[3] == Seen{"mul", {3, 30}}));  // ā
  CHECK((turns[4] == Seen{"mul", {1, 10}}));  // a
  CHECK(record.entries()[1].node == last->id);
  CHECK(record.entries()[2].node == first->id);
  CHECK(record.entries()[3].node == a_bar->id);
  CHECK(record.entries()[4].node == e.a.node()->id);
}

TEST_CASE("autograd/README.md, Why the order is right: makers have smaller ids than users") {
  const Example e;
  const Variable dx = grad({e.y}, {e.x}, {}, {.create_graph = true})[0];
  const Variable last = sum(dx * dx + e.a);
  std::set<uint64_t> ids;
  std::vector<Node*> stack{last.node().get()};
  size_t edges = 0;
  while (!stack.empty()) {
    const Node* node = stack.back();
    stack.pop_back();
    if (!ids.insert(node->id).second) continue;
    for (const Node::Input& in : node->inputs) {
      if (!in.node) continue;
      ++edges;
      CHECK(in.node->id < node->id);
      stack.push_back(in.node.get());
    }
  }
  CHECK(ids.size() == 8);  // a; b̄·x, b̄·a, ā·w and their sum; its square, the sum with a, the result
  CHECK(edges == 9);
}

// f(a, b) = a·b² with kernels of its own.
class TimesSquare : public FusedOp {
 public:
  const char* name() const override { return "times_square"; }
  Result forward(const Tensors& in) override {
    return {{product(in[0], product(in[1], in[1]))}, {}};
  }
  Tensors backward(const Tensors& in, const Result&, const Tensors& g,
                   const std::vector<bool>&) const override {
    const Tensor ab = product(in[0], in[1]);
    const Tensor twice = Tensor::empty(ab.shape(), ab.dtype());
    kernels::add(ab, ab, twice);
    return {product(g[0], product(in[1], in[1])), product(g[0], twice)};
  }
  Variables composite(const Variables& in) const override { return {in[0] * (in[1] * in[1])}; }

 private:
  static Tensor product(const Tensor& a, const Tensor& b) {
    const Tensor y = Tensor::empty(a.shape(), a.dtype());
    kernels::mul(a, b, y);
    return y;
  }
};

TEST_CASE("autograd/README.md, f(x, x): right at every order") {
  const Variable x = leaf({2}, "x");
  Variable y = apply_fused(std::make_shared<TimesSquare>(), {x, x})[0];
  CHECK(y.item() == 8);
  CHECK(y.node()->op == "times_square");
  const double expected[] = {12, 12, 6};  // of x³ at 2
  for (int order = 1; order <= 3; ++order) {
    CAPTURE(order);
    y = grad({y}, {x}, {}, {.create_graph = order < 3})[0];
    CHECK(y.item() == expected[order - 1]);
  }
}

TEST_CASE("autograd/README.md, f(x, x): what aliases are for") {
  const Variable x = leaf({2}, "x");
  const auto f = [](const Variables& in) { return TimesSquare().composite(in); };
  // Without them each operand gets the derivative of the whole.
  const Variables shared = grad({f({x, x})[0]}, {x, x}, {}, {.create_graph = true});
  CHECK(shared[0].item() == 12);
  CHECK(shared[1].item() == 12);
  const Variables shared_again = grad({shared[0] + shared[1]}, {x, x});
  CHECK(shared_again[0].item() + shared_again[1].item() == 48);
  // With them each gets its own part.
  const Variable a = identity(x), b = identity(x);
  const Variables apart = grad({f({a, b})[0]}, {a, b}, {}, {.create_graph = true});
  CHECK(apart[0].item() == 4);
  CHECK(apart[1].item() == 8);
  const Variables apart_again = grad({apart[0] + apart[1]}, {a, b});
  CHECK(apart_again[0].item() == 4);
  CHECK(apart_again[1].item() == 8);
}

TEST_CASE("autograd/README.md, first example: x³ at 2") {
  const Variable x = scalar_leaf(2.0, "x");
  const Variable y = x * x * x;
  const Variable dy = grad({y}, {x}, {}, {.create_graph = true})[0];
  const Variable d2y = grad({dy}, {x})[0];
  CHECK(y.item() == 8);
  CHECK(dy.item() == 12);
  CHECK(d2y.item() == 12);
}

}  // namespace
}  // namespace macgrad
