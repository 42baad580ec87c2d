// examples/inspect_gradients: reads, records, replaces and checks gradients of attention
#include <cmath>

#include <macgrad/nn.h>

using namespace macgrad;

int main() {
  nn::AttentionSettings settings;
  settings.kind = nn::attention_kind("rmfa");
  settings.ppsbn = true;
  settings.features = 32;
  nn::ModelRandom random(/*seed=*/1);
  nn::MultiHeadAttention attention(nullptr, "attention", /*width=*/16, /*heads=*/2, settings,
                                   nn::AttentionRole::self, random);
  attention.to(DType::float64);
  const Variable x(Tensor::randn(Shape{1, 5, 16}, /*seed=*/2, DType::float64));
  const auto loss = [&] {
    attention.begin_step(/*step=*/1, /*epoch=*/0);  // the same feature draw in each call
    return mean(pow(attention.forward(x, x, /*mask=*/{}), 2));
  };

  // 1. A record of the backward pass has every gradient, under the path of the op that it belongs
  // to.
  GradRecord gradients;
  backward(loss(), {}, {.record = &gradients});
  for (const auto& e : gradients.entries())
    if (e.op == "rmfa" || e.op == "post_sbn" || e.name == "attention.q_proj.weight")
      fmt::print("gradient of {}: shape {}, norm {:.3e}\n", e.name, e.gradient.shape(), e.stats.l2);

  // 2. The fused op `rmfa` is one node. Inside Unfused its composite is recorded instead, so the
  // features, numerators and denominators have names and gradients as well.
  GraphRecord fused, composite;
  {
    const GraphRecord::Recording recording(fused);
    loss();
  }
  GradRecord inside;
  {
    const Unfused open;
    const GraphRecord::Recording recording(composite);
    backward(loss(), {}, {.record = &inside});
  }
  fmt::print("{} ops fused, {} as composites; gradient of the denominators: norm {:.3e}\n",
             fused.ops().size(), composite.ops().size(), inside.at("denominator").stats.l2);

  // 3. Hooks. One on a Variable sees its gradient and may replace it; one on a module sees what the
  // module returns. This one halves the gradient that leaves the query projection.
  const Variable& weight = attention.q_proj.weight;
  const Tensor before = grad({loss()}, {weight})[0].value();
  const int id = attention.q_proj.add_forward_hook([](const Variable& q) {
    q.add_hook([](const Variable& gradient) { return 0.5 * gradient; });
    return Variable();  // undefined: the result stays as it is
  });
  const Tensor halved = grad({loss()}, {weight})[0].value();
  attention.q_proj.remove_forward_hook(id);
  fmt::print(
      "the hook scales the gradient by {:.3f}\n",
      sum(Variable(halved) * Variable(before)).item() / sum(pow(Variable(before), 2)).item());

  // 4. The gradient against a central difference along itself. Each step shifts the weight in
  // place.
  const Variable direction(before);
  const double analytic = sum(direction * direction).item(), h = 1e-4;
  const Tensor start = weight.value().clone();
  const auto shifted = [&](double by) {
    weight.value().copy_from((Variable(start) + by * direction).value());
    return loss().item();
  };
  const double numeric = (shifted(h) - shifted(-h)) / (2 * h);
  weight.value().copy_from(start);
  fmt::print("|gradient|^2: {:.6e}, by central differences {:.6e}, relative difference {:.1e}\n",
             analytic, numeric, std::abs(analytic - numeric) / analytic);
}
