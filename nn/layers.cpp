// The small layers: Linear, Embedding, LayerNorm, Dropout, FeedForward.
#include <cmath>

#include "macgrad/autograd/ops.h"
#include "macgrad/nn/embedding.h"
#include "macgrad/nn/feed_forward.h"
#include "macgrad/nn/init.h"
#include "macgrad/nn/layer_norm.h"

namespace macgrad::nn {

Linear::Linear(Module* parent, std::string name, int64_t in, int64_t out, ModelRandom& random,
               bool with_bias)
    : Module(parent, std::move(name)),
      weight(this, "weight", xavier_uniform(Shape{out, in}, random.init())) {
  if (with_bias) bias.emplace(this, "bias", Tensor::zeros(Shape{out}), ParameterOptions{false, {}});
}

Variable Linear::forward(const Variable& x) const {
  const auto in_scope = scope();
  return in_scope.result(
      linear(x, weight, bias ? static_cast<const Variable&>(*bias) : Variable()));
}

Embedding::Embedding(Module* parent, std::string name, int64_t vocabulary, int64_t width,
                     ModelRandom& random)
    : Module(parent, std::move(name)),
      weight(this, "weight",
             normal(Shape{vocabulary, width}, random.init(),
                    1.0 / std::sqrt(static_cast<double>(width)))) {}

Variable Embedding::forward(const Tensor& ids) const {
  const auto in_scope = scope();
  return in_scope.result(embedding(weight, ids));
}

Variable Embedding::project(const Variable& x) const {
  // Not the module's result: its hooks see embeddings, not logits.
  const auto in_scope = scope();
  return linear(x, weight, Variable());
}

LayerNorm::LayerNorm(Module* parent, std::string name, int64_t width, double eps)
    : Module(parent, std::move(name)),
      weight(this, "weight", Tensor::full(Shape{width}, 1.0), {false, {}}),
      bias(this, "bias", Tensor::zeros(Shape{width}), {false, {}}),
      eps_(eps) {}

Variable LayerNorm::forward(const Variable& x) const {
  const auto in_scope = scope();
  return in_scope.result(layer_norm(x, weight, bias, eps_));
}

Dropout::Dropout(Module* parent, std::string name, double p, ModelRandom& random)
    : Module(parent, std::move(name)), p_(p), random_(&random) {
  require(p >= 0.0 && p < 1.0, "[dropout] p is {} and must be in [0, 1)", p);
}

Variable Dropout::forward(const Variable& x) const {
  const auto in_scope = scope();
  if (!training() || p_ == 0.0) return in_scope.result(x);
  check_step_begun();
  return in_scope.result(macgrad::dropout(x, p_, random_->dropout().draw()));
}

Activation parse_activation(const std::string& name) {
  if (name == "relu") return Activation::relu;
  if (name == "gelu") return Activation::gelu;
  if (name == "gelu_tanh") return Activation::gelu_tanh;
  throw Error("activation '{}' is unknown; use relu, gelu or gelu_tanh", name);
}

Variable activate(const Variable& x, Activation activation) {
  switch (activation) {
    case Activation::relu:
      return relu(x);
    case Activation::gelu:
      return gelu(x);
    case Activation::gelu_tanh:
      return gelu_tanh(x);
  }
  throw Error("activation tag {} is unknown", static_cast<int>(activation));
}

FeedForward::FeedForward(Module* parent, std::string name, int64_t width, int64_t hidden,
                         Activation activation, double dropout_p, ModelRandom& random)
    : Module(parent, std::move(name)),
      linear1(this, "linear1", width, hidden, random),
      dropout(this, "dropout", dropout_p, random),
      linear2(this, "linear2", hidden, width, random),
      activation_(activation) {}

Variable FeedForward::forward(const Variable& x) const {
  const auto in_scope = scope();
  return in_scope.result(
      linear2.forward(dropout.forward(activate(linear1.forward(x), activation_))));
}

}  // namespace macgrad::nn
