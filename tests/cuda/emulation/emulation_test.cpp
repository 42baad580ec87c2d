// What the emulated device refuses as a GPU does: each test plants an error in a kernel or a launch
// and sees it caught.
#include <doctest/doctest.h>

#include <cstdint>

#include "macgrad/core/error.h"
#include "macgrad/cuda/attention_tile.cuh"
#include "macgrad/cuda/launch.h"
#include "macgrad/cuda/pack.cuh"
#include "macgrad/tests/cuda/device.h"

namespace macgrad::testing {
namespace {

using doctest::Contains;

/// Another card while alive.
struct CardWith {
  const size_t emulated = emulation::properties().shared_bytes;
  const cuda::Card card = cuda::card();
  explicit CardWith(size_t shared_bytes) {
    emulation::properties().shared_bytes = shared_bytes;
    cuda::Card other = card;
    other.shared_bytes = shared_bytes;
    cuda::set_card(other);
  }
  ~CardWith() {
    emulation::properties().shared_bytes = emulated;
    cuda::set_card(card);
  }
};

__global__ void nothing() {}
__global__ void nothing_more() {}

cudaError_t launch_plainly(void (*kernel)(), unsigned threads, size_t shared_bytes) {
  cudaLaunchConfig_t config{};
  config.blockDim = threads;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = cuda::stream();
  return cudaLaunchKernelEx(&config, kernel);
}

TEST_CASE("emulation: more than 48 KiB of shared memory without opting in fails") {
  CHECK(launch_plainly(nothing, 32, 48 << 10) == cudaSuccess);
  const cudaError_t status = launch_plainly(nothing, 32, (48 << 10) + 1);
  CHECK(status == cudaErrorInvalidValue);
  CHECK(std::string(cudaGetErrorString(status)) ==
        "invalid argument: 49153 bytes of dynamic shared memory, the kernel was opted in to 49152");
  const auto* kernel = reinterpret_cast<const void*>(&nothing);
  CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, 50000) ==
        cudaSuccess);
  CHECK(launch_plainly(nothing, 32, 50000) == cudaSuccess);
  CHECK(launch_plainly(nothing, 32, 50001) == cudaErrorInvalidValue);
  CHECK(launch_plainly(nothing_more, 32, 50000) == cudaErrorInvalidValue);
}

TEST_CASE("emulation: no block has more shared memory than the card gives it") {
  const CardWith card(99 << 10);
  const auto* kernel = reinterpret_cast<const void*>(&nothing);
  const auto opt_in = [&](int bytes) {
    return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  };
  CHECK(opt_in(99 << 10) == cudaSuccess);
  const cudaError_t status = opt_in((99 << 10) + 1);
  CHECK(status == cudaErrorInvalidValue);
  CHECK(
      std::string(cudaGetErrorString(status)) ==
      "invalid argument: a block may be opted in to 101376 bytes of shared memory, not to 101377");
  CHECK_THROWS_WITH_AS(cuda::launch(nothing, {1, 32, 100 << 10}),
                       "the CUDA kernel needs 102400 bytes of shared memory per block, this card "
                       "has 101376",
                       Error);
}

TEST_CASE("launch: a kernel is opted in once, and again when the card has more") {
  const uint64_t before = emulation::attribute_calls();
  {
    const CardWith small(99 << 10);
    cuda::launch(nothing_more, {1, 32, 60000});
    cuda::launch(nothing_more, {1, 32, 99 << 10});
    CHECK(emulation::attribute_calls() == before + 1);
  }
  for (const size_t bytes : {size_t{60000}, size_t{150000}, size_t{227} << 10, size_t{60000}})
    cuda::launch(nothing_more, {1, 32, bytes});
  CHECK(emulation::attribute_calls() == before + 2);
}

#if defined(EMULATION_LAUNCH_BOUNDS)
template <int threads>
__global__ void __launch_bounds__(threads) bounded() {}
template <class T>
inline constexpr int kHalf = 512 / static_cast<int>(sizeof(T));
template <class T>
__global__ void __launch_bounds__(kHalf<T>, 2) bounded_twice() {}

