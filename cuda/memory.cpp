// Device memory behind the caching allocator of core/allocator.h, and copies between host and
// device. Freed blocks are reused without waiting: everything runs in order on one stream.
#include "macgrad/cuda/memory.h"

#include "macgrad/core/allocator.h"
#include "macgrad/cuda/index_fault.h"
#include "macgrad/cuda/runtime.h"

namespace macgrad::cuda {
namespace {

void* allocate_device(size_t bytes, Device) {
  check_device();
  void* block = nullptr;
  const cudaError_t status = cudaMalloc(&block, bytes);
  if (status == cudaErrorMemoryAllocation) {
    (void)cudaGetLastError();  // the failure is reported by the caller, not by the next launch
    return nullptr;
  }
  CUDA_CHECK(status);
  return block;
}

void release_device(void* block, size_t, Device) {
  CUDA_CHECK(cudaStreamSynchronize(stream()));  // queued work may still use it
  CUDA_CHECK(cudaFree(block));
}

void copy_device(void* to, Device to_device, const void* from, Device from_device, size_t bytes) {
  if (bytes == 0) return;
  const bool to_gpu = to_device.type == DeviceType::cuda;
  const bool from_gpu = from_device.type == DeviceType::cuda;
  const cudaMemcpyKind kind = to_gpu && from_gpu ? cudaMemcpyDeviceToDevice
                              : to_gpu           ? cudaMemcpyHostToDevice
                                                 : cudaMemcpyDeviceToHost;
  require(!capturing(), "a captured step copies between host and device; run it with --graph off");
  CUDA_CHECK(cudaMemcpyAsync(to, from, bytes, kind, stream()));
  CUDA_CHECK(cudaStreamSynchronize(stream()));
  throw_index_fault();
}

void memory_left(size_t& free, size_t& total, Device) {
  check_device();
  CUDA_CHECK(cudaMemGetInfo(&free, &total));
}

void wait_for_device(Device) {
  CUDA_CHECK(cudaStreamSynchronize(stream()));
}

void fill_device(void* block, int byte, size_t bytes, Device) {
  CUDA_CHECK(cudaMemsetAsync(block, byte, bytes, stream()));
}

}  // namespace

void register_memory() {
  set_raw_memory(DeviceType::cuda, {allocate_device, release_device, copy_device, memory_left,
                                    fill_device, wait_for_device});
}

}  // namespace macgrad::cuda
