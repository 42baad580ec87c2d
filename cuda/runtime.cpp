#include "macgrad/cuda/runtime.h"

#include <mutex>
#include <sstream>
#include <unordered_map>

#include "macgrad/cuda/math_mode.h"

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

Card& the_card() {
  static Card card = [] {
    cudaDeviceProp properties{};
    CUDA_CHECK(cudaGetDeviceProperties(&properties, backend_device()));
    return Card{properties.multiProcessorCount, properties.sharedMemPerBlockOptin,
                properties.totalGlobalMem};
  }();
  return card;
}

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
  check_device();
  static const cublasHandle_t handle = [] {
    cublasHandle_t h = nullptr;
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
  return the_card();
}
void set_card(const Card& card) {
  the_card() = card;
}

std::string shared_memory_refusal(size_t bytes) {
  if (bytes <= card().shared_bytes) return "";
  return fmt::format("the CUDA kernel needs {} bytes of shared memory per block, this card has {}",
                     bytes, card().shared_bytes);
}

void allow_shared_bytes(const void* kernel, size_t bytes) {
  if (const std::string reason = shared_memory_refusal(bytes); !reason.empty())
    throw Error("{}", reason);
  static std::mutex mutex;
  static std::unordered_map<const void*, size_t> allowed;
  const std::lock_guard lock(mutex);
  size_t& most = allowed[kernel];
  if (bytes <= most) return;
  // All that the card has: no later launch needs another call.
  const size_t all = card().shared_bytes;
  CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  static_cast<int>(all)));
  most = all;
}

std::string architecture_refusal(int major, int minor, const std::string& architectures) {
  std::string compiled;
  std::istringstream words(architectures);
  for (std::string word; words >> word;) {
    int number = 0;
    char variant = '\0';
    std::istringstream text(word);
    if (!(text >> number)) return "";  // no list of architectures
    if (text.peek() == 'a' || text.peek() == 'f') text >> variant;
    std::string kind;
    text >> kind;
    const int of_major = number / 10, of_minor = number % 10;
    // Machine code runs within a major version; PTX is compiled for any later card. Both are bound
    // to one card with 'a', to a major version with 'f'.
    const bool exactly = major == of_major && minor == of_minor;
    const bool within = major == of_major && minor >= of_minor;
    const bool later = within || major > of_major;
    const bool real = kind != "-virtual", portable = kind != "-real" && variant == '\0';
    if (variant == 'a' ? exactly : portable ? later : within) return "";
    compiled += fmt::format("{}{}_{}{}", compiled.empty() ? "" : ", ", real ? "sm" : "compute",
                            number, variant ? std::string(1, variant) : "");
  }
  if (compiled.empty()) return "";  // the list is not known
  if (major < 8)
    return fmt::format(
        "compiled for {}, this card is sm_{}{}: the kernels need compute capability 8.0 or later",
        compiled, major, minor);
  return fmt::format(
      "compiled for {}, this card is sm_{}{}: rebuild with -DCMAKE_CUDA_ARCHITECTURES={}{}",
      compiled, major, minor, major, minor);
}

bool capturing() {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  CUDA_CHECK(cudaStreamIsCapturing(stream(), &status));
  return status != cudaStreamCaptureStatusNone;
}

}  // namespace macgrad::cuda