TEST_CASE("emulation: a block has no more threads than the launch bound") {
  CHECK(launch_plainly(bounded<64>, 64, 0) == cudaSuccess);
  const cudaError_t status = launch_plainly(bounded<64>, 96, 0);
  CHECK(status == cudaErrorInvalidValue);
  CHECK(std::string(cudaGetErrorString(status)) ==
        "invalid argument: a block of 96 threads, the launch bound is 64");
  CHECK(launch_plainly(bounded_twice<float>, 128, 0) == cudaSuccess);
  CHECK(launch_plainly(bounded_twice<float>, 160, 0) == cudaErrorInvalidValue);
  CHECK(launch_plainly(bounded_twice<double>, 96, 0) == cudaErrorInvalidValue);
  CHECK(launch_plainly(nothing, 1024, 0) == cudaSuccess);
  CHECK(launch_plainly(nothing, 1056, 0) == cudaErrorInvalidValue);
}
#endif

/// Stores and loads a T of the block's shared memory, `offset` bytes from its start.
template <class T>
__global__ void store_at(int offset) {
  *reinterpret_cast<T*>(cuda::shared_memory<char>() + offset) = T{};
  __syncthreads();
}
template <class T>
__global__ void load_at(int offset, T* to) {
  *to = *reinterpret_cast<const T*>(cuda::shared_memory<char>() + offset);
}

template <class T>
void check_alignment(int bytes) {
  const emulation::Unlocked memory;
  T* to = nullptr;
  REQUIRE(cudaMalloc(&to, sizeof(T)) == cudaSuccess);
  const auto line = Contains(("no multiple of " + std::to_string(bytes) + " bytes").c_str());
  for (const int offset : {bytes / 2, bytes - bytes / 4, 4 * bytes + bytes / 2}) {
    CHECK_THROWS_WITH_AS(cuda::launch(store_at<T>, {2, 64, 1024}, offset), line, Error);
    CHECK_THROWS_WITH_AS(cuda::launch(load_at<T>, {2, 64, 1024}, offset, to), line, Error);
  }
  for (const int offset : {0, bytes, 3 * bytes}) {
    cuda::launch(store_at<T>, {2, 64, 1024}, offset);
    cuda::launch(load_at<T>, {2, 64, 1024}, offset, to);
  }
  CHECK(cudaFree(to) == cudaSuccess);
}

TEST_CASE("emulation: misaligned vector loads and stores end the kernel") {
  check_alignment<float2>(8);
  check_alignment<float4>(16);
  check_alignment<uint2>(8);
  check_alignment<uint4>(16);
  check_alignment<cuda::Packed<bfloat16, 8>>(16);
  check_alignment<cuda::Packed<bfloat16, 2>>(4);
  check_alignment<double>(8);
  CHECK_THROWS_WITH_AS(cuda::launch(store_at<float4>, {1, 32, 1024}, 8),
                       Contains("emulation_test.cpp:"), Error);
}

template <bool transposed>
__global__ void load_matrix_at(int offset) {
  const auto* rows = reinterpret_cast<const bfloat16*>(cuda::shared_memory<char>() + offset);
  uint32_t r[4];
  cuda::attention::load_matrices<transposed>(r, rows + threadIdx.x % 32 * 8);
}

TEST_CASE("emulation: rows of ldmatrix begin at multiples of 16 bytes") {
  cuda::launch(load_matrix_at<false>, {1, 32, 2048}, 32);
  CHECK_THROWS_WITH_AS(cuda::launch(load_matrix_at<false>, {1, 32, 2048}, 8),
                       Contains("no multiple of 16 bytes"), Error);
  CHECK_THROWS_WITH_AS(cuda::launch(load_matrix_at<true>, {1, 32, 2048}, 4),
                       Contains("misaligned address"), Error);
}

TEST_CASE("emulation: a fault within a replayed graph is the replay's error") {
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t exec = nullptr;
  CUDA_CHECK(cudaStreamBeginCapture(cuda::stream(), cudaStreamCaptureModeRelaxed));
  cuda::launch(store_at<float4>, {1, 32, 1024}, 4);
  CUDA_CHECK(cudaStreamEndCapture(cuda::stream(), &graph));
  CUDA_CHECK(cudaGraphInstantiate(&exec, graph));
  CHECK(cudaGraphLaunch(exec, cuda::stream()) == cudaErrorMisalignedAddress);
  CUDA_CHECK(cudaGraphExecDestroy(exec));
  CUDA_CHECK(cudaGraphDestroy(graph));
}

}  // namespace
}  // namespace macgrad::testing
