// CompareWithCpu: a tool that reruns every kernel call of another device on the CPU and stops at
// the first result that differs. MACGRAD_CHECK=cpu turns it on for a program
// (register_cuda_kernels).
#pragma once

#include <map>
#include <string>

#include "macgrad/core/kernel.h"

namespace macgrad {

class CompareWithCpu : public KernelObserver {
 public:
  CompareWithCpu();
  ~CompareWithCpu() override;
  CompareWithCpu(const CompareWithCpu&) = delete;
  CompareWithCpu& operator=(const CompareWithCpu&) = delete;

  bool compares() const override { return true; }
  /// Throws an Error with the op, the scope, the operand, the index and both values of the first
  /// element that differs by more than tolerance(dtype), relative to the largest of its tensor. A
  /// float64 output, which may hold statistics of other outputs, has the loosest of their
  /// tolerances.
  void after(const KernelCall& call) override;

  static double tolerance(DType dtype);
  /// Calls compared since the start, and calls the CPU has no kernel for, by op.
  int64_t compared() const { return compared_; }
  const std::map<std::string, int64_t>& skipped() const { return skipped_; }

 private:
  KernelObserver* previous_;
  int64_t compared_ = 0;
  std::map<std::string, int64_t> skipped_;
};

/// Turns the tool on for the rest of the program when the environment says MACGRAD_CHECK=cpu; any
/// other value but "" is an Error.
void compare_with_cpu_if_asked();

}  // namespace macgrad
