// Matrix products by cuBLAS. Transposed operands go in as they are; batch entries that lie evenly
// apart are one call. cuBLAS is column-major: a row-major product C = A·B is Cᵀ = Bᵀ·Aᵀ there.
#include <climits>
#include <vector>

#include "macgrad/core/kernels/arrays.h"
#include "macgrad/core/kernels/elementwise.h"
#include "macgrad/core/matrix_layout.h"
#include "macgrad/cuda/math_mode.h"
#include "macgrad/cuda/register.h"
#include "macgrad/cuda/runtime.h"

namespace macgrad::cuda {
namespace {

constexpr size_t kMostCalls = 4;  // before copies of the operands are cheaper

int blas_size(int64_t n) {
  require(n <= INT_MAX,
          "[matmul] cuBLAS takes sizes and strides up to {}, got {}; split the product", INT_MAX,
          n);
  return static_cast<int>(n);
}

cudaDataType data_type(DType dtype) {
  switch (dtype) {
    case DType::float32:
      return CUDA_R_32F;
    case DType::float64:
      return CUDA_R_64F;
    case DType::bfloat16:
      return CUDA_R_16BF;
    default:
      throw Error("[matmul] needs a floating dtype, got {}; cast first", name(dtype));
  }
}

cublasComputeType_t compute_type(DType dtype) {
  if (dtype == DType::float64) return CUBLAS_COMPUTE_64F;
  if (dtype == DType::bfloat16) return CUBLAS_COMPUTE_32F;
  switch (math_mode()) {
    case MathMode::tf32:
      return CUBLAS_COMPUTE_32F_FAST_TF32;
    case MathMode::bf16:
      return CUBLAS_COMPUTE_32F_FAST_16BF;
    case MathMode::exact:
      break;
  }
  return CUBLAS_COMPUTE_32F;
}

cublasOperation_t flag(bool transpose) {
  return transpose ? CUBLAS_OP_T : CUBLAS_OP_N;
}

// Batch entries: the last batch dimensions that lie evenly in all operands are one strided call,
// the others a loop over the starts.
struct Batches {
  int64_t count = 1;
  std::array<int64_t, 3> stride{};
  std::vector<std::array<int64_t, 3>> starts{{0, 0, 0}};
};

Batches batches_of(const std::array<const Tensor*, 3>& operands) {
  Batches batches;
  const Shape& shape = operands[2]->shape();
  int d = shape.rank() - 3;
  for (; d >= 0; --d) {
    if (shape[d] == 1) continue;
    std::array<int64_t, 3> s;
    bool even = true;
    for (size_t k = 0; k < 3; ++k) {
      s[k] = operands[k]->strides()[d];
      even = even && s[k] == batches.stride[k] * batches.count;
    }
    if (batches.count == 1) {
      batches.stride = s;
    } else if (!even) {
      break;
    }
    batches.count *= shape[d];
  }
  for (; d >= 0; --d) {
    std::vector<std::array<int64_t, 3>> next;
    for (int64_t i = 0; i < shape[d]; ++i)
      for (std::array<int64_t, 3> at : batches.starts) {
        for (size_t k = 0; k < 3; ++k) at[k] += i * operands[k]->strides()[d];
        next.push_back(at);
      }
    batches.starts = std::move(next);
  }
  return batches;
}

template <class Scalar>
void multiply(const Tensor& left, const Tensor& right, const Tensor& c, Scalar alpha, Scalar beta) {
  Tensor a = left, b = right;
  Batches batches = batches_of({&a, &b, &c});
  if (batches.starts.size() > kMostCalls) {
    // Heads seen through a permutation would be a call a sentence; packed they are one.
    a = a.contiguous();
    b = b.contiguous();
    batches = batches_of({&a, &b, &c});
  }
  const int64_t m = a.size(-2), k = a.size(-1), n = b.size(-1);
  const MatrixLayout la = matrix_layout(a, "left operand"), lb = matrix_layout(b, "right operand");
  const MatrixLayout lc = matrix_layout(c, "result");
  const cudaDataType type = data_type(a.dtype());
  const cublasComputeType_t compute = compute_type(a.dtype());
  const auto item = static_cast<int64_t>(item_size(a.dtype()));
  for (const auto& start : batches.starts) {
    const auto at = [&](const Tensor& t, size_t i) {
      return static_cast<char*>(t.raw()) + start[i] * item;
    };
    // The result read as column-major is Cᵀ (n, m); a transposed result is C (m, n) there.
    if (lc.transpose) {
      CUBLAS_CHECK(cublasGemmStridedBatchedEx(
          cublas(), flag(!la.transpose), flag(!lb.transpose), blas_size(m), blas_size(n),
          blas_size(k), &alpha, at(a, 0), type, blas_size(la.ld), batches.stride[0], at(b, 1), type,
          blas_size(lb.ld), batches.stride[1], &beta, at(c, 2), type, blas_size(lc.ld),
          batches.stride[2], blas_size(batches.count), compute, CUBLAS_GEMM_DEFAULT));
    } else {
      CUBLAS_CHECK(cublasGemmStridedBatchedEx(
          cublas(), flag(lb.transpose), flag(la.transpose), blas_size(n), blas_size(m),
          blas_size(k), &alpha, at(b, 1), type, blas_size(lb.ld), batches.stride[1], at(a, 0), type,
          blas_size(la.ld), batches.stride[0], &beta, at(c, 2), type, blas_size(lc.ld),
          batches.stride[2], blas_size(batches.count), compute, CUBLAS_GEMM_DEFAULT));
    }
  }
}

}  // namespace

void matmul(In a, In b, Out c, double alpha, double beta) {
  if (c->numel() == 0) return;
  if (a->size(-1) == 0) {
    // An empty sum leaves beta·c.
    if (beta == 0.0) {
      fill(c, 0.0);
    } else if (beta != 1.0) {
      mul(c.t, Tensor::full({}, beta, c->dtype(), c->device()).expand(c->shape()), c);
    }
    return;
  }
  if (a->dtype() == DType::float64) {
    multiply<double>(a, b, c, alpha, beta);
  } else {
    multiply<float>(a, b, c, static_cast<float>(alpha), static_cast<float>(beta));
  }
}

}  // namespace macgrad::cuda

void macgrad::cublas_product(const Tensor& a, const Tensor& b, const Tensor& c) {
  using namespace cuda;
  const MatrixLayout la = matrix_layout(a, "left operand"), lb = matrix_layout(b, "right operand");
  const cudaDataType type = data_type(a.dtype());
  const float one = 1.0F, zero = 0.0F;
  CUBLAS_CHECK(cublasGemmEx(cublas(), flag(lb.transpose), flag(la.transpose), blas_size(c.size(1)),
                            blas_size(c.size(0)), blas_size(a.size(1)), &one, b.raw(), type,
                            blas_size(lb.ld), a.raw(), type, blas_size(la.ld), &zero, c.raw(), type,
                            blas_size(c.stride(0)), cuda::compute_type(a.dtype()),
                            CUBLAS_GEMM_DEFAULT));
}
