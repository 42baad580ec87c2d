// Rows that say what the machine gives today (a copy, the GEMM library called directly), and matmul
// and linear beside them. Other rows are read against these, since a noisy machine moves both.
#include <fmt/format.h>

#include "macgrad/autograd/ops.h"
#include "macgrad/core/cpu/gemm.h"
#include "macgrad/core/kernels/arrays.h"
#include "macgrad/core/kernels/random.h"
#include "macgrad/experiments/bench/groups.h"

namespace macgrad::experiments {
namespace {

struct Place {
  BenchTable& table;
  const Precision& precision;

  Tensor empty(const Shape& shape) const {
    return Tensor::empty(shape, precision.dtype, table.place().device);
  }
  Tensor normal(const Shape& shape, uint32_t draw) const {
    const Tensor t = empty(shape);
    kernels::random_normal(t, DrawKey{7, 3, draw, 0});
    return t;
  }
  std::string named(const std::string& name) const { return row_name(name, precision); }
};

// c = a·b by one call of the GEMM library, past the slot: of cuBLAS on a GPU, on the CPU of
// oneDNN's sgemm, to which cpu::gemm in float32 hands its arguments as they are.
void direct(const BenchPlace& place, const Tensor& a, const Tensor& b, const Tensor& c) {
  if (c.device().type != DeviceType::cpu) return place.library_product(a, b, c);
  const bool ta = a.stride(1) != 1, tb = b.stride(1) != 1;
  cpu::gemm(ta, tb, a.size(0), b.size(1), a.size(1), 1.0F, a.data<float>(), a.stride(ta ? 1 : 0),
            b.data<float>(), b.stride(tb ? 1 : 0), 0.0F, c.data<float>(), c.stride(0));
}

double gflop_of(int64_t m, int64_t n, int64_t k) {
  return 2e-9 * static_cast<double>(m) * static_cast<double>(n) * static_cast<double>(k);
}

// Our op beside the library called directly on the same operands.
void compare_with_direct(const Place& at, const std::string& limit, const std::string& name,
                         const Tensor& a, const Tensor& b, const std::function<void()>& work) {
  const Tensor c = at.empty({a.size(0), b.size(1)});
  const double gflop = gflop_of(a.size(0), b.size(1), a.size(1));
  const std::string& precision = at.precision.name;
  at.table.run_against(
      {.name = at.named(limit), .precision = precision, .gflop = gflop},
      [&] { direct(at.table.place(), a, b, c); },
      {.name = at.named(name), .precision = precision, .gflop = gflop}, work);
}

void product(const Place& at, int64_t m, int64_t n, int64_t k) {
  const std::string shape = fmt::format("{}x{}x{}", m, n, k);
  if (!at.table.wants(at.named("limit/sgemm " + shape)) &&
      !at.table.wants(at.named("matmul " + shape)))
    return;
  const Tensor a = at.normal({m, k}, 0), b = at.normal({k, n}, 1);
  const Variable x(a), y(b);
  compare_with_direct(at, "limit/sgemm " + shape, "matmul " + shape, a, b,
                      [&] { (void)matmul(x, y); });
}

// x·Wᵀ + b beside the product alone.
void linear_layer(const Place& at, int64_t rows, int64_t in, int64_t out) {
  const Tensor x = at.normal({rows, in}, 0), w = at.normal({out, in}, 1), b = at.normal({out}, 2);
  const Variable vx(x), vw(w), vb(b);
  const std::string shape = fmt::format("{}x{} -> {}", rows, in, out);
  compare_with_direct(at, "limit/sgemm of linear " + shape, "linear " + shape, x, w.transpose(0, 1),
                      [&] { (void)linear(vx, vw, vb); });
}

// The weight gradient of a Linear(in, out) over `rows` rows: a transposed left operand.
void weight_gradient(const Place& at, int64_t rows, int64_t out, int64_t in) {
  const Tensor g = at.normal({rows, out}, 0), x = at.normal({rows, in}, 1);
  const Variable vg(g), vx(x);
  const std::string shape = fmt::format("{}x{}x{}", out, in, rows);
  compare_with_direct(at, "limit/sgemm transposed " + shape, "matmul transposed " + shape,
                      g.transpose(0, 1), x, [&] { (void)matmul(transpose(vg, 0, 1), vx); });
}

}  // namespace

void bench_limits(BenchTable& table) {
  const NoGrad off;
  const BenchPlace& place = table.place();
  const BenchSizes& sizes = place.sizes;
  if (table.wants(table.copy_limit())) {
    const Tensor from = Tensor::full({sizes.copy}, 1.5, DType::float32, place.device);
    const Tensor to = Tensor::empty({sizes.copy}, DType::float32, place.device);
    table.run({.name = table.copy_limit(), .gbyte = 2e-9 * static_cast<double>(from.bytes())},
              [&] { kernels::copy(from, to); });
  }
  for_each_precision(place, [&](const Precision& precision) {
    const Place at{table, precision};
    table.attempt(at.named("products"), [&] {
      product(at, sizes.square, sizes.square, sizes.square);
      for (const auto& [m, n, k] : sizes.products) product(at, m, n, k);
      const auto& [rows, out, in] = sizes.weight_gradient;
      weight_gradient(at, rows, out, in);
      linear_layer(at, sizes.linear[0], sizes.linear[1], sizes.linear[2]);
    });
  });
}

}  // namespace macgrad::experiments
