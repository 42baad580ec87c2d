// kernels::matmul on small and degenerate shapes, every layout, against the definition.
#include <doctest/doctest.h>

#include <cmath>

#include "macgrad/core/kernels/arrays.h"
#include "macgrad/core/kernels/random.h"

namespace macgrad {
namespace {

// (batches, rows, columns), stored transposed if asked, with `gap` unused elements between rows.
Tensor operand(int64_t batches, int64_t rows, int64_t columns, bool transposed, int64_t gap,
               DType dtype, uint32_t draw) {
  const int64_t r = transposed ? columns : rows, c = transposed ? rows : columns;
  const Tensor wide = Tensor::empty({batches, r, c + gap}, DType::float64);
  kernels::random_normal(wide, {3, 1, draw, 0});
  const Tensor cut = wide.to(dtype).slice(2, 0, c);
  return transposed ? cut.transpose(1, 2) : cut;
}

}  // namespace

TEST_CASE("matmul: single rows, columns and inner places, in every layout") {
  for (const DType dtype : {DType::float32, DType::float64}) {
    for (const int64_t m : {1, 2, 33}) {
      for (const int64_t n : {1, 33}) {
        for (const int64_t k : {0, 1, 5, 700}) {
          for (int layout = 0; layout < 16; ++layout) {
            const bool ta = layout & 1, tb = layout & 2, tc = layout & 4;
            const int64_t gap = layout & 8 ? 3 : 0;
            CAPTURE(m);
            CAPTURE(n);
            CAPTURE(k);
            CAPTURE(layout);
            const Tensor a = operand(6, m, k, ta, gap, dtype, 1);
            const Tensor b = operand(6, k, n, tb, gap, dtype, 2);
            for (const double beta : {0.0, 1.0, 0.5}) {
              const Tensor c = operand(6, m, n, tc, gap, dtype, 3);
              const auto before = c.to_vector<double>();
              // With beta 0 what was there does not matter.
              if (beta == 0.0) c.fill(std::nan(""));
              kernels::matmul(a, b, c, -2.0, beta);
              const auto x = a.to_vector<double>(), y = b.to_vector<double>();
              const auto got = c.to_vector<double>();
              double worst = 0;
              for (int64_t i = 0; i < 6 * m * n; ++i) {
                const int64_t batch = i / (m * n), row = i / n % m, column = i % n;
                double sum = beta == 0.0 ? 0.0 : beta * before[static_cast<size_t>(i)];
                for (int64_t l = 0; l < k; ++l)
                  sum -= 2.0 * x[static_cast<size_t>((batch * m + row) * k + l)] *
                         y[static_cast<size_t>((batch * k + l) * n + column)];
                const double d = std::abs(sum - got[static_cast<size_t>(i)]);
                worst = std::isnan(d) ? INFINITY : std::max(worst, d);
              }
              CHECK(worst < (dtype == DType::float32 ? 2e-4 : 1e-12));
            }
          }
        }
      }
    }
  }
}

}  // namespace macgrad
