// Coverage on the CUDA device: every slot of MACGRAD_SHARED_KERNELS has a kernel there and runs in
// each dtype it supports, from the rows of the op table or the calls below.
#include <doctest/doctest.h>

#include <set>

#include "macgrad/core/kernels/arrays.h"
#include "macgrad/core/kernels/optimizer.h"
#include "macgrad/core/kernels/random.h"
#include "macgrad/tests/cuda/device.h"
#include "macgrad/tests/op_cases.h"
#include "macgrad/tests/slot_coverage.h"

namespace macgrad::testing {
namespace {

// Fused kernels of the GPU take float32 and bfloat16; the rows of these ops have no bfloat16 run,
// which cuda_attention_test and cuda_rmfa_test make.
const std::set<std::string> kFloat32 = {"softmax_attention_forward", "softmax_attention_backward",
                                        "rmfa_forward", "rmfa_backward"};

// The op widens bfloat16 operands.
const std::set<std::string> kNotBfloat16 = {"linear_attention_forward",
                                            "linear_attention_backward"};

// Slots that no differentiable op calls; their values are checked in cuda_random_test,
// cuda_feature_map_test and cuda_optimizer_test.
void run_other_slots(DType dtype) {
  const Tensor y = Tensor::empty({5, 13}, dtype, kGpu);
  const DrawKey key{7, 1, 2, 3};
  kernels::random_uniform(y, key);
  kernels::random_normal(y, key);
  kernels::random_signs(y, key);
  kernels::fill(y, 0.5);
  kernels::sum_of_squares(Tensors{y}, Tensor::empty({1}, DType::float64, kGpu));
  run_feature_draw(dtype, kGpu);
  const auto zeros = [&] { return Tensor::zeros({5, 13}, dtype, kGpu); };
  kernels::adam(Tensors{zeros()}, Tensors{}, Tensors{y}, Tensors{zeros()}, Tensors{zeros()},
                AdamArgs{});
  kernels::sgd(Tensors{zeros()}, Tensors{}, Tensors{y}, Tensors{zeros()}, SgdArgs{});
}

TEST_CASE("every kernel slot runs on the CUDA device in every dtype it supports") {
  const Threads one(1);
  [[maybe_unused]] const OpenMemory open;
  const std::vector<DType> dtypes = {DType::float32, DType::float64, DType::bfloat16};
  Noted noted;
  for (const OpCase& row : op_cases()) {
    for (const DType dtype : dtypes) {
      if (dtype == DType::bfloat16 && !row.bfloat16) continue;
      if (dtype == DType::float64 && (row.op == "softmax_attention" || row.op == "rmfa")) continue;
      CAPTURE(row.name);
      Tensors inputs;
      for (const Tensor& t : make_inputs(row.inputs, dtype)) inputs.push_back(t.to(kGpu));
      evaluate(row, inputs, row.gradient ? 1 : 0);
    }
  }
  for (const DType dtype : dtypes) run_other_slots(dtype);
  for (const std::string& slot : kSharedSlots) {
    for (const DType dtype : dtypes) {
      if (dtype != DType::float32 && kFloat32.contains(slot)) continue;
      if (dtype == DType::bfloat16 && kNotBfloat16.contains(slot)) continue;
      CHECK_MESSAGE(noted.seen_on(DeviceType::cuda, slot, dtype), "nothing runs kernels::", slot,
                    " in ", name(dtype), " on cuda; add a row to tests/op_cases_*.cpp");
    }
  }
}

}  // namespace
}  // namespace macgrad::testing
