// Rows of the ops that memory bandwidth bounds (elementwise, softmax, layer norm, cross entropy),
// on about 64 MiB, against a copy: the share of its rate is the figure that matters.
#include <fmt/format.h>

#include "autograd/ops.h"
#include "core/kernels.h"
#include "experiments/bench/groups.h"

namespace macgrad::experiments {
namespace {

Variable normal(const Shape& shape, uint32_t draw) {
  Tensor t = Tensor::empty(shape);
  kernels::random_normal(t, DrawKey{7, 4, draw, 0});
  return Variable(t);
}

}  // namespace

void bench_rows(BenchTable& table) {
  const NoGrad off;
  constexpr double kBytes = 64.0 * (1 << 20);
  const auto row = [&](const std::string& name, double passes, const std::function<void()>& f) {
    table.run({.name = name, .gbyte = passes * kBytes * 1e-9}, f);
    table.compare(name, kCopyLimit);
  };
  {
    const Variable x = normal({4096, 4096}, 0);
    row("exp 64 MiB", 2, [&] { (void)exp(x); });
    row("add 64 MiB", 3, [&] { (void)add(x, x); });
    row("softmax 4096x4096", 2, [&] { (void)softmax(x, 1); });
  }
  {
    const Variable x = normal({65536, 256}, 0), w = normal({256}, 1), b = normal({256}, 2);
    row("layer_norm 65536x256", 2, [&] { (void)layer_norm(x, w, b, 1e-5); });
  }
  {
    const Variable x = normal({1678, 10000}, 0);
    std::vector<int64_t> ids(1678);
    for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int64_t>(i * 37 % 10000);
    const Tensor target = Tensor::from_vector(ids);
    row("cross_entropy 1678x10000", 1, [&] { (void)cross_entropy(x, target, 0.1); });
  }
}

}  // namespace macgrad::experiments
