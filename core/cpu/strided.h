// Walking N tensors of one shape together, whatever their strides: merge dimensions, then call a
// row function with the element offsets of each operand, rows cut into blocks for the threads.
#pragma once

#include <array>
#include <vector>

#include "macgrad/core/cpu/parallel.h"
#include "macgrad/core/tensor.h"

namespace macgrad::cpu {

template <size_t N>
struct LoopPlan {
  std::vector<int64_t> extents;                 // outer dimensions, slowest first
  std::vector<std::array<int64_t, N>> strides;  // of the outer dimensions
  std::array<int64_t, N> inner{};               // strides of the inner loop
  int64_t inner_extent = 1;
  int64_t outer = 1;
};

template <size_t N>
LoopPlan<N> plan_loops(const std::array<const Tensor*, N>& operands) {
  const Shape& shape = operands[N - 1]->shape();
  std::vector<int64_t> extents;
  std::vector<std::array<int64_t, N>> strides;
  for (int d = 0; d < shape.rank(); ++d) {
    if (shape[d] == 1) continue;
    std::array<int64_t, N> s;
    for (size_t i = 0; i < N; ++i) s[i] = operands[i]->strides()[d];
    if (!extents.empty()) {
      bool even = true;
      for (size_t i = 0; i < N; ++i) even = even && strides.back()[i] == s[i] * shape[d];
      if (even) {
        extents.back() *= shape[d];
        strides.back() = s;
        continue;
      }
    }
    extents.push_back(shape[d]);
    strides.push_back(s);
  }
  LoopPlan<N> plan;
  if (extents.empty()) {
    plan.inner_extent = shape.numel();
    plan.inner.fill(1);
    return plan;
  }
  plan.inner_extent = extents.back();
  plan.inner = strides.back();
  extents.pop_back();
  strides.pop_back();
  for (int64_t e : extents) plan.outer *= e;
  plan.extents = std::move(extents);
  plan.strides = std::move(strides);
  return plan;
}

/// Calls row(offsets, n) for every piece of every inner row.
template <size_t N, class Row>
void run_loops(const LoopPlan<N>& plan, Row&& row) {
  if (plan.outer == 0 || plan.inner_extent == 0) return;
  const auto offsets_of = [&](int64_t index) {
    std::array<int64_t, N> at{};
    for (size_t d = plan.extents.size(); d-- > 0;) {
      const int64_t i = index % plan.extents[d];
      index /= plan.extents[d];
      for (size_t k = 0; k < N; ++k) at[k] += i * plan.strides[d][k];
    }
    return at;
  };
  if (plan.inner_extent >= kElementGrain) {
    const int64_t pieces = (plan.inner_extent + kElementGrain - 1) / kElementGrain;
    parallel_blocks(plan.outer * pieces, 1, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) {
        auto at = offsets_of(i / pieces);
        const int64_t begin = (i % pieces) * kElementGrain;
        for (size_t k = 0; k < N; ++k) at[k] += begin * plan.inner[k];
        row(at, std::min(kElementGrain, plan.inner_extent - begin));
      }
    });
    return;
  }
  parallel_blocks(plan.outer, std::max<int64_t>(1, kElementGrain / plan.inner_extent),
                  [&](int64_t first, int64_t last) {
                    for (int64_t i = first; i < last; ++i) row(offsets_of(i), plan.inner_extent);
                  });
}

}  // namespace macgrad::cpu
