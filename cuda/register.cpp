// The CUDA backend's entry points. Host code only: the kernels' own files are compiled by nvcc.
#include "macgrad/cuda/register.h"

#include <cuda_runtime_api.h>
#include <fmt/format.h>

#include "macgrad/core/compare_with_cpu.h"
#include "macgrad/cuda/backend.h"
#include "macgrad/cuda/math_mode.h"
#include "macgrad/cuda/memory.h"
#include "macgrad/cuda/runtime.h"

namespace macgrad {

CudaStatus cuda_status() {
  CudaStatus status;
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess) {
    status.reason = fmt::format("cudaGetDeviceCount: {} ({})", cudaGetErrorString(error),
                                cudaGetErrorName(error));
    return status;
  }
  if (count == 0) {
    status.reason = "cudaGetDeviceCount: the driver is there, but no device";
    return status;
  }
  try {
    int device = 0;
    CUDA_CHECK(cudaGetDevice(&device));
    cudaDeviceProp properties{};
    CUDA_CHECK(cudaGetDeviceProperties(&properties, device));
    status.device = fmt::format("{}, compute {}.{}, {:.1f} GiB", properties.name, properties.major,
                                properties.minor, double(properties.totalGlobalMem) / (1 << 30));
    status.reason =
        cuda::architecture_refusal(properties.major, properties.minor, MACGRAD_CUDA_ARCHITECTURES);
    status.usable = status.reason.empty();
  } catch (const Error& failure) {
    status.reason = failure.what();
  }
  return status;
}

void set_cuda_math(const std::string& mode) {
  if (mode == "exact") return cuda::set_math_mode(cuda::MathMode::exact);
  if (mode == "tf32") return cuda::set_math_mode(cuda::MathMode::tf32);
  if (mode == "bf16") return cuda::set_math_mode(cuda::MathMode::bf16);
  throw Error("math mode '{}' is unknown; use exact, tf32 or bf16", mode);
}

int register_cuda_kernels() {
  cuda::register_memory();
  cuda::register_graphs();
  compare_with_cpu_if_asked();
  int filled = 0;
  const auto fill_slot = [&](auto& slot, const auto&... functions) {
    slot.set(DeviceType::cuda, {functions...});
    ++filled;
  };
#define MACGRAD_FILL(op) fill_slot(kernels::op, cuda::op);
  MACGRAD_UNARY_OPS(MACGRAD_FILL)
  MACGRAD_BINARY_OPS(MACGRAD_FILL)
  MACGRAD_COMPARE_OPS(MACGRAD_FILL)
  MACGRAD_FILL(where)
  MACGRAD_FILL(copy)
  MACGRAD_FILL(fill)
  MACGRAD_FILL(sum)
  MACGRAD_FILL(max)
  MACGRAD_FILL(min)
  MACGRAD_FILL(cumsum)
  MACGRAD_FILL(matmul)
  MACGRAD_FILL(gather)
  MACGRAD_FILL(scatter_add)
  MACGRAD_FILL(index_select)
  MACGRAD_FILL(index_add)
  MACGRAD_FILL(random_uniform)
  MACGRAD_FILL(random_normal)
  MACGRAD_FILL(random_signs)
  MACGRAD_FILL(dropout)
  MACGRAD_FILL(softmax_forward)
  MACGRAD_FILL(softmax_backward)
  MACGRAD_FILL(log_softmax_forward)
  MACGRAD_FILL(log_softmax_backward)
  MACGRAD_FILL(cross_entropy_forward)
  MACGRAD_FILL(cross_entropy_backward)
  MACGRAD_FILL(layer_norm_forward)
  MACGRAD_FILL(layer_norm_backward)
  MACGRAD_FILL(pre_sbn_forward)
  MACGRAD_FILL(pre_sbn_backward)
  MACGRAD_FILL(post_sbn_forward)
  MACGRAD_FILL(post_sbn_backward)
  MACGRAD_FILL(draw_features)
  MACGRAD_FILL(adam)
  MACGRAD_FILL(sgd)
  MACGRAD_FILL(sum_of_squares)
#undef MACGRAD_FILL
  fill_slot(kernels::softmax_attention_forward, cuda::softmax_attention_forward,
            cuda::softmax_attention_forward_supports, cuda::softmax_attention_forward_scratch);
  fill_slot(kernels::softmax_attention_backward, cuda::softmax_attention_backward,
            cuda::softmax_attention_backward_supports, cuda::softmax_attention_backward_scratch);
  fill_slot(kernels::rmfa_forward, cuda::rmfa_forward, cuda::rmfa_forward_supports,
            cuda::rmfa_forward_scratch);
  fill_slot(kernels::rmfa_backward, cuda::rmfa_backward, cuda::rmfa_backward_supports,
            cuda::rmfa_backward_scratch);
  fill_slot(kernels::linear_attention_forward, cuda::linear_attention_forward,
            cuda::linear_attention_forward_supports, cuda::linear_attention_forward_scratch);
  fill_slot(kernels::linear_attention_backward, cuda::linear_attention_backward, nullptr,
            cuda::linear_attention_backward_scratch);
  return filled;
}

}  // namespace macgrad
