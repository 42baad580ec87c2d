// The played CUDA runtime and cuBLAS. Products round their operands as the asked compute type does
// and sum in order of k.
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <unordered_map>

#include "core/dtype.h"
#include "cublas_v2.h"
#include "cuda_runtime.h"

struct PlayedGraph {
  std::vector<std::function<void()>> work;
};
struct PlayedGraphExec {
  std::vector<std::function<void()>> work;
};
struct PlayedStream {
  PlayedGraph* recording = nullptr;
  cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal;
  bool broken = false;  // a call that the capture does not allow was made
};
struct PlayedEvent {
  std::chrono::steady_clock::time_point time;
};
struct PlayedCublas {
  cudaStream_t stream = nullptr;
  cublasMath_t math = CUBLAS_DEFAULT_MATH;
};

namespace {

cudaError_t last = cudaSuccess;
cudaError_t remember(cudaError_t error) {
  if (error != cudaSuccess) last = error;
  return error;
}

// One stream at most is captured at a time; calls that are forbidden meanwhile break the capture.
cudaStream_t capturing = nullptr;
cudaError_t forbidden_while_capturing() {
  if (!capturing) return cudaSuccess;
  capturing->broken = true;
  return remember(cudaErrorStreamCaptureUnsupported);
}

// Memory is not allocated or freed during a capture, unless its mode is relaxed.
cudaError_t forbidden_unless_relaxed() {
  if (capturing && capturing->mode == cudaStreamCaptureModeRelaxed) return cudaSuccess;
  return forbidden_while_capturing();
}

constexpr int kDevices = 2;  // the second has no memory of its own: nothing may run there
thread_local int current_device = 0;

std::unordered_map<const void*, size_t>& shared_limits() {
  static auto* limits = new std::unordered_map<const void*, size_t>;
  return *limits;
}

constexpr size_t kPlainShared = 48 << 10;
constexpr size_t kMostShared = 227 << 10;

}  // namespace

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidValue:
      return "invalid argument";
    case cudaErrorMemoryAllocation:
      return "out of memory";
    case cudaErrorStreamCaptureUnsupported:
      return "operation not permitted when stream is capturing";
    case cudaErrorStreamCaptureInvalidated:
      return "operation failed due to a previous error during capture";
  }
  return "unknown error";
}
const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "cudaSuccess";
    case cudaErrorInvalidValue:
      return "cudaErrorInvalidValue";
    case cudaErrorMemoryAllocation:
      return "cudaErrorMemoryAllocation";
    case cudaErrorStreamCaptureUnsupported:
      return "cudaErrorStreamCaptureUnsupported";
    case cudaErrorStreamCaptureInvalidated:
      return "cudaErrorStreamCaptureInvalidated";
  }
  return "unknown";
}
cudaError_t cudaGetLastError() {
  return std::exchange(last, cudaSuccess);
}

cudaError_t cudaGetDeviceCount(int* count) {
  *count = kDevices;
  return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int* device) {
  *device = current_device;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device >= kDevices) return remember(cudaErrorInvalidValue);
  current_device = device;
  return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  *properties = {};
  std::strcpy(properties->name, "CUDA played on the CPU");
  properties->major = 9;
  properties->totalGlobalMem = emulation::memory_limit() / static_cast<size_t>(1 + device);
  properties->multiProcessorCount = 6;  // few, so that small tests split work as a large card does
  properties->sharedMemPerBlockOptin = kMostShared;
  return cudaSuccess;
}
cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  *total = emulation::memory_limit();
  *free = *total - emulation::device_bytes_in_use();
  return cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  *stream = new PlayedStream;
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t) {
  return forbidden_while_capturing();
}
cudaError_t cudaDeviceSynchronize() {
  return forbidden_while_capturing();
}

