// Softmax, log-softmax and cross entropy of the CUDA backend against the CPU's in float64: row
// lengths for every way of sharing out a row, all dtypes, unaligned rows, infinities and NaN,
// ignored and wrong targets, and the same bits whatever the order of the threads.
#include <doctest/doctest.h>

#include <cmath>
#include <functional>
#include <limits>

#include "macgrad/core/error.h"
#include "macgrad/core/kernels/rows.h"
#include "macgrad/tests/cuda/device.h"
#include "macgrad/tests/cuda/rounding.h"
#include "macgrad/tests/op_cases.h"
#ifdef MACGRAD_CUDA_EMULATED
#include "macgrad/tests/cuda/emulation/machine.h"
#endif

namespace macgrad::testing {
namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();
const std::vector<DType> kFloating = {DType::float32, DType::float64, DType::bfloat16};

Tensor like(const Tensor& t) {
  return Tensor::empty(t.shape(), t.dtype(), t.device());
}

// Rows that start at an address which is no multiple of 16.
Tensor unaligned(const Tensor& t) {
  const Tensor memory = Tensor::empty({t.numel() + 1}, t.dtype());
  const Tensor view = memory.as_strided(t.shape(), t.strides(), 1);
  view.copy_from(t);
  return view;
}

// Softmax and log-softmax of x, and their gradients with cotangent c at y and z; absent: at those
// results.
Tensors softmaxes(const Tensor& x, const Tensor& c, const Tensor& y = {}, const Tensor& z = {}) {
  const Tensors r{like(x), like(x), like(x), like(x)};
  kernels::softmax_forward(x, r[0]);
  kernels::softmax_backward(y.defined() ? y : r[0], c, r[1]);
  kernels::log_softmax_forward(x, r[2]);
  kernels::log_softmax_backward(z.defined() ? z : r[2], c, r[3]);
  return r;
}

// loss, statistics, and the gradient at `at`; absent: at those statistics.
Tensors cross_entropies(const Tensor& x, const Tensor& target, const Tensor& g, double smoothing,
                        int64_t ignore, const Tensor& at = {}) {
  const Tensors r{like(g), Tensor::empty({g.size(0), 2}, g.dtype(), g.device()), like(x)};
  kernels::cross_entropy_forward(x, target, smoothing, ignore, r[0], r[1]);
  kernels::cross_entropy_backward({.logits = x,
                                   .target = target,
                                   .statistics = at.defined() ? at : r[1],
                                   .grad = g,
                                   .smoothing = smoothing,
                                   .ignore = ignore,
                                   .dlogits = r[2]});
  return r;
}

// Results with the rounding of each one's dtype; `terms`: columns.
void check_near(const Tensors& got, const Tensors& expected, int64_t terms) {
  REQUIRE(got.size() == expected.size());
  for (size_t i = 0; i < got.size(); ++i) {
    CAPTURE(i);
    CHECK(difference(got[i].to(kCpu), expected[i]) <= rounding_tolerance(got[i].dtype(), terms));
  }
}

// Backward kernels are given the same rounded results of the forward kernels as the reference.
void check_softmaxes(const Tensor& x, const Tensor& c) {
  const Tensors given = softmaxes(x, c);
  check_near(softmaxes(on_gpu(x), on_gpu(c), on_gpu(given[0]), on_gpu(given[2])),
             softmaxes(wide(x), wide(c), wide(given[0]), wide(given[2])), x.size(1));
}
void check_cross_entropies(const Tensor& x, const Tensor& target, const Tensor& g, double smoothing,
                           int64_t ignore) {
  const Tensor at = cross_entropies(x, target, g, smoothing, ignore)[1];
  check_near(cross_entropies(on_gpu(x), on_gpu(target), on_gpu(g), smoothing, ignore, on_gpu(at)),
             cross_entropies(wide(x), target, wide(g), smoothing, ignore, wide(at)), x.size(1));
}

// The largest logits of a row come late, so that a running maximum keeps rising.
Tensor logits(const Shape& shape, uint32_t draw, DType dtype) {
  Tensor x = exact_values(shape, draw, DType::float32);
  auto* p = x.data<float>();
  for (int64_t i = 0; i < x.numel(); ++i)
    p[i] += 8.0f * static_cast<float>(i % shape[1]) / static_cast<float>(shape[1]);
  return x.to(dtype);
}

TEST_CASE("cuda softmax and log-softmax: values and gradients at every row length") {
  for (const DType dtype : kFloating) {
    for (const Shape& shape :
         {Shape{0, 5}, Shape{3, 0}, Shape{1, 1}, Shape{37, 20}, Shape{9, 31}, Shape{5, 64},
          Shape{3, 100}, Shape{9, 128}, Shape{2, 250}, Shape{2, 512}, Shape{1, 1001},
          Shape{1, 1024}, Shape{2, 2056}, Shape{1, 5000}}) {
      CAPTURE(shape.text());
      CAPTURE(name(dtype));
      const Tensor x = logits(shape, 1, dtype), c = exact_values(shape, 2, dtype);
      check_softmaxes(x, c);
    }
    const Tensor x = unaligned(logits({3, 64}, 3, dtype)), c = exact_values({3, 64}, 4, dtype);
    check_softmaxes(x, c);
  }
}

TEST_CASE("cuda softmax: rows too long for shared memory are read again") {
  for (const Shape& shape : {Shape{1, 58200}, Shape{1, 30004}}) {
    const Tensor x = logits(shape, 5, DType::float32), c = exact_values(shape, 6, DType::float32);
    check_softmaxes(x, c);
  }
}

TEST_CASE("cuda softmax: infinities, NaN and large logits") {
  for (const int64_t n : {20, 1500}) {
    const Tensor x = exact_values({7, n}, 7, DType::float64);
    auto* p = x.data<double>();
    std::fill(p, p + n - 3, -kInf);                       // row 0: -inf first
    std::fill(p + n + 3, p + 2 * n, -kInf);               // row 1: -inf last
    std::fill(p + 2 * n, p + 3 * n, -kInf);               // row 2: nothing else
    p[3 * n + n / 2] = std::nan("");                      // row 3
    for (int64_t i = 0; i < n; ++i) p[4 * n + i] += 1e6;  // row 4
    p[5 * n + 2] = kInf;                                  // row 5
    for (const DType dtype : kFloating) {
      const Tensor in = x.to(dtype), c = exact_values({7, n}, 8, dtype);
      CAPTURE(name(dtype));
      check_softmaxes(in, c);
      const Tensor target = random_index({7}, n, 9),
                   g = exact_values({7}, 10, compute_dtype(dtype));
      check_cross_entropies(in, target, g, 0, -100);
    }
  }
}

TEST_CASE("cuda cross entropy: smoothing, ignored rows, every row length") {
  for (const DType dtype : kFloating) {
    for (const Shape& shape : {Shape{0, 5}, Shape{40, 20}, Shape{9, 33}, Shape{5, 128},
                               Shape{2, 1000}, Shape{2, 1001}, Shape{2, 5000}}) {
      for (const double smoothing : {0.0, 0.1}) {
        CAPTURE(shape.text());
        CAPTURE(name(dtype));
        CAPTURE(smoothing);
        const int64_t rows = shape[0], ignore = rows > 2 ? 1 : -100;
        const Tensor x = logits(shape, 11, dtype), target = random_index({rows}, shape[1], 12),
                     g = exact_values({rows}, 13, compute_dtype(dtype));
        if (rows > 2) {
          target.data<int64_t>()[2] = ignore;
          x.select(0, 2).fill(std::nan(""));  // of which nothing may be used
        }
        check_cross_entropies(x, target, g, smoothing, ignore);
      }
    }
  }
}

TEST_CASE("cuda cross entropy does not depend on a common offset of the logits") {
  for (const DType dtype : kFloating) {
    for (const int64_t n : {2, 33, 128, 5000}) {
      for (const double offset : {1e3, 1e8}) {
        for (const double smoothing : {0.0, 0.5, 1.0}) {
          CAPTURE(n);
          CAPTURE(offset);
          const auto count = static_cast<double>(n);
          const Tensor target = Tensor::from_vector(std::vector<int64_t>{1});
          const auto got =
              cross_entropies(on_gpu(Tensor::full({1, n}, offset, dtype)), on_gpu(target),
                              on_gpu(Tensor::full({1}, 1, compute_dtype(dtype))), smoothing, -100);
          Tensor dx = Tensor::full({1, n}, (1 - smoothing) / count, DType::float64);
          dx.slice(1, 1, 2).fill((1 - smoothing) * (1 / count - 1));
          check_near({got[0].to(kCpu), got[2].to(kCpu)},
                     {Tensor::full({1}, std::log(count), DType::float64), dx}, n);
        }
      }
    }
  }
}

TEST_CASE(
    "cuda cross entropy: a wrong target spoils its own row and is reported by the next read") {
  for (const int64_t n : {7, 1200}) {
    const Tensor x = logits({3, n}, 14, DType::float32), g = exact_values({3}, 15, DType::float32);
    const Tensor right = Tensor::from_vector(std::vector<int64_t>{2, 0, 5});
    const Tensor wrong = Tensor::from_vector(std::vector<int64_t>{2, n, 5});
    const auto got = cross_entropies(on_gpu(x), on_gpu(wrong), on_gpu(g), 0.1, -100);
    const auto expected = cross_entropies(wide(x), right, wide(g), 0.1, -100);
    CHECK_THROWS_WITH_AS(
        got[0].to(kCpu),
        fmt::format("[cross_entropy] index {} at place 1 is outside [0, {})", n, n).c_str(), Error);
    for (const int64_t row : {0, 2}) {
      for (const size_t i : {0, 2})
        CHECK(difference(got[i].to(kCpu).select(0, row), expected[i].select(0, row)) <=
              rounding_tolerance(DType::float32, n));
    }
    CHECK(std::isnan(got[0].at({1})));
    for (const double v : got[2].select(0, 1).to_vector<double>()) CHECK(std::isnan(v));
  }
}

#ifdef MACGRAD_CUDA_EMULATED
TEST_CASE("cuda softmax and cross entropy: the order of the threads does not matter") {
  const auto run = [] {
    std::vector<std::vector<double>> values;
    for (const int64_t n : {20, 300, 2100}) {
      const Tensor x = on_gpu(logits({2, n}, 16, DType::float32)),
                   c = on_gpu(exact_values({2, n}, 17, DType::float32)),
                   target = on_gpu(random_index({2}, n, 18)),
                   g = on_gpu(exact_values({2}, 19, DType::float32));
      for (const Tensors& results : {softmaxes(x, c), cross_entropies(x, target, g, 0.1, -100)})
        for (const Tensor& t : results) values.push_back(t.to_vector<double>());
    }
    return values;
  };
  const auto forward = run();
  for (const emulation::Order order : {emulation::Order::backward, emulation::Order::scattered}) {
    emulation::set_order(order);
    CHECK(run() == forward);
    emulation::set_order(emulation::Order::forward);
  }
}
#endif

}  // namespace
}  // namespace macgrad::testing
