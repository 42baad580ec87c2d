// What every file of the backend shares on the host: the one stream, the cuBLAS handle, the limits
// of the card, checked calls and checked launches.
//
// The headers of CUDA are only included through this one, so that tests/cuda can compile the same
// sources against an emulated device (tests/cuda/emulation).
#pragma once

#include <cublas_v2.h>
#include <cuda_runtime_api.h>

#include <string>

#include "macgrad/core/error.h"

namespace macgrad::cuda {

/// Throws when `status` is a failure, with the expression, file, line, device and CUDA's own words.
/// Use through CUDA_CHECK and CUBLAS_CHECK.
void check(cudaError_t status, const char* expression, const char* file, int line);
void check(cublasStatus_t status, const char* expression, const char* file, int line);

/// The backend uses one device: the one that was current when it was first used. Throws when
/// another device is current in this thread, since CUDA would allocate and launch there.
void check_device();
/// All work of the backend is queued here, in order. Nothing but reading a value waits for it.
/// Throws as check_device() does.
cudaStream_t stream();
/// A handle on stream(), with a workspace of its own so that captured products allocate nothing.
cublasHandle_t cublas();

struct Card {
  int multiprocessors = 1;
  size_t shared_bytes = 0;  // most dynamic shared memory of one block
  size_t memory_bytes = 0;
};
/// Properties of the backend's device. Throws without a usable one.
const Card& card();
/// Replaces them, so that a test can try the limits of another card.
void set_card(const Card& card);

/// Why the card cannot run a block with this much dynamic shared memory, or "".
std::string shared_memory_refusal(size_t bytes);
/// Opts a kernel in to all the shared memory of the card, once. Throws when `bytes` are more.
void allow_shared_bytes(const void* kernel, size_t bytes);

/// Why kernels compiled for these architectures (as in CMAKE_CUDA_ARCHITECTURES, separated by
/// spaces) do not run on a card of this compute capability, or "".
std::string architecture_refusal(int major, int minor, const std::string& architectures);

/// Whether stream() is being captured: work is recorded then, not run.
bool capturing();

}  // namespace macgrad::cuda

#define CUDA_CHECK(expression) ::macgrad::cuda::check((expression), #expression, __FILE__, __LINE__)
#define CUBLAS_CHECK(expression) \
  ::macgrad::cuda::check((expression), #expression, __FILE__, __LINE__)
