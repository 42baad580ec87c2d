// Products with signs by table lookup (core/cpu/sign_tables.h) against their sums, and RMFA with
// them against RMFA without.
#include "macgrad/core/cpu/sign_tables.h"

#include <doctest/doctest.h>

#include <cmath>
#include <vector>

#include "macgrad/core/kernels/rmfa.h"
#include "macgrad/tests/op_cases.h"

namespace macgrad::testing {
namespace {

namespace signs = cpu::signs;

constexpr float kUntouched = 1e30f;

TEST_CASE("products with signs by table lookup equal their sums") {
  for (const int64_t K : {1, 3, 4, 17, 64, 113})
    for (const int64_t C : {1, 7, 8, 61})
      for (const int64_t n : {1, 15, 16, 20, 128}) {
        CAPTURE(K);
        CAPTURE(C);
        CAPTURE(n);
        const auto s = exact_signs({K, C}, 1, DType::float32).to_vector<float>();
        const auto x = exact_values({n, K}, 2, DType::float32).to_vector<float>();
        const int64_t padded = (n + signs::kTokens - 1) / signs::kTokens * signs::kTokens;
        std::vector<signs::Code> columns(static_cast<size_t>(C * signs::groups_of(K)));
        std::vector<signs::Code> rows(static_cast<size_t>(K * signs::groups_of(C)));
        signs::encode(s.data(), C, 1, K, C, columns.data());
        signs::encode(s.data(), 1, C, C, K, rows.data());
        std::vector<float> scratch(static_cast<size_t>(signs::scratch_size(K)));

        // p = (x signs)ᵀ, with a column after the padding.
        std::vector<float> p(static_cast<size_t>(C * (padded + 1)), kUntouched);
        signs::multiply_rows(columns.data(), K, C, n, x.data(), K, p.data(), padded + 1,
                             scratch.data());
        for (int64_t c = 0; c < C; ++c) {
          const float* row = p.data() + c * (padded + 1);
          for (int64_t t = 0; t < n; ++t) {
            double sum = 0, size = 1;
            for (int64_t k = 0; k < K; ++k) {
              sum += x[t * K + k] * s[k * C + c];
              size += std::abs(x[t * K + k]);
            }
            CHECK(std::abs(sum - row[t]) <= 1e-6 * size);
          }
          CHECK(row[padded] == kUntouched);
        }

        // y = (signs p)ᵀ, with a column after the last.
        std::vector<float> y(static_cast<size_t>(n * (K + 1)), kUntouched);
        signs::multiply_to_rows(rows.data(), C, K, n, p.data(), padded + 1, y.data(), K + 1,
                                scratch.data());
        for (int64_t t = 0; t < n; ++t) {
          for (int64_t k = 0; k < K; ++k) {
            double sum = 0, size = 1;
            for (int64_t c = 0; c < C; ++c) {
              sum += p[c * (padded + 1) + t] * s[k * C + c];
              size += std::abs(p[c * (padded + 1) + t]);
            }
            CHECK(std::abs(sum - y[t * (K + 1) + k]) <= 1e-6 * size);
          }
          CHECK(y[t * (K + 1) + K] == kUntouched);
        }
      }
}

struct Results {
  Tensor out, dq, dk, dv;
};

Results run(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& omega, bool causal) {
  const Tensor weight = exact_values({9}, 5, DType::float32), none;
  RmfaArgs args;
  args.levels = {9, 5, 2};
  args.constant = 4.0;
  args.floor = 1.0;  // far from denominators of 0
  args.causal = causal;
  const RmfaOperands in{.q = q,
                        .k = k,
                        .v = v,
                        .key_valid = none,
                        .query_valid = none,
                        .omega = omega,
                        .weight = weight,
                        .args = args};
  const auto like = [](const Tensor& t) { return Tensor::empty(t.shape(), t.dtype()); };
  const Results r{like(q), like(q), like(k), like(v)};
  const Tensor den = Tensor::empty(q.shape().erased(3));
  kernels::rmfa_forward(
      {.in = in, .out = r.out, .den = den, .stats = Tensor::empty({4}, DType::float64)});
  kernels::rmfa_backward(
      {.in = in, .out = r.out, .den = den, .grad = v, .dq = r.dq, .dk = r.dk, .dv = r.dv});
  return r;
}

// Dimension 0 times 2 in Ω and times 1/2 in q and k: the same projections, by the library's
// product.
TEST_CASE(
    "rmfa with signs equals rmfa with the same projections of a matrix that is not of signs") {
  for (const bool causal : {false, true})
    for (const bool per_head : {false, true}) {
      CAPTURE(causal);
      CAPTURE(per_head);
      const Shape shape = per_head ? Shape{3, 12, 16} : Shape{12, 16};
      const Tensor omega = exact_signs(shape, 1, DType::float32), other = omega.clone();
      const Tensor q = exact_values({2, 3, 150, 12}, 2, DType::float32),
                   k = exact_values({2, 3, 150, 12}, 3, DType::float32),
                   v = exact_values({2, 3, 150, 12}, 4, DType::float32);
      const auto scaled = [](const Tensor& t, int dim, double factor) {
        const Tensor y = t.clone(), first = y.slice(dim, 0, 1);
        std::vector<double> values = first.to_vector<double>();
        for (double& x : values) x *= factor;
        first.copy_from(Tensor::from_values(values, first.shape(), t.dtype()));
        return y;
      };
      const Results by_tables = run(q, k, v, omega, causal);
      const Results by_library = run(scaled(q, 3, 0.5), scaled(k, 3, 0.5), v,
                                     scaled(other, omega.rank() - 2, 2.0), causal);
      const auto agree = [](const Tensor& a, const Tensor& b) {
        const double largest = max_abs_difference(b, Tensor::zeros(b.shape()));
        CHECK(largest > 0.01);
        CHECK(max_abs_difference(a, b) < 2e-6 * std::max(1.0, largest));
      };
      agree(by_tables.out, by_library.out);
      agree(by_tables.dq, scaled(by_library.dq, 3, 0.5));
      agree(by_tables.dk, scaled(by_library.dk, 3, 0.5));
      agree(by_tables.dv, by_library.dv);
    }
}

}  // namespace
}  // namespace macgrad::testing
