// The op table (tests/op_cases.h) on the CUDA device, against the same rows in float64 on the CPU:
// values, gradients and second derivatives, strides, odd sizes, poisoned memory, order of threads.
#include <doctest/doctest.h>

#include <cmath>
#include <set>

#include "macgrad/core/allocator.h"
#include "macgrad/tests/composites_allowed.h"
#include "macgrad/tests/cuda/device.h"
#include "macgrad/tests/op_cases.h"
#include "macgrad/tests/op_table_checks.h"
#ifdef MACGRAD_CUDA_EMULATED
#include "macgrad/tests/cuda/emulation/machine.h"
#endif

namespace macgrad::testing {
namespace {

Tensors moved(const Tensors& list, Device device) {
  Tensors result;
  for (const Tensor& t : list)
    result.push_back(device == kGpu && t.device() != kGpu ? on_gpu(t) : t.to(device));
  return result;
}

// On a GPU the fused kernels of these ops take float32 and bfloat16; in float64 their composites
// run.
bool has_no_float64_kernel(const OpCase& row) {
  return row.op == "softmax_attention" || row.op == "rmfa";
}

TEST_CASE("cuda op table: every dtype agrees with float64 on the CPU, values and derivatives") {
  const Threads one(1);
  for (const OpCase& row : op_cases()) {
    for (const DType dtype : {DType::float64, DType::float32, DType::bfloat16}) {
      if (dtype == DType::bfloat16 && !row.bfloat16) continue;
      guarded(row, [&] {
        const CompositesAllowed allowed(dtype == DType::float64 && has_no_float64_kernel(row));
        const Tensors inputs = make_inputs(row.inputs, dtype);
        const int order = dtype == DType::bfloat16 ? std::min(1, order_of(row)) : order_of(row);
        const Worst worst = compare(evaluate(row, moved(inputs, kGpu), order),
                                    evaluate(row, in_float64(inputs), order));
        check_within(row, worst, tolerance(row, dtype), name(dtype));
      });
    }
  }
}

TEST_CASE("cuda op table: strided operands and odd sizes") {
  const Threads one(1);
  for (const OpCase& row : op_cases()) {
    guarded(row, [&] {
      const Tensors inputs = make_inputs(row.inputs, DType::float32);
      Tensors views;
      for (const Tensor& t : inputs) views.push_back(strided(t));
      const int order = std::min(1, order_of(row));
      check_within(row,
                   compare(evaluate(row, moved(views, kGpu), order),
                           evaluate(row, in_float64(inputs), order)),
                   tolerance(row, DType::float32), "strided");
    });
    if (!row.sized) continue;
    for (const int64_t n : {0, 1, 63, 100}) {
      if (n < row.smallest) continue;
      guarded(row, [&] {
        const Tensors inputs = make_inputs(row.sized(n), DType::float32);
        const int order = std::min(1, order_of(row));
        check_within(row,
                     compare(evaluate(row, moved(inputs, kGpu), order),
                             evaluate(row, in_float64(inputs), order)),
                     3 * row.tol32, fmt::format("size {}", n).c_str());
      });
    }
  }
}

// An output that a kernel forgot to write shows the NaN of fresh memory, a write outside one breaks
// a guard word; and the same inputs give the same bits whatever order the threads run in.
TEST_CASE("cuda op table: poisoned memory and other orders of threads change no bit") {
  const Threads one(1);
  [[maybe_unused]] const OpenMemory open;
  const uint64_t before = guard_violations();
  for (const OpCase& row : op_cases()) {
    guarded(row, [&] {
      const Tensors inputs = moved(make_inputs(row.inputs, DType::float32), kGpu);
      const int order = std::min(1, order_of(row));
      const Evaluation clean = evaluate(row, inputs, order);
      const PoisonScope poison;
#ifdef MACGRAD_CUDA_EMULATED
      for (const auto threads : {emulation::Order::backward, emulation::Order::scattered}) {
        emulation::set_order(threads);
        check_within(row, compare(evaluate(row, inputs, order), clean), 0.0, "poisoned");
      }
      emulation::set_order(emulation::Order::forward);
#else
      check_within(row, compare(evaluate(row, inputs, order), clean), 0.0, "poisoned");
#endif
    });
    CHECK_MESSAGE(guard_violations() == before, row.name, " wrote outside its memory");
    if (guard_violations() != before) break;
  }
}

}  // namespace
}  // namespace macgrad::testing