cudaError_t cudaFree(void* block) {
  if (const cudaError_t error = forbidden_unless_relaxed()) return error;
  if (block && !emulation::device_release(block)) return remember(cudaErrorInvalidValue);
  return cudaSuccess;
}
cudaError_t cudaMallocHost(void** block, size_t bytes) {
  if (const cudaError_t error = forbidden_unless_relaxed()) return error;
  *block = std::malloc(bytes);
  return *block ? cudaSuccess : remember(cudaErrorMemoryAllocation);
}
cudaError_t cudaFreeHost(void* block) {
  std::free(block);
  return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream) {
  const auto fits = [](bool to_device, bool from_device, cudaMemcpyKind k) {
    switch (k) {
      case cudaMemcpyHostToHost:
        return !to_device && !from_device;
      case cudaMemcpyHostToDevice:
        return to_device && !from_device;
      case cudaMemcpyDeviceToHost:
        return !to_device && from_device;
      case cudaMemcpyDeviceToDevice:
        return to_device && from_device;
      default:
        return true;
    }
  };
  if (bytes > 0 && !fits(emulation::is_device(to), emulation::is_device(from), kind))
    return remember(cudaErrorInvalidValue);
  emulation::enqueue(stream, [=] {
    const emulation::Unlock unlock;
    emulation::count_launch();
    std::memcpy(to, from, bytes);
  });
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t stream) {
  if (bytes > 0 && !emulation::is_device(to)) return remember(cudaErrorInvalidValue);
  emulation::enqueue(stream, [=] {
    const emulation::Unlock unlock;
    emulation::count_launch();
    std::memset(to, value, bytes);
  });
  return cudaSuccess;
}

cudaError_t cudaEventCreate(cudaEvent_t* event) {
  *event = new PlayedEvent;
  return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t) {
  event->time = std::chrono::steady_clock::now();
  return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t) {
  return forbidden_while_capturing();
}
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t start, cudaEvent_t end) {
  *milliseconds = std::chrono::duration<float, std::milli>(end->time - start->time).count();
  return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
  if (capturing) return remember(cudaErrorInvalidValue);
  stream->mode = mode;
  stream->recording = new PlayedGraph;
  stream->broken = false;
  capturing = stream;
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  if (capturing != stream) return remember(cudaErrorInvalidValue);
  capturing = nullptr;
  *graph = std::exchange(stream->recording, nullptr);
  if (!stream->broken) return cudaSuccess;
  delete *graph;
  *graph = nullptr;
  return remember(cudaErrorStreamCaptureInvalidated);
}
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  *status = !stream->recording ? cudaStreamCaptureStatusNone
            : stream->broken   ? cudaStreamCaptureStatusInvalidated
                               : cudaStreamCaptureStatusActive;
  return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long) {
  *exec = new PlayedGraphExec{graph->work};
  return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t) {
  for (const auto& work : exec->work) work();
  return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
  delete exec;
  return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return cudaSuccess;
}

namespace emulation {

cudaError_t allocate_device(void** block, size_t bytes) {
  if (const cudaError_t error = forbidden_unless_relaxed()) return error;
  *block = device_allocate(bytes);
  return *block ? cudaSuccess : remember(cudaErrorMemoryAllocation);
}

void enqueue(cudaStream_t stream, std::function<void()> work) {
  if (stream && stream->recording) {
    stream->recording->work.push_back(std::move(work));
  } else {
    work();
  }
}

cudaError_t check_launch(const dim3& grid, const dim3& block, size_t shared_bytes,
                         const void* kernel) {
  const auto inside = [](unsigned value, unsigned limit) { return value >= 1 && value <= limit; };
  const auto allowed = shared_limits().find(kernel);
  const size_t limit = allowed == shared_limits().end() ? kPlainShared : allowed->second;
  const bool ok = inside(grid.x, 0x7fffffffu) && inside(grid.y, 65535) && inside(grid.z, 65535) &&
                  inside(block.x, 1024) && inside(block.y, 1024) && inside(block.z, 64) &&
                  block.x * block.y * block.z <= 1024 && shared_bytes <= limit &&
                  limit <= kMostShared;
  return ok ? cudaSuccess : remember(cudaErrorInvalidValue);
}

void allow_shared(const void* kernel, size_t bytes) {
  shared_limits()[kernel] = std::max(bytes, kPlainShared);
}

}  // namespace emulation

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
