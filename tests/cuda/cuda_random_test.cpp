// Random tensors of the CUDA backend: the CPU's bits, and in a captured step the numbers of the
// step that device memory names.
#include <doctest/doctest.h>

#include "macgrad/core/kernels/random.h"
#include "macgrad/cuda/runtime.h"
#include "macgrad/cuda/step_values.h"
#include "macgrad/tests/cuda/device.h"
#include "macgrad/tests/cuda/orders.h"
#include "macgrad/tests/op_cases.h"

namespace macgrad::testing {
namespace {

const std::vector<DType> kFloating = {DType::float32, DType::float64, DType::bfloat16};
const DrawKey kKey{0x0123456789abcdefull, 3, 5, 7};

Tensor dropped(const Tensor& x, double p, const DrawKey& key) {
  const Tensor y = Tensor::empty(x.shape(), x.dtype(), x.device());
  kernels::dropout(x, y, p, key);
  return y;
}

TEST_CASE("cuda random tensors: uniforms, signs and masks bit for bit, normals to rounding") {
  for (const DType dtype : kFloating) {
    for (const int64_t n : {0, 1, 2, 3, 5, 63, 1024, 4099}) {
      CAPTURE(n);
      CAPTURE(name(dtype));
      const auto compare = [&](const auto& slot, double tolerance) {
        const Tensor expected = Tensor::empty({n}, dtype);
        slot(expected, kKey);
        // Aligned, and one element off.
        for (const int64_t offset : {0, 1}) {
          const Tensor got = Tensor::empty({n + 1}, dtype, kGpu).slice(0, offset, n + offset);
          slot(got, kKey);
          if (tolerance == 0) {
            CHECK(same_bits(got, expected));
          } else {
            CHECK(difference(got.to(kCpu), expected) <= tolerance);
          }
        }
      };
      compare(kernels::random_uniform, 0);
      compare(kernels::random_signs, 0);
      compare(kernels::random_normal, dtype == DType::float64   ? 1e-14
                                      : dtype == DType::float32 ? 1.2e-7
                                                                : 8e-3);
      const Tensor x = exact_values({n}, 1, dtype);
      for (const double p : {0.0, 0.1, 0.5, 1.0})
        CHECK(same_bits(dropped(on_gpu(x), p, kKey), dropped(x, p, kKey)));
      const Tensor wide = exact_values({n + 1}, 2, dtype);
      CHECK(same_bits(dropped(on_gpu(wide).slice(0, 1, n + 1), 0.3, kKey),
                      dropped(wide.slice(0, 1, n + 1), 0.3, kKey)));
    }
  }
  // A dropped NaN does not survive.
  const Tensor nan = Tensor::full({9}, std::nan(""), DType::float32, kGpu);
  CHECK(all_finite(dropped(nan, 1.0, kKey).to(kCpu)));
}

TEST_CASE("cuda random tensors: a live key reads the step set last, queued in order") {
  DrawKey live = kKey;
  live.step = kLiveStep;
  const Tensor y = Tensor::empty({40}, DType::float32, kGpu), x = Tensor::full({40}, 1.0);
  const Tensor ones = x.to(kGpu);
  for (const uint32_t step : {1u, 68u, 135u}) {
    cuda::set_step_values({.step = step - 1});
    cuda::set_step_values({.step = step});
    DrawKey key = kKey;
    key.step = step;
    const Tensor expected = Tensor::empty({40});
    kernels::random_uniform(y, live);
    kernels::random_uniform(expected, key);
    CHECK(same_bits(y, expected));
    kernels::random_normal(y, live);
    kernels::random_normal(expected, key);
    CHECK(difference(y.to(kCpu), expected) <= 1.2e-7);
    kernels::random_signs(y, live);
    kernels::random_signs(expected, key);
    CHECK(same_bits(y, expected));
    CHECK(same_bits(dropped(ones, 0.5, live), dropped(x, 0.5, key)));
  }
}

TEST_CASE("cuda random tensors: a captured step replays with the step of the day") {
  DrawKey live = kKey;
  live.step = kLiveStep;
  const Tensor y = Tensor::empty({100}, DType::float32, kGpu);
  cuda::set_step_values({.step = 1});
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t exec = nullptr;
  // Relaxed mode, as StepGraph captures: a kernel that first runs here may be loaded meanwhile.
  CUDA_CHECK(cudaStreamBeginCapture(cuda::stream(), cudaStreamCaptureModeRelaxed));
  kernels::random_uniform(y, live);
  CHECK_THROWS_AS(cuda::set_step_values({.step = 2}), Error);
  CUDA_CHECK(cudaStreamEndCapture(cuda::stream(), &graph));
  CUDA_CHECK(cudaGraphInstantiate(&exec, graph, 0));
  for (const uint32_t step : {3u, 9u}) {
    cuda::set_step_values({.step = step});
    CUDA_CHECK(cudaGraphLaunch(exec, cuda::stream()));
    DrawKey key = kKey;
    key.step = step;
    const Tensor expected = Tensor::empty({100});
    kernels::random_uniform(expected, key);
    CHECK(same_bits(y, expected));
  }
  CUDA_CHECK(cudaGraphExecDestroy(exec));
  CUDA_CHECK(cudaGraphDestroy(graph));
}

}  // namespace
}  // namespace macgrad::testing
