// Layer norm of the CUDA backend against the CPU's in float64: row lengths for every way of sharing
// out a row, all dtypes, chunks of rows, rows too long for shared memory, and the same bits
// whatever the order of the threads.
#include <doctest/doctest.h>

#include <algorithm>

#include "macgrad/core/kernels/rows.h"
#include "macgrad/cuda/row_chunks.h"
#include "macgrad/tests/cuda/device.h"
#include "macgrad/tests/cuda/rounding.h"
#include "macgrad/tests/op_cases.h"
#ifdef MACGRAD_CUDA_EMULATED
#include "macgrad/tests/cuda/emulation/machine.h"
#endif

namespace macgrad::testing {
namespace {

const std::vector<DType> kFloating = {DType::float32, DType::float64, DType::bfloat16};

struct Operands {
  Tensor x, weight, bias, grad;
};

Operands operands(const Shape& shape, DType dtype) {
  return {exact_values(shape, 1, dtype), exact_values({shape[1]}, 2, dtype),
          exact_values({shape[1]}, 3, dtype), exact_values(shape, 4, dtype)};
}
Operands on_gpu(const Operands& o) {
  return {testing::on_gpu(o.x), testing::on_gpu(o.weight), testing::on_gpu(o.bias),
          testing::on_gpu(o.grad)};
}

// y, mean, rstd, dx, dweight, dbias
Tensors run(const Operands& o, double eps = 1e-5) {
  const auto like = [](const Tensor& t) { return Tensor::empty(t.shape(), t.dtype(), t.device()); };
  const auto statistic = [&](const Shape& shape) {
    return Tensor::empty(shape, compute_dtype(o.x.dtype()), o.x.device());
  };
  const int64_t rows = o.x.size(0);
  const Tensors r{like(o.x), statistic({rows, 2}), statistic({rows}),
                  like(o.x), like(o.weight),       like(o.bias)};
  kernels::layer_norm_forward({.x = o.x,
                               .weight = o.weight,
                               .bias = o.bias,
                               .eps = eps,
                               .y = r[0],
                               .mean = r[1],
                               .rstd = r[2]});
  kernels::layer_norm_backward({.x = o.x,
                                .weight = o.weight,
                                .mean = r[1],
                                .rstd = r[2],
                                .grad = o.grad,
                                .dx = r[3],
                                .dweight = r[4],
                                .dbias = r[5]});
  return r;
}

void check_against_float64(const Operands& o) {
  const Tensors expected = run({wide(o.x), wide(o.weight), wide(o.bias), wide(o.grad)});
  const Tensors got = run(on_gpu(o)), on_cpu = run(o);
  for (size_t i = 0; i < got.size(); ++i) {
    CAPTURE(i);
    // Gradients of weight and bias are sums over rows.
    const double tolerance = rounding_tolerance(got[i].dtype(), std::max(o.x.size(0), o.x.size(1)));
    CHECK(difference(got[i].to(kCpu), expected[i]) <= tolerance);
    CHECK(difference(on_cpu[i], expected[i]) <= tolerance);
  }
}

TEST_CASE("row_chunks covers every row once, keeps the card busy and its partial results few") {
  for (const int64_t rows : {0, 1, 7, 8, 500, 8192, 70000, 3000000}) {
    for (const int64_t in_hand : {1, 8, 32}) {
      for (const int64_t groups : {1, 8, 1000}) {
        const cuda::RowChunks cut = cuda::row_chunks(rows, in_hand, groups, 132, 4);
        CAPTURE(rows);
        CAPTURE(in_hand);
        CAPTURE(groups);
        CHECK(cut.chunks * cut.rows >= rows);
        CHECK((cut.chunks - 1) * cut.rows < std::max<int64_t>(rows, 1));
        CHECK(cut.rows % in_hand == (rows > 0 ? 0 : 1 % in_hand));
        // No more blocks than are wanted, and no idle multiprocessor that had a row to take.
        CHECK(cut.chunks * groups <= std::max<int64_t>(132 * 4, groups));
        const int64_t most = (rows + in_hand - 1) / in_hand * groups;
        CHECK(2 * cut.chunks * groups >= std::min<int64_t>(most, 132));
      }
    }
  }
}

TEST_CASE("cuda layer norm: values and gradients at every row length and dtype") {
  for (const DType dtype : kFloating) {
    for (const Shape& shape : {Shape{0, 4}, Shape{2, 0}, Shape{3, 1}, Shape{70, 20}, Shape{40, 64},
                               Shape{35, 63}, Shape{19, 128}, Shape{5, 255}, Shape{20, 512},
                               Shape{6, 1024}, Shape{5, 1001}, Shape{6, 2304}}) {
      CAPTURE(shape.text());
      CAPTURE(name(dtype));
      check_against_float64(operands(shape, dtype));
    }
  }
}

TEST_CASE("cuda layer norm of equal values is the bias") {
  for (const DType dtype : kFloating) {
    for (const int64_t n : {3, 7, 64, 1001, 2056}) {
      for (const double eps : {0.0, 1e-13}) {
        CAPTURE(n);
        Operands o = operands({2, n}, dtype);
        o.x.fill(12.7);
        const Tensors got = run(on_gpu(o), eps);
        for (const int64_t row : {0, 1})
          CHECK(difference(got[0].to(kCpu).select(0, row), o.bias) == 0);
        CHECK(got[4].to(kCpu).to_vector<double>() ==
              std::vector<double>(static_cast<size_t>(n), 0.0));
      }
    }
  }
}

TEST_CASE("cuda layer norm: sums for weight and bias over many chunks") {
  check_against_float64(operands({700, 12}, DType::float32));
  check_against_float64(operands({300, 36}, DType::bfloat16));
}

TEST_CASE("cuda layer norm: rows and sums too long for shared memory") {
  check_against_float64(operands({2, 20000}, DType::float32));  // rows fit, sums do not
  check_against_float64(operands({2, 30001}, DType::float32));  // neither
}

TEST_CASE("cuda layer norm: a large common offset costs no digits") {
  const Tensor x =
      Tensor::from_vector(std::vector<double>{1e8 + 1, 1e8 - 1, 1e8 + 1, 1e8 - 1}, Shape{1, 4});
  const Tensor one = Tensor::full({4}, 1, DType::float64),
               zero = Tensor::zeros({4}, DType::float64);
  const Tensor y = run(on_gpu(Operands{x, one, zero, x}), 0)[0].to(kCpu);
  CHECK(difference(y, Tensor::from_vector(std::vector<double>{1, -1, 1, -1}, Shape{1, 4})) <=
        1e-12);
}

#ifdef MACGRAD_CUDA_EMULATED
TEST_CASE("cuda layer norm: the order of the threads does not matter") {
  for (const Shape& shape : {Shape{70, 20}, Shape{20, 200}, Shape{5, 1500}}) {
    const Operands o = on_gpu(operands(shape, DType::float32));
    const Tensors forward = run(o);
    for (const emulation::Order order : {emulation::Order::backward, emulation::Order::scattered}) {
      emulation::set_order(order);
      const Tensors other = run(o);
      emulation::set_order(emulation::Order::forward);
      for (size_t i = 0; i < other.size(); ++i)
        CHECK(other[i].to_vector<double>() == forward[i].to_vector<double>());
    }
  }
}
#endif

}  // namespace
}  // namespace macgrad::testing
