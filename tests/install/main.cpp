// An outside program: softmax attention, its gradient against a central difference, and a
// dot-product kernel of its own. Exit code 0 when all agree.
#include <cmath>
#include <cstdio>

#include <macgrad/nn.h>

using namespace macgrad;

int main() {
  const Shape shape{1, 1, 3, 4};
  const auto input = [&](double phase) {
    return reshape(sin(Variable(Tensor::arange(12, DType::float64)) + phase), shape).value();
  };
  const auto loss = [&](const Variable& q) {
    return sum(softmax_attention(q, Variable(input(1)), Variable(input(2)), {}, 0.5));
  };
  const Variable q(input(0), /*requires_grad=*/true, "q");
  const double gradient = sum(grad({loss(q)}, {q})[0] * Variable(input(3))).item();
  const double h = 1e-5;
  const Variable direction(input(3));
  const double difference =
      (loss(q + h * direction).item() - loss(q - h * direction).item()) / 2 / h;

  const nn::DotProductKernel square("square", "(1 + t)^2", nn::kEverywhere,
                                    [](const auto& t) { return (1.0 + t) * (1.0 + t); });
  std::printf("%sgradient %.12f, central difference %.12f, square(3) = %g\n",
              version_text("outside").c_str(), gradient, difference, square(3.0));
  const bool agree = std::abs(gradient - difference) < 1e-8 && std::abs(gradient) > 1e-6 &&
                     square(3.0) == 16 && square.coefficient(1) == 2;
  return agree ? 0 : 1;
}
