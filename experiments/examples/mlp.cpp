// examples/mlp: fits a small network to sin(3x) and prints gradients
#include <macgrad/nn.h>

using namespace macgrad;

int main() {
  nn::ModelRandom random(/*seed=*/1);  // determines the initial values
  nn::Sequential model;
  model.add<nn::Linear>(1, 32, random);
  model.add(gelu);
  model.add<nn::Linear>(32, 32, random);
  model.add(gelu);
  model.add<nn::Linear>(32, 1, random);

  const Variable x(Tensor::randn(Shape{256, 1}, /*seed=*/2)), y = sin(3.0 * x);
  nn::Adam adam(model);
  for (int step = 1; step <= 1000; ++step) {
    const Variable loss = nn::mse_loss(model.forward(x), y);
    model.zero_grad();
    backward(loss);
    adam.step(/*lr=*/3e-3);
    if (step % 200 == 0) fmt::print("step {}: loss {:.1e}\n", step, loss.item());
  }
  for (const auto& [name, parameter] : model.named_parameters())  // "0.weight", "0.bias", ...
    fmt::print("gradient of {}: norm {:.1e}\n", name, statistics(parameter->grad().value()).l2);

  const Variable input(x.value(), /*requires_grad=*/true);
  const Variable slope = grad({sum(model.forward(input))}, {input})[0];  // close to 3 cos(3x)
  fmt::print("slope: mean squared error {:.1e}\n", nn::mse_loss(slope, 3.0 * cos(3.0 * x)).item());
}
