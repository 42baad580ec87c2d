// The graph of a computation as tools see it: ops, leaves, keys, values beside their gradients; and
// tools that change a value as it enters the graph.
#include <doctest/doctest.h>

#include <set>

#include "macgrad/autograd/fused.h"
#include "macgrad/autograd/graph_record.h"
#include "macgrad/autograd/ops.h"
#include "macgrad/autograd/scope.h"

namespace macgrad {
namespace {

Variable leaf(const std::vector<double>& values, const std::string& name = "") {
  return Variable(Tensor::from_vector(values), true, name);
}

Variable block(const Variable& w, const Variable& b) {
  const Scope scope("block");
  const Variable h = (w * b).named("product");
  const Variable c(Tensor::from_vector(std::vector<double>{1, 2, 3}));
  const Variable weighted = exp(h) * c;
  return sum(weighted + exp(b));
}

TEST_CASE("a graph record holds every op in order, with its leaves, keys and values") {
  const Variable w = leaf({1, -2, 0}, "w"), b = leaf({1, 1, 2}, "b");
  GraphRecord record;
  Variable y;
  {
    const GraphRecord::Recording recording(record);
    y = block(w, b);
    const NoGrad off;
    (void)exp(w);  // does not enter the graph
  }
  (void)exp(w);  // nobody is watching
  CHECK(record.op_keys() == std::vector<std::string>{"block/product", "block/exp", "block/mul",
                                                     "block/exp#2", "block/add", "block/sum"});
  CHECK(record.leaf_keys() == std::vector<std::string>{"w", "b", "block/constant"});
  const auto& ops = record.ops();
  CHECK(ops[0].node->op == "mul");
  CHECK(ops[0].leaves == std::vector<size_t>{0, 1});
  CHECK(ops[1].leaves == std::vector<size_t>{GraphRecord::kNoLeaf});
  CHECK(ops[1].node->inputs[0].node == ops[0].node);
  CHECK(ops[2].leaves == std::vector<size_t>{GraphRecord::kNoLeaf, 2});
  CHECK(ops[3].leaves == std::vector<size_t>{1});
  CHECK(record.leaves()[0].requires_grad);
  CHECK_FALSE(record.leaves()[2].requires_grad);
  CHECK(max_abs_difference(ops[0].outputs[0], Tensor::from_vector(std::vector<double>{1, -2, 0})) ==
        0);
  CHECK(ops[0].bytes == 24);
  CHECK(record.find(y.node()->id) == &ops.back());
  CHECK(record.find(y.node()->id + 1) == nullptr);

  GradRecord gradients;
  GradOptions options;
  options.record = &gradients;
  grad({y}, {w, b}, {}, options);
  for (const GradRecord::Entry& e : gradients.entries()) {
    CAPTURE(e.name);
    if (e.node != 0) {
      REQUIRE(record.find(e.node));
      CHECK(record.find(e.node)->node->op == e.op);
    } else {
      CHECK((e.meta == record.leaves()[0].meta || e.meta == record.leaves()[1].meta));
    }
  }
}

TEST_CASE("a graph record: views own no bytes, statistics keep no values, a filter leaves out") {
  const Variable x = leaf({1, 2, 3, 4}, "x");
  GraphRecord record(GraphRecord::Keep::statistics,
                     [](const std::string&, const std::string& op) { return op != "exp"; });
  {
    const GraphRecord::Recording recording(record);
    (void)sum(exp(reshape(x, Shape{2, 2})));
  }
  CHECK(record.op_keys() == std::vector<std::string>{"reshape", "sum"});
  CHECK(record.ops()[0].bytes == 0);
  CHECK(record.ops()[0].outputs.empty());
  CHECK(record.ops()[0].statistics[0].max == 4);
  CHECK(record.ops()[1].bytes == 8);
}

TEST_CASE("records nest: the inner one alone sees its ops") {
  const Variable x = leaf({1, 2}, "x");
  GraphRecord outer, inner;
  const GraphRecord::Recording watching(outer);
  const Variable y = x * x;
  {
    const GraphRecord::Recording recording(inner);
    (void)exp(y);
  }
  (void)sum(y);
  CHECK(outer.op_keys() == std::vector<std::string>{"mul", "sum"});
  CHECK(inner.op_keys() == std::vector<std::string>{"exp"});
}

TEST_CASE("a tool may change a value as it enters the graph") {
  struct Doubled : RecordTool {
    void edit(const char* op, const Variables&, Tensors& outputs) override {
      if (std::string(op) == "exp") outputs[0] = (Variable(outputs[0]) * 2.0).value();
    }
  } tool;
  const Variable x = leaf({0, 0}, "x");
  const RecordTool::Watch watch(tool);
  const Variable h = exp(x);
  CHECK(h.value().to_vector<double>() == std::vector<double>{2, 2});
  // What follows is computed from it, gradients too.
  CHECK(grad({sum(h * h)}, {h})[0].value().to_vector<double>() == std::vector<double>{4, 4});
}

TEST_CASE("a tool may not change what a value is") {
  struct Flat : RecordTool {
    void edit(const char*, const Variables&, Tensors& outputs) override {
      outputs[0] = outputs[0].view(Shape{-1});
    }
  } tool;
  const Variable x(Tensor::zeros({2, 2}, DType::float64), true, "x");
  const RecordTool::Watch watch(tool);
  CHECK_THROWS_WITH_AS(exp(x), doctest::Contains("another shape or dtype"), Error);
}

TEST_CASE("opened fused ops: their composites stand in a scope of their name") {
  const Variable x = leaf({1, 2, 3}, "x");
  GraphRecord record;
  {
    const Unfused unfused;
    const GraphRecord::Recording recording(record);
    (void)sum(softmax(x, 0));
  }
  std::set<std::string> scopes;
  for (const GraphRecord::Op& op : record.ops()) scopes.insert(*op.node->scope);
  CHECK(scopes.contains("softmax"));
  CHECK(record.op_keys().back() == "sum");
}

}  // namespace
}  // namespace macgrad
