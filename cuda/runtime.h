// What every file of the backend shares on the host: the one stream, the cuBLAS handle, the limits
// of the card, checked calls and checked launches.
//
// The headers of CUDA are only included through this one, so that tests/cuda can compile the same
// sources against a machine played on the CPU (tests/cuda/emulation).
#pragma once

#include <cublas_v2.h>
#include <cuda_runtime_api.h>

#include "core/error.h"

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

/// Whether stream() is being captured: work is recorded then, not run.
bool capturing();

}  // namespace macgrad::cuda

#define CUDA_CHECK(expression) ::macgrad::cuda::check((expression), #expression, __FILE__, __LINE__)
#define CUBLAS_CHECK(expression) \
  ::macgrad::cuda::check((expression), #expression, __FILE__, __LINE__)
