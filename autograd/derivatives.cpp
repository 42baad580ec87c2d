// Forward derivatives by differentiating twice: a Jacobian-vector product is the gradient, with
// respect to a cotangent, of the vector-Jacobian product. Gradients of single examples are passes
// of their own.
#include "macgrad/autograd/derivatives.h"

#include "macgrad/autograd/op_support.h"

namespace macgrad {
namespace {

void check_directions(const char* name, const Variables& inputs, const Variables& directions) {
  check(inputs.size() == directions.size(), "[{}] {} inputs and {} directions", name, inputs.size(),
        directions.size());
  for (size_t i = 0; i < inputs.size(); ++i) {
    check(inputs[i].defined(), "[{}] input {} is undefined", name, i);
    if (!directions[i].defined()) continue;
    check(directions[i].shape() == inputs[i].shape() && directions[i].dtype() == inputs[i].dtype(),
          "[{}] input '{}' is {} {}, its direction {} {}", name, inputs[i].name(),
          macgrad::name(inputs[i].dtype()), inputs[i].shape(), macgrad::name(directions[i].dtype()),
          directions[i].shape());
  }
}

// Σ of products with the directions, of all values that can be differentiated again: their
// gradients with respect to `wanted`, zeros where nothing depends on it.
Variables pulled_back(const Variables& values, const Variables& directions, const Variables& wanted,
                      const GradOptions& options) {
  Variables live, cotangents;
  for (size_t i = 0; i < values.size(); ++i) {
    if (!values[i].defined() || !values[i].requires_grad() || !directions[i].defined()) continue;
    live.push_back(values[i]);
    cotangents.push_back(directions[i]);
  }
  Variables result(wanted.size());
  if (!live.empty()) result = grad(live, wanted, cotangents, options);
  for (size_t i = 0; i < wanted.size(); ++i)
    if (!result[i].defined()) result[i] = zeros_like(wanted[i]);
  return result;
}

}  // namespace

Variables jvp(const Variables& outputs, const Variables& inputs, const Variables& directions) {
  check_directions("jvp", inputs, directions);
  Variables cotangents;
  for (const Variable& y : outputs) {
    check(y.defined(), "[jvp] an output is undefined");
    cotangents.emplace_back(Tensor::zeros(y.shape(), y.dtype(), y.device()), true);
  }
  Variables live, live_cotangents;
  for (size_t i = 0; i < outputs.size(); ++i) {
    if (!outputs[i].requires_grad()) continue;
    live.push_back(outputs[i]);
    live_cotangents.push_back(cotangents[i]);
  }
  Variables gradients(inputs.size());
  if (!live.empty())
    gradients = grad(live, inputs, live_cotangents, {.create_graph = true, .allow_unused = true});
  return pulled_back(gradients, directions, cotangents, {.allow_unused = true});
}

Variables hvp(const Variable& output, const Variables& inputs, const Variables& directions) {
  check_directions("hvp", inputs, directions);
  check(output.defined() && output.numel() == 1, "[hvp] the output has shape {}, not one element",
        output.defined() ? output.shape() : Shape{});
  const Variables gradients =
      grad({output}, inputs, {}, {.create_graph = true, .allow_unused = true});
  return pulled_back(gradients, directions, inputs, {.retain_graph = true, .allow_unused = true});
}

Tensors per_example_gradients(int64_t examples, const std::function<Variable(int64_t)>& loss,
                              const Variables& inputs) {
  Tensors result;
  for (const Variable& v : inputs)
    result.push_back(Tensor::empty(v.shape().inserted(0, examples), v.dtype(), v.device()));
  for (int64_t e = 0; e < examples; ++e) {
    const Variables gradients = grad({loss(e)}, inputs, {}, {.allow_unused = true});
    for (size_t i = 0; i < inputs.size(); ++i)
      result[i].select(0, e).copy_from(gradients[i].defined() ? gradients[i].value()
                                                              : zeros_like(inputs[i]).value());
  }
  return result;
}

}  // namespace macgrad
