#include "cuda/runtime.h"

#include "cuda/math_mode.h"

namespace macgrad::cuda {
namespace {

constexpr size_t kCublasWorkspace = size_t{32} << 20;  // what cuBLAS itself takes on Hopper

int current_device() {
  int device = -1;
  return cudaGetDevice(&device) == cudaSuccess ? device : -1;
}

int backend_device() {
  static const int the_device = [] {
    int device = 0;
    CUDA_CHECK(cudaGetDevice(&device));
    return device;
  }();
  return the_device;
}

MathMode the_math_mode = MathMode::exact;

}  // namespace

MathMode math_mode() {
  return the_math_mode;
}
void set_math_mode(MathMode mode) {
  the_math_mode = mode;
}

void check(cudaError_t status, const char* expression, const char* file, int line) {
  if (status == cudaSuccess) [[likely]]
    return;
  throw Error("{}:{}: {} failed on CUDA device {}: {} ({})", file, line, expression,
              current_device(), cudaGetErrorString(status), cudaGetErrorName(status));
}

void check(cublasStatus_t status, const char* expression, const char* file, int line) {
  if (status == CUBLAS_STATUS_SUCCESS) [[likely]]
    return;
  throw Error("{}:{}: {} failed on CUDA device {}: {} ({})", file, line, expression,
              current_device(), cublasGetStatusString(status), cublasGetStatusName(status));
}

void check_device() {
  const int device = backend_device(), current = current_device();
  require(
      current == device,
      "CUDA device {} is current, but tensors are on device {}, which was current when CUDA was "
      "first used; call cudaSetDevice({}) in this thread",
      current, device, device);
}

cudaStream_t stream() {
  check_device();
  static const cudaStream_t the_stream = [] {
    cudaStream_t s = nullptr;
    CUDA_CHECK(cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking));
    return s;
  }();
  return the_stream;
}

cublasHandle_t cublas() {
  static const cublasHandle_t handle = [] {
    cublasHandle_t h = nullptr;
    check_device();
    CUBLAS_CHECK(cublasCreate(&h));
    CUBLAS_CHECK(cublasSetStream(h, stream()));
    // Sums of a bfloat16 product that is split over blocks stay in float32.
    CUBLAS_CHECK(cublasSetMathMode(h, CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION));
    void* workspace = nullptr;
    CUDA_CHECK(cudaMalloc(&workspace, kCublasWorkspace));
    CUBLAS_CHECK(cublasSetWorkspace(h, workspace, kCublasWorkspace));
    return h;
  }();
  return handle;
}

const Card& card() {
  static const Card the_card = [] {
    cudaDeviceProp properties{};
    CUDA_CHECK(cudaGetDeviceProperties(&properties, backend_device()));
    return Card{properties.multiProcessorCount, properties.sharedMemPerBlockOptin,
                properties.totalGlobalMem};
  }();
  return the_card;
}

bool capturing() {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  CUDA_CHECK(cudaStreamIsCapturing(stream(), &status));
  return status != cudaStreamCaptureStatusNone;
}

}  // namespace macgrad::cuda
