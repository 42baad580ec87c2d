// Device memory: counters, want of memory, the private part of recorded steps, what may not be done
// while a step is recorded, and which device is used.
#include <doctest/doctest.h>

#include <memory>

#include "macgrad/autograd/scope.h"
#include "macgrad/core/allocator.h"
#include "macgrad/core/kernels/arrays.h"
#include "macgrad/core/kernels/elementwise.h"
#include "macgrad/core/step_graph.h"
#include "macgrad/cuda/register.h"
#include "macgrad/cuda/runtime.h"
#include "macgrad/tests/cuda/device.h"
#include "macgrad/tests/op_cases.h"

namespace macgrad::testing {
namespace {

using doctest::Contains;

TEST_CASE("cuda memory: current and peak bytes, and blocks used again") {
  const MemoryStats before = memory_stats(kGpu);
  reset_peak(kGpu);
  {
    const Tensor a = Tensor::empty({1000}, DType::float32, kGpu);
    const Tensor b = Tensor::empty({3000}, DType::float32, kGpu);
    const MemoryStats now = memory_stats(kGpu);
    CHECK(now.current_bytes >= before.current_bytes + 16000);
    CHECK(now.current_bytes <= before.current_bytes + 16000 + 4096);
  }
  const MemoryStats after = memory_stats(kGpu);
  CHECK(after.current_bytes == before.current_bytes);
  CHECK(after.peak_bytes >= before.current_bytes + 16000);
  const Tensor c = Tensor::empty({3000}, DType::float32, kGpu);
  CHECK(memory_stats(kGpu).cached_bytes < after.cached_bytes);
}

TEST_CASE("cuda memory: want of memory says what was asked, used and free, and where") {
  const Scope scope("encoder");
  const auto ask = [] { (void)Tensor::empty({int64_t{1} << 43}, DType::float32, kGpu); };
  CHECK_THROWS_WITH_AS(ask(), Contains("out of memory on cuda:0: 35184372088832 bytes asked"),
                       Error);
  CHECK_THROWS_WITH_AS(ask(), Contains("in use"), Error);
  CHECK_THROWS_WITH_AS(ask(), Contains("free on the device, in encoder;"), Error);
  // Nothing is broken afterwards.
  CHECK(Tensor::full({3}, 2.0, DType::float32, kGpu).to_vector<double>() ==
        std::vector<double>{2, 2, 2});
}

TEST_CASE("a recorded step replays on new inputs, in memory of its own") {
  constexpr int64_t n = 50'021;  // a size that no test before this one records
  const Tensor x = Tensor::full({n}, 1.0, DType::float32, kGpu);
  const Tensor total = Tensor::zeros({n}, DType::float32, kGpu);
  const auto step = [&] {
    const Tensor twice = Tensor::empty({n}, DType::float32, kGpu);
    kernels::add(x, x, twice);
    kernels::add(total, twice, total);
  };
  const auto check_all = [](const Tensor& t, double value) {
    CHECK(difference(t, Tensor::full({n}, value)) == 0);
  };
  step();  // what it asks for is in the cache now
  const size_t before = memory_stats(kGpu).private_bytes;
  const StepGraph graph(kGpu, step);
  CHECK(memory_stats(kGpu).private_bytes > before);
  check_all(total, 2);  // recorded, not run
  graph.replay({});
  check_all(total, 4);
  x.fill(10.0);
  // Eager work between replays does not get the step's memory.
  Tensors others;
  for (int i = 0; i < 4; ++i) others.push_back(Tensor::full({n}, 7.0, DType::float32, kGpu));
  graph.replay({});
  check_all(total, 24);
  for (const Tensor& t : others) check_all(t, 7);
}

TEST_CASE("a step that reads a value is not recorded, and breaks nothing") {
  const Tensor x = Tensor::full({8}, 3.0, DType::float32, kGpu);
  const auto record = [](const std::function<void()>& step) {
    (void)std::make_unique<StepGraph>(kGpu, step);
  };
  CHECK_THROWS_WITH_AS(record([&] { (void)x.to_vector<double>(); }),
                       Contains("between host and device"), Error);
  CHECK(x.to_vector<double>()[7] == 3);
  CHECK_FALSE(StepGraph::available(kCpu));
  CHECK_THROWS_WITH_AS(StepGraph(kCpu, [] {}), Contains("cannot be recorded on cpu"), Error);
}

TEST_CASE("a step that was never run may be recorded: its memory is allocated meanwhile") {
  constexpr int64_t n = 777'767;  // a size that no other test asks for
  const Tensor x = Tensor::full({n}, 1.0, DType::float32, kGpu);
  Tensor y;
  const StepGraph graph(kGpu, [&] {
    const Tensor twice = Tensor::empty({n + 100'000}, DType::float32, kGpu).slice(0, 0, n);
    kernels::add(x, x, twice);
    y = Tensor::empty({n + 300'000}, DType::float32, kGpu).slice(0, 0, n);
    kernels::add(x, twice, y);
  });
  // Eager work does not get that memory.
  const Tensor other = Tensor::full({n + 100'000}, 7.0, DType::float32, kGpu);
  graph.replay({});
  CHECK(difference(y, Tensor::full({n}, 3.0)) == 0);
  CHECK(difference(other, Tensor::full({n + 100'000}, 7.0)) == 0);
}

TEST_CASE("a step for which the device has no memory is not recorded, and breaks nothing") {
  const Tensor x = Tensor::full({8}, 3.0, DType::float32, kGpu);
  (void)Tensor::empty({54321}, DType::float32, kGpu);  // a cached block, which must not be freed
  const auto record = [] {
    const StepGraph graph(kGpu,
                          [] { (void)Tensor::empty({int64_t{1} << 43}, DType::float32, kGpu); });
  };
  CHECK_THROWS_WITH_AS(record(), Contains("out of memory on cuda:0: 35184372088832 bytes asked"),
                       Error);
  CHECK(x.to_vector<double>()[7] == 3);
}

TEST_CASE("cuda: another current device is an Error, since CUDA would allocate and launch there") {
  int devices = 0;
  CUDA_CHECK(cudaGetDeviceCount(&devices));
  if (devices < 2) return;
  const Tensor x = Tensor::full({8}, 3.0, DType::float32, kGpu);
  const Tensor square = Tensor::full({4, 4}, 1.0, DType::float32, kGpu), product = square.clone();
  kernels::matmul(square, square, product, 1.0, 0.0);  // makes the cuBLAS handle
  [[maybe_unused]] const std::string device_0 = cuda_status().device;
  struct Current {
    explicit Current(int device) { CUDA_CHECK(cudaSetDevice(device)); }
    ~Current() { (void)cudaSetDevice(0); }
  };
  {
    const Current other(1);
    const auto expected = Contains("CUDA device 1 is current, but tensors are on device 0");
    CHECK_THROWS_WITH_AS((void)Tensor::empty({98765}, DType::float32, kGpu), expected, Error);
    CHECK_THROWS_WITH_AS(kernels::fill(x, 4.0), expected, Error);
    CHECK_THROWS_WITH_AS(kernels::matmul(square, square, product, 1.0, 0.0), expected, Error);
    CHECK_THROWS_WITH_AS((void)x.to_vector<double>(), expected, Error);
    CHECK_THROWS_WITH_AS(StepGraph(kGpu, [] {}), expected, Error);
    CHECK(cuda_status().usable);
#ifdef MACGRAD_CUDA_EMULATED
    CHECK(cuda_status().device != device_0);
#endif
  }
  CHECK(x.to_vector<double>()[7] == 3);
}

}  // namespace
}  // namespace macgrad::testing
