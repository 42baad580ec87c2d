// cuBLAS of the emulated card. Products round their operands as the requested compute type does and
// sum in order of k.
#include <cstring>

#include "cublas_v2.h"
#include "cuda_runtime.h"
#include "macgrad/core/dtype.h"

struct PlayedCublas {
  cudaStream_t stream = nullptr;
  cublasMath_t math = CUBLAS_DEFAULT_MATH;
};

const char* cublasGetStatusString(cublasStatus_t status) {
  return status == CUBLAS_STATUS_SUCCESS ? "success" : "invalid value";
}
const char* cublasGetStatusName(cublasStatus_t status) {
  return status == CUBLAS_STATUS_SUCCESS ? "CUBLAS_STATUS_SUCCESS" : "CUBLAS_STATUS_INVALID_VALUE";
}
cublasStatus_t cublasCreate(cublasHandle_t* handle) {
  *handle = new PlayedCublas;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasDestroy(cublasHandle_t handle) {
  delete handle;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasSetStream(cublasHandle_t handle, cudaStream_t stream) {
  handle->stream = stream;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasSetWorkspace(cublasHandle_t, void* workspace, size_t) {
  return emulation::is_device(workspace) ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_INVALID_VALUE;
}
cublasStatus_t cublasGetVersion(cublasHandle_t, int* version) {
  *version = 0;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasSetMathMode(cublasHandle_t handle, cublasMath_t mode) {
  handle->math = mode;
  return CUBLAS_STATUS_SUCCESS;
}

namespace {

using macgrad::bfloat16;

float round_tf32(float x) {
  uint32_t bits = __float_as_uint(x);
  bits = (bits + 0x1000u) & 0xffffe000u;  // to nearest, 10 bits of mantissa
  return std::isfinite(x) ? __uint_as_float(bits) : x;
}

template <class C>
C element(const void* p, cudaDataType type, long long i, cublasComputeType_t compute,
          cublasMath_t math) {
  if (type == CUDA_R_64F) return static_cast<C>(static_cast<const double*>(p)[i]);
  if (type == CUDA_R_16BF)
    return static_cast<C>(static_cast<float>(static_cast<const bfloat16*>(p)[i]));
  const float x = static_cast<const float*>(p)[i];
  if (compute == CUBLAS_COMPUTE_32F_FAST_16BF)
    return static_cast<C>(static_cast<float>(bfloat16(x)));
  if (compute == CUBLAS_COMPUTE_32F_FAST_TF32 || math == CUBLAS_TF32_TENSOR_OP_MATH)
    return static_cast<C>(round_tf32(x));
  return static_cast<C>(x);
}

struct Product {
  bool ta, tb;
  int m, n, k;
  const void *a, *b;
  void* c;
  cudaDataType at, bt, ct;
  int lda, ldb, ldc;
  long long sa, sb, sc;
  int batches;
  cublasComputeType_t compute;
  cublasMath_t math;
};

template <class C>
void multiply(const Product& p, C alpha, C beta) {
  const emulation::Unlock unlock;
  emulation::count_launch();
  std::vector<C> left(static_cast<size_t>(p.m) * p.k), right(static_cast<size_t>(p.k) * p.n);
  for (int batch = 0; batch < p.batches; ++batch) {
    // Column-major, as in cuBLAS: element (i, j) of A lies at i + j·lda. left (m, k) and right
    // (n, k) are copied so that k is contiguous.
    for (int i = 0; i < p.m; ++i)
      for (int l = 0; l < p.k; ++l)
        left[static_cast<size_t>(i) * p.k + l] =
            element<C>(p.a, p.at, batch * p.sa + (p.ta ? l + 1LL * i * p.lda : i + 1LL * l * p.lda),
                       p.compute, p.math);
    for (int j = 0; j < p.n; ++j)
      for (int l = 0; l < p.k; ++l)
        right[static_cast<size_t>(j) * p.k + l] =
            element<C>(p.b, p.bt, batch * p.sb + (p.tb ? j + 1LL * l * p.ldb : l + 1LL * j * p.ldb),
                       p.compute, p.math);
    for (int j = 0; j < p.n; ++j)
      for (int i = 0; i < p.m; ++i) {
        C total = 0;
        for (int l = 0; l < p.k; ++l)
          total += left[static_cast<size_t>(i) * p.k + l] * right[static_cast<size_t>(j) * p.k + l];
        const long long at = batch * p.sc + i + 1LL * j * p.ldc;
        const auto store = [&]<class T>(T* c) {
          C old = 0;
          if (beta != C(0)) old = beta * static_cast<C>(static_cast<macgrad::compute_t<T>>(c[at]));
          c[at] = T(static_cast<macgrad::compute_t<T>>(alpha * total + old));
        };
        if (p.ct == CUDA_R_64F) {
          store(static_cast<double*>(p.c));
        } else if (p.ct == CUDA_R_16BF) {
          store(static_cast<bfloat16*>(p.c));
        } else {
          store(static_cast<float*>(p.c));
        }
      }
  }
}

}  // namespace

cublasStatus_t cublasGemmEx(cublasHandle_t handle, cublasOperation_t transpose_a,
                            cublasOperation_t transpose_b, int m, int n, int k, const void* alpha,
                            const void* a, cudaDataType a_type, int lda, const void* b,
                            cudaDataType b_type, int ldb, const void* beta, void* c,
                            cudaDataType c_type, int ldc, cublasComputeType_t compute,
                            cublasGemmAlgo_t algorithm) {
  return cublasGemmStridedBatchedEx(handle, transpose_a, transpose_b, m, n, k, alpha, a, a_type,
                                    lda, 0, b, b_type, ldb, 0, beta, c, c_type, ldc, 0, 1, compute,
                                    algorithm);
}

cublasStatus_t cublasGemmStridedBatchedEx(cublasHandle_t handle, cublasOperation_t transpose_a,
                                          cublasOperation_t transpose_b, int m, int n, int k,
                                          const void* alpha, const void* a, cudaDataType a_type,
                                          int lda, long long stride_a, const void* b,
                                          cudaDataType b_type, int ldb, long long stride_b,
                                          const void* beta, void* c, cudaDataType c_type, int ldc,
                                          long long stride_c, int batches,
                                          cublasComputeType_t compute, cublasGemmAlgo_t) {
  const bool ta = transpose_a == CUBLAS_OP_T, tb = transpose_b == CUBLAS_OP_T;
  if (m < 0 || n < 0 || k < 0 || lda < std::max(1, ta ? k : m) || ldb < std::max(1, tb ? n : k) ||
      ldc < std::max(1, m) || !emulation::is_device(c) || a_type != b_type)
    return CUBLAS_STATUS_INVALID_VALUE;
  const Product p{ta,       tb,       m,        n,       k,       a,           b,
                  c,        a_type,   b_type,   c_type,  lda,     ldb,         ldc,
                  stride_a, stride_b, stride_c, batches, compute, handle->math};
  if (compute == CUBLAS_COMPUTE_64F) {
    const double x = *static_cast<const double*>(alpha), y = *static_cast<const double*>(beta);
    emulation::enqueue(handle->stream, [=] { multiply<double>(p, x, y); });
  } else {
    const float x = *static_cast<const float*>(alpha), y = *static_cast<const float*>(beta);
    emulation::enqueue(handle->stream, [=] { multiply<float>(p, x, y); });
  }
  return CUBLAS_STATUS_SUCCESS;
}
