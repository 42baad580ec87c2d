// Matrix products: float32 by oneDNN's dnnl_sgemm, float64 by CBLAS (oneDNN has no float64). On the
// reference machine oneDNN is twice as fast as OpenBLAS in float32 and keeps its rate down to
// 64×64×64 (CONTRIBUTING.md). Without oneDNN, CBLAS serves both. bfloat16 operands are converted to
// float32 a call.

#include "macgrad/core/cpu/gemm.h"

#include <cblas.h>
#include <omp.h>

#include <algorithm>
#include <climits>
#include <string>
#include <type_traits>
#include <vector>

#include "macgrad/core/cpu/parallel.h"
#include "macgrad/core/kernels/arrays.h"
#include "macgrad/core/matrix_layout.h"

#ifndef MACGRAD_WITH_ONEDNN
#define MACGRAD_WITH_ONEDNN 0
#endif
#if MACGRAD_WITH_ONEDNN
#include <dnnl.h>
#endif

namespace macgrad::cpu {
namespace {

// CBLAS counts in int.
int blas_size(int64_t n) {
  require(n <= INT_MAX,
          "[matmul] CBLAS takes sizes and strides up to {}, got {}; split the product", INT_MAX, n);
  return static_cast<int>(n);
}

CBLAS_TRANSPOSE blas_flag(bool transpose) {
  return transpose ? CblasTrans : CblasNoTrans;
}

// op(A)·op(B) is empty in K: C = beta·C.
template <class T>
void scale_only(int64_t m, int64_t n, T beta, T* c, int64_t ldc) {
  for (int64_t i = 0; i < m; ++i)
    for (int64_t j = 0; j < n; ++j) c[i * ldc + j] = beta == T(0) ? T(0) : beta * c[i * ldc + j];
}

}  // namespace

void gemm(bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k, float alpha,
          const float* a, int64_t lda, const float* b, int64_t ldb, float beta, float* c,
          int64_t ldc) {
  if (m == 0 || n == 0) return;
  if (k == 0) return scale_only(m, n, beta, c, ldc);
#if MACGRAD_WITH_ONEDNN
  const dnnl_status_t status = dnnl_sgemm(transpose_a ? 'T' : 'N', transpose_b ? 'T' : 'N', m, n, k,
                                          alpha, a, lda, b, ldb, beta, c, ldc);
  require(status == dnnl_success, "[matmul] dnnl_sgemm failed with status {} at m={} n={} k={}",
          static_cast<int>(status), m, n, k);
#else
  cblas_sgemm(CblasRowMajor, blas_flag(transpose_a), blas_flag(transpose_b), blas_size(m),
              blas_size(n), blas_size(k), alpha, a, blas_size(lda), b, blas_size(ldb), beta, c,
              blas_size(ldc));
#endif
}

void gemm(bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k, double alpha,
          const double* a, int64_t lda, const double* b, int64_t ldb, double beta, double* c,
          int64_t ldc) {
  if (m == 0 || n == 0) return;
  if (k == 0) return scale_only(m, n, beta, c, ldc);
  cblas_dgemm(CblasRowMajor, blas_flag(transpose_a), blas_flag(transpose_b), blas_size(m),
              blas_size(n), blas_size(k), alpha, a, blas_size(lda), b, blas_size(ldb), beta, c,
              blas_size(ldc));
}

namespace {

// Offsets of every batch entry of `t`, in row-major order of the batch dimensions.
std::vector<int64_t> batch_offsets(const Tensor& t, int64_t batches) {
  std::vector<int64_t> offsets(static_cast<size_t>(batches));
  for (int64_t b = 0; b < batches; ++b) {
    int64_t rest = b, at = 0;
    for (int d = t.rank() - 3; d >= 0; --d) {
      at += rest % t.shape()[d] * t.strides()[d];
      rest /= t.shape()[d];
    }
    offsets[static_cast<size_t>(b)] = at;
  }
  return offsets;
}

// An operand whose stored rows run along K and lie a multiple of 2 KiB apart maps all its rows to a
// few cache sets, and the library's packing then misses on nearly every line: 1024×256×2560 with a
// transposed left operand ran at 70 GFLOP/s, with 16 floats between the rows at 155 (AVX2, two
// threads; rows 2 KiB apart: 90 against 140). Such an operand is read through a padded copy of
// kPaddedRows rows at a time, which stays in cache, and the products add up.
constexpr int64_t kPaddedRows = 512;
constexpr int64_t kPadding = 16;
constexpr int64_t kWorthPadding = 128;  // least number of times a copied element is used

bool rows_collide(int64_t rows, int64_t ld, int64_t uses) {
  return ld * static_cast<int64_t>(sizeof(float)) % 2048 == 0 && rows >= 64 &&
         uses >= kWorthPadding && !omp_in_parallel();
}

const float* copy_padded(const float* x, int64_t rows, int64_t columns, int64_t ld,
                         const Tensor& buffer) {
  const int64_t out_ld = buffer.size(1);
  float* out = buffer.data<float>();
  parallel_blocks(rows, std::max<int64_t>(1, kElementGrain / columns),
                  [&](int64_t first, int64_t last) {
                    for (int64_t i = first; i < last; ++i)
                      std::copy_n(x + i * ld, columns, out + i * out_ld);
                  });
  return out;
}

// A row times a small matrix, or a small outer product, costs less than the library's call:
// decoding has thousands of them a step. False: neither.
constexpr int64_t kSmallProduct = 1 << 14;

template <class T>
bool vector_product(bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k, T alpha,
                    const T* a, int64_t lda, const T* b, int64_t ldb, T beta, T* c, int64_t ldc) {
  const bool outer = k == 1, row = m == 1 && !transpose_b;
  if ((!outer && !row) || k == 0 || m * n * k > kSmallProduct) return false;
  // Strides of a along its only long dimension, and of b along n.
  const int64_t step_a = outer ? (transpose_a ? 1 : lda) : (transpose_a ? lda : 1);
  const int64_t step_b = transpose_b ? ldb : 1;
  if (step_b != 1) return false;
  for (int64_t i = 0; i < m; ++i) {
    T* out = c + i * ldc;
    if (beta == T(0)) {
      std::fill_n(out, n, T(0));
    } else if (beta != T(1)) {
      for (int64_t j = 0; j < n; ++j) out[j] *= beta;
    }
    for (int64_t l = 0; l < k; ++l) {
      const T factor = alpha * a[(outer ? i : l) * step_a];
      const T* from = b + l * ldb;
#pragma omp simd
      for (int64_t j = 0; j < n; ++j) out[j] += factor * from[j];
    }
  }
  return true;
}

template <class T>
void product(bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k, T alpha,
             const T* a, int64_t lda, const T* b, int64_t ldb, T beta, T* c, int64_t ldc) {
  if (vector_product(transpose_a, transpose_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc))
    return;
  if constexpr (std::is_same_v<T, float> && MACGRAD_WITH_ONEDNN) {
    const bool pad_a = transpose_a && rows_collide(k, lda, n);
    const bool pad_b = !transpose_b && rows_collide(k, ldb, m);
    if (pad_a || pad_b) {
      const int64_t rows = std::min(k, kPaddedRows);
      const Tensor buffer_a = pad_a ? Tensor::empty({rows, m + kPadding}) : Tensor();
      const Tensor buffer_b = pad_b ? Tensor::empty({rows, n + kPadding}) : Tensor();
      for (int64_t at = 0; at < k; at += rows) {
        const int64_t part = std::min(rows, k - at);
        const float* pa = transpose_a ? a + at * lda : a + at;
        const float* pb = transpose_b ? b + at : b + at * ldb;
        int64_t la = lda, lb = ldb;
        if (pad_a) pa = copy_padded(pa, part, m, lda, buffer_a), la = buffer_a.size(1);
        if (pad_b) pb = copy_padded(pb, part, n, ldb, buffer_b), lb = buffer_b.size(1);
        gemm(transpose_a, transpose_b, m, n, part, alpha, pa, la, pb, lb, at == 0 ? beta : 1.0F, c,
             ldc);
      }
      return;
    }
  }
  gemm(transpose_a, transpose_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}

template <class T>
void matmul_typed(const Tensor& a, const Tensor& b, const Tensor& c, T alpha, T beta) {
  const int64_t m = a.size(-2), k = a.size(-1), n = b.size(-1);
  int64_t batches = 1;
  for (int d = 0; d < c.rank() - 2; ++d) batches *= c.shape()[d];
  if (batches == 0) return;
  const MatrixLayout la = matrix_layout(a, "left operand");
  const MatrixLayout lb = matrix_layout(b, "right operand");
  const MatrixLayout lc = matrix_layout(c, "result");
  // Checked here as well: an error must not leave a thread of the loop below.
  if constexpr (std::is_same_v<T, double> || !MACGRAD_WITH_ONEDNN)
    for (const int64_t size : {m, n, k, la.ld, lb.ld, lc.ld}) (void)blas_size(size);
  const T* pa = a.data<T>();
  const T* pb = b.data<T>();
  T* pc = c.data<T>();
  const auto oa = batch_offsets(a, batches);
  const auto ob = batch_offsets(b, batches);
  const auto oc = batch_offsets(c, batches);
  const auto one = [&](int64_t i) {
    const auto at = static_cast<size_t>(i);
    if (lc.transpose) {
      // Cᵀ = op(B)ᵀ·op(A)ᵀ.
      product(!lb.transpose, !la.transpose, n, m, k, alpha, pb + ob[at], lb.ld, pa + oa[at], la.ld,
              beta, pc + oc[at], lc.ld);
    } else {
      product(la.transpose, lb.transpose, m, n, k, alpha, pa + oa[at], la.ld, pb + ob[at], lb.ld,
              beta, pc + oc[at], lc.ld);
    }
  };
  // Many small products go side by side on one thread each; few large ones use all threads.
  const bool side_by_side = batches >= 2 * omp_get_max_threads();
  if (!side_by_side) {
    for (int64_t i = 0; i < batches; ++i) one(i);
    return;
  }
  parallel_blocks(batches, std::max<int64_t>(1, (1 << 18) / std::max<int64_t>(1, m * n * k)),
                  [&](int64_t first, int64_t last) {
                    for (int64_t i = first; i < last; ++i) one(i);
                  });
}

}  // namespace

void matmul(In a, In b, Out c, double alpha, double beta) {
  switch (a->dtype()) {
    case DType::float32:
      return matmul_typed<float>(a, b, c, static_cast<float>(alpha), static_cast<float>(beta));
    case DType::float64:
      return matmul_typed<double>(a, b, c, alpha, beta);
    case DType::bfloat16: {
      const Tensor result = beta == 0.0 ? Tensor::empty(c->shape()) : c->to(DType::float32);
      matmul_typed<float>(a->to(DType::float32), b->to(DType::float32), result,
                          static_cast<float>(alpha), static_cast<float>(beta));
      c->copy_from(result);
      return;
    }
    default:
      throw Error("[matmul] needs a floating dtype, got {}; cast first", name(a->dtype()));
  }
}

}  // namespace macgrad::cpu
