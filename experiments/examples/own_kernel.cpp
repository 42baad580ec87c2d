// examples/own_kernel: a dot-product kernel made at run time, computed exactly and with RMFA
#include <macgrad/nn.h>

using namespace macgrad;

int main() {
  // f as a generic callable: evaluated on a number, on a Variable (exact attention) and on a power
  // series, from which the Maclaurin coefficients follow. A negative coefficient is an Error.
  const nn::DotProductKernel kernel("cube", "(1 - t)^-3", /*radius=*/1.0, [](const auto& t) {
    const auto inverse = 1.0 / (1.0 - t);
    return inverse * inverse * inverse;
  });
  fmt::print("{} = {}: coefficients {} {} {} {}\n", kernel.name(), kernel.formula(),
             kernel.coefficient(0), kernel.coefficient(1), kernel.coefficient(2),
             kernel.coefficient(3));

  constexpr int64_t kHeads = 2, kLength = 100, kDim = 16;
  Generator generator(/*seed=*/1);
  const auto input = [&](const char* name) {
    const Tensor t = Tensor::randn(Shape{1, kHeads, kLength, kDim}, generator, DType::float64);
    return Variable(t, /*requires_grad=*/true, name);
  };
  const Variable q = input("q"), k = input("k"), v = input("v");
  const Variable cotangent = input("cotangent").detach();

  nn::AttentionSettings settings;
  settings.kernel = kernel;
  settings.qk_norm = true;     // unit-norm queries and keys keep |t| inside the radius
  settings.logit_scale = 1.0;  // t = q.k/sqrt(16), so |t| <= 1/4
  settings.draws = nn::DrawMethod::optimal;
  struct Result {
    Tensor output, dq;
  };
  const auto attend = [&](uint64_t seed) {
    nn::ModelRandom random(seed);  // of the feature draw
    const auto core = nn::make_attention_core(nullptr, "core", settings,
                                              {nn::AttentionRole::self, kHeads, kDim, &random});
    const Variable output = core->forward({q, k, v});
    return Result{output.value(), grad({output}, {q}, {cotangent})[0].value()};
  };
  settings.kind = nn::attention_kind("exact");  // O(T·S), the reference
  const Result exact = attend(0);

  // Σ(estimate - exact)² / Σ exact²
  const auto error = [](const Tensor& estimate, const Tensor& reference) {
    return nn::mse_loss(Variable(estimate), Variable(reference)).item() /
           mean(pow(Variable(reference), 2)).item();
  };
  settings.kind = nn::attention_kind("rmfa");  // O(T + S)
  constexpr int kDraws = 20;
  for (const int64_t features : {64, 256, 1024}) {
    settings.features = features;
    double output = 0, dq = 0;
    for (uint64_t seed = 1; seed <= kDraws; ++seed) {
      const Result estimate = attend(seed);
      output += error(estimate.output, exact.output) / kDraws;
      dq += error(estimate.dq, exact.dq) / kDraws;
    }
    // Notice that both errors fall at least as fast as 1/D, and that the gradient of the queries,
    // which lacks the part that is equal for all of them, is harder to estimate than the output.
    fmt::print("D = {:4}: squared error of the output {:.1e}, of the gradient of q {:.1e}\n",
               features, output, dq);
  }
}
