// An observer of the kernel slots that runs every call once more on the CPU and compares outputs.
#include "macgrad/core/compare_with_cpu.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>

namespace macgrad {
namespace {

// Index in row-major order of the first element that differs, or -1.
int64_t first_difference(const std::vector<double>& got, const std::vector<double>& expected,
                         double tolerance) {
  double largest = 0;
  for (const double v : expected)
    if (std::isfinite(v)) largest = std::max(largest, std::fabs(v));
  for (size_t i = 0; i < got.size(); ++i) {
    if (got[i] == expected[i] || (std::isnan(got[i]) && std::isnan(expected[i]))) continue;
    // Not `>`: a NaN on one side alone is a difference.
    if (!(std::fabs(got[i] - expected[i]) <= tolerance * largest)) return static_cast<int64_t>(i);
  }
  return -1;
}

std::string index_text(const Shape& shape, int64_t element) {
  std::string text;
  for (int d = shape.rank() - 1; d >= 0; --d) {
    text = fmt::format("{}{}{}", element % shape[d], text.empty() ? "" : ", ", text);
    element /= shape[d];
  }
  return "(" + text + ")";
}

}  // namespace

CompareWithCpu::CompareWithCpu() : previous_(set_kernel_observer(this)) {}
CompareWithCpu::~CompareWithCpu() {
  set_kernel_observer(previous_);
}

double CompareWithCpu::tolerance(DType dtype) {
  switch (dtype) {
    case DType::float64:
      return 1e-10;
    case DType::float32:
      return 1e-4;  // sums in another order
    case DType::bfloat16:
      return 2e-2;  // two roundings of 2^-8
    default:
      return 0;
  }
}

void CompareWithCpu::after(const KernelCall& call) {
  if (call.device.type == DeviceType::cpu) return;
  if (!call.on_cpu) {
    if (++skipped_[call.name] == 1)
      std::fputs(
          fmt::format("MACGRAD_CHECK=cpu: {} is not compared: no CPU kernel takes its operands\n",
                      call.name)
              .c_str(),
          stderr);
    return;
  }
  const PauseObserver pause;
  const Tensors expected = call.on_cpu();
  // Statistics in float64 are only as exact as the result that they are computed with.
  double of_results = 0;
  for (const Tensor* t : call.outputs)
    if (t->defined() && is_floating(t->dtype()))
      of_results = std::max(of_results, tolerance(t->dtype()));
  for (size_t i = 0; i < expected.size(); ++i) {
    const Tensor& output = *call.outputs[i];
    if (!output.defined()) continue;
    const auto got = output.to_vector<double>(), wanted = expected[i].to_vector<double>();
    const double allowed = tolerance(output.dtype());
    const int64_t at = first_difference(
        got, wanted, output.dtype() == DType::float64 ? std::max(allowed, of_results) : allowed);
    if (at < 0) continue;
    const auto element = static_cast<size_t>(at);
    throw Error(
        "MACGRAD_CHECK=cpu: {} on {} differs from the CPU at output {} {} index {}: {} "
        "instead of {}{}",
        call.name, text(call.device), i, output.shape(), index_text(output.shape(), at),
        got[element], wanted[element], error_context());
  }
  ++compared_;
}

void compare_with_cpu_if_asked() {
  const char* value = std::getenv("MACGRAD_CHECK");
  if (!value || std::string(value).empty()) return;
  require(std::string(value) == "cpu", "MACGRAD_CHECK={} is unknown; the one value is cpu", value);
  static const std::unique_ptr<CompareWithCpu> tool = std::make_unique<CompareWithCpu>();
}

}  // namespace macgrad
