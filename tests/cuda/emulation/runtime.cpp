// The emulated CUDA runtime.
#include <cstdlib>
#include <cstring>
#include <string>
#include <unordered_map>
#include <utility>

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

namespace {

cudaError_t last = cudaSuccess;
std::string last_detail;  // what the real runtime does not say
cudaError_t remember(cudaError_t error, std::string detail = {}) {
  if (error == cudaSuccess) return error;
  last = error;
  last_detail = std::move(detail);
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
uint64_t attribute_call_count = 0;

const char* words(cudaError_t error) {
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
    case cudaErrorMisalignedAddress:
      return "misaligned address";
  }
  return "unknown error";
}

/// Of the grids that ran last.
cudaError_t grid_status() {
  std::string fault = emulation::take_fault();
  return fault.empty() ? cudaSuccess : remember(cudaErrorMisalignedAddress, std::move(fault));
}

}  // namespace

const char* cudaGetErrorString(cudaError_t error) {
  static std::string text;
  text = words(error);
  if (error != cudaSuccess && !last_detail.empty()) text += ": " + last_detail;
  return text.c_str();
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
    case cudaErrorMisalignedAddress:
      return "cudaErrorMisalignedAddress";
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
  std::strcpy(properties->name, "CUDA emulated on the CPU");
  properties->major = emulation::properties().major;
  properties->minor = emulation::properties().minor;
  properties->totalGlobalMem = emulation::memory_limit() / static_cast<size_t>(1 + device);
  properties->multiProcessorCount = 6;  // few, so that small tests split work as a large card does
  properties->sharedMemPerBlockOptin = emulation::properties().shared_bytes;
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
  for (const auto& work : exec->work) {
    work();
    if (const cudaError_t status = grid_status()) return status;
  }
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

cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute, int bytes) {
  ++attribute_call_count;
  const size_t most = emulation::properties().shared_bytes;
  if (bytes < 0 || static_cast<size_t>(bytes) > most)
    return remember(cudaErrorInvalidValue, "a block may be opted in to " + std::to_string(most) +
                                               " bytes of shared memory, not to " +
                                               std::to_string(bytes));
  shared_limits()[kernel] = static_cast<size_t>(bytes);
  return cudaSuccess;
}

namespace emulation {

Properties& properties() {
  static Properties the_properties;
  return the_properties;
}
uint64_t attribute_calls() {
  return attribute_call_count;
}

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

unsigned launch_bound([[maybe_unused]] const void* kernel) {
#if defined(EMULATION_LAUNCH_BOUNDS)
  const auto* code = static_cast<const unsigned char*>(kernel);
  constexpr unsigned char endbr64[] = {0xf3, 0x0f, 0x1e, 0xfa};
  if (std::memcmp(code, endbr64, sizeof(endbr64)) == 0) code += sizeof(endbr64);
  unsigned warps = 0;
  while (code[warps] == 0x90) ++warps;
  if (warps > 0) return warps * 32;
#endif
  return 1024;
}

cudaError_t check_launch(const dim3& grid, const dim3& block, size_t shared_bytes,
                         const void* kernel) {
  const auto inside = [](unsigned value, unsigned limit) { return value >= 1 && value <= limit; };
  if (!inside(grid.x, 0x7fffffffu) || !inside(grid.y, 65535) || !inside(grid.z, 65535) ||
      !inside(block.x, 1024) || !inside(block.y, 1024) || !inside(block.z, 64))
    return remember(cudaErrorInvalidValue, "the grid or the block has a side beyond the limits");
  const unsigned threads = block.x * block.y * block.z, bound = launch_bound(kernel);
  if (threads > bound)
    return remember(cudaErrorInvalidValue, "a block of " + std::to_string(threads) +
                                               " threads, the launch bound is " +
                                               std::to_string(bound));
  const auto opted_in = shared_limits().find(kernel);
  const size_t allowed = std::min(
      properties().shared_bytes,
      opted_in == shared_limits().end() ? kPlainShared : std::max(kPlainShared, opted_in->second));
  if (shared_bytes > allowed)
    return remember(cudaErrorInvalidValue, std::to_string(shared_bytes) +
                                               " bytes of dynamic shared memory, the kernel was "
                                               "opted in to " +
                                               std::to_string(allowed));
  return cudaSuccess;
}

cudaError_t launched() {
  return grid_status();
}

}  // namespace emulation
