// Rows that say what the machine gives today (a copy, the GEMM library called directly), and matmul
// and linear beside them. Other rows are read against these, since a noisy machine moves both.
#include <fmt/format.h>

#include "autograd/ops.h"
#include "core/cpu/gemm.h"
#include "core/kernels.h"
#include "experiments/bench/groups.h"

namespace macgrad::experiments {
namespace {

Tensor normal(const Shape& shape, uint32_t draw) {
  Tensor t = Tensor::empty(shape);
  kernels::random_normal(t, DrawKey{7, 3, draw, 0});
  return t;
}

// Our op beside the library called directly on the same operands.
void product(BenchTable& table, int64_t m, int64_t n, int64_t k, const char* limit_name = nullptr) {
  const Tensor a = normal({m, k}, 0), b = normal({k, n}, 1);
  const Tensor c = Tensor::empty({m, n});
  const double gflop =
      2e-9 * static_cast<double>(m) * static_cast<double>(n) * static_cast<double>(k);
  const std::string direct = limit_name ? limit_name : fmt::format("limit/sgemm {}x{}x{}", m, n, k);
  const Variable x(a), y(b);
  table.run_against(
      {.name = direct, .gflop = gflop},
      [&] {
        cpu::gemm(false, false, m, n, k, 1.0F, a.data<float>(), k, b.data<float>(), n, 0.0F,
                  c.data<float>(), n);
      },
      {.name = fmt::format("matmul {}x{}x{}", m, n, k), .gflop = gflop},
      [&] { (void)matmul(x, y); });
}

// x·Wᵀ + b beside the product alone.
void linear_layer(BenchTable& table, int64_t rows, int64_t in, int64_t out) {
  const Tensor x = normal({rows, in}, 0), w = normal({out, in}, 1), b = normal({out}, 2);
  const Tensor c = Tensor::empty({rows, out});
  const Variable vx(x), vw(w), vb(b);
  const double gflop =
      2e-9 * static_cast<double>(rows) * static_cast<double>(out) * static_cast<double>(in);
  const std::string shape = fmt::format("{}x{} -> {}", rows, in, out);
  table.run_against(
      {.name = "limit/sgemm of linear " + shape, .gflop = gflop},
      [&] {
        cpu::gemm(false, true, rows, out, in, 1.0F, x.data<float>(), in, w.data<float>(), in, 0.0F,
                  c.data<float>(), out);
      },
      {.name = "linear " + shape, .gflop = gflop}, [&] { (void)linear(vx, vw, vb); });
}

// The weight gradient of a Linear(in, out) over `rows` rows: a transposed left operand.
void weight_gradient(BenchTable& table, int64_t rows, int64_t out, int64_t in) {
  const Tensor g = normal({rows, out}, 0), x = normal({rows, in}, 1);
  const Tensor c = Tensor::empty({out, in});
  const double gflop =
      2e-9 * static_cast<double>(rows) * static_cast<double>(out) * static_cast<double>(in);
  const std::string direct = fmt::format("limit/sgemm transposed {}x{}x{}", out, in, rows);
  const Variable vg(g), vx(x);
  table.run_against(
      {.name = direct, .gflop = gflop},
      [&] {
        cpu::gemm(true, false, out, in, rows, 1.0F, g.data<float>(), out, x.data<float>(), in, 0.0F,
                  c.data<float>(), in);
      },
      {.name = fmt::format("matmul transposed {}x{}x{}", out, in, rows), .gflop = gflop},
      [&] { (void)matmul(transpose(vg, 0, 1), vx); });
}

}  // namespace

void bench_limits(BenchTable& table) {
  const NoGrad off;
  const Tensor from = normal({1 << 24}, 0), to = Tensor::empty({1 << 24});
  table.run({.name = kCopyLimit, .gbyte = 2e-9 * static_cast<double>(from.bytes())},
            [&] { kernels::copy(from, to); });
  product(table, 1024, 1024, 1024, kGemmLimit);
  product(table, 2560, 256, 256);
  product(table, 2560, 1024, 256);
  product(table, 2560, 10000, 256);
  weight_gradient(table, 2560, 1024, 256);
  linear_layer(table, 2560, 256, 1024);
}

}  // namespace macgrad::experiments
