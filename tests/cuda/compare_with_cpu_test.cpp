// MACGRAD_CHECK=cpu: the tool passes what is right and names what is wrong.
#include <doctest/doctest.h>

#include "macgrad/autograd/scope.h"
#include "macgrad/core/compare_with_cpu.h"
#include "macgrad/core/kernels/arrays.h"
#include "macgrad/core/kernels/elementwise.h"
#include "macgrad/tests/cuda/device.h"
#include "macgrad/tests/op_cases.h"

namespace macgrad::testing {
namespace {

using doctest::Contains;

TEST_CASE("compare with cpu: right kernels pass, and calls on the CPU are left alone") {
  const CompareWithCpu tool;
  const Tensor x = on_gpu(exact_values({5, 7}, 1, DType::float32));
  const Tensor y = Tensor::empty({5, 7}, DType::float32, kGpu);
  kernels::exp(x, y);
  kernels::exp(x.slice(1, 1, 7, 2), y.slice(1, 0, 6, 2));
  kernels::matmul(x, x.transpose(0, 1), Tensor::empty({5, 5}, DType::float32, kGpu), 1.0, 0.0);
  CHECK(tool.compared() == 3);
  kernels::exp(exact_values({3}, 1, DType::float32), Tensor::empty({3}));
  CHECK(tool.compared() == 3);
  CHECK(tool.skipped().empty());
}

// A slot whose two sides disagree in one element.
void doubled(In x, Out y) {
  for (int64_t i = 0; i < x->numel(); ++i) y->data<float>()[i] = 2 * x->data<float>()[i];
}
void doubled_but_last(In x, Out y) {
  std::vector<float> values = x->to_vector<float>();
  for (float& v : values) v *= 2;
  values.back() += 1;
  y->copy_from(Tensor::from_vector(values, x->shape()));
}

TEST_CASE("compare with cpu: the first difference is named with op, scope, index and both values") {
  Kernel<void(In, Out)> slot{"doubled", {doubled}};
  slot.set(DeviceType::cuda, {doubled_but_last});
  const Tensor x =
      Tensor::from_values(std::vector<double>{1, 2, 3, 4, 5, 6}, {2, 3}, DType::float32, kGpu);
  const Tensor y = Tensor::empty({2, 3}, DType::float32, kGpu);
  const CompareWithCpu tool;
  const Scope scope("encoder");
  CHECK_THROWS_WITH_AS(slot(x, y), Contains("doubled on cuda"), Error);
  CHECK_THROWS_WITH_AS(slot(x, y), Contains("index (1, 2): 13 instead of 12, in encoder"), Error);
}

}  // namespace
}  // namespace macgrad::testing
