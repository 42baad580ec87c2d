// Matrix products of the CPU backend: float32 by oneDNN, float64 by CBLAS (core/cpu/gemm.cpp).
#pragma once

#include <cstdint>

namespace macgrad::cpu {

/// C = alpha·op(A)·op(B) + beta·C, row-major; op transposes when the flag is set. A is M×K (or K×M
/// when transposed) with leading dimension lda, and so on. K = 0 gives beta·C; beta = 0 ignores
/// what C held, NaN included. Inside a parallel region it runs on the calling thread alone.
void gemm(bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k, float alpha,
          const float* a, int64_t lda, const float* b, int64_t ldb, float beta, float* c,
          int64_t ldc);
void gemm(bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k, double alpha,
          const double* a, int64_t lda, const double* b, int64_t ldb, double beta, double* c,
          int64_t ldc);

}  // namespace macgrad::cpu
