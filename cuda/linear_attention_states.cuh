// States of linear attention on given features: Σ φᵀ [v, u] over the tokens of a range, in units of
// the range's shift, then running sums over the ranges in order. Keys have u = 1 (or w with v, u
// both times w, for plain features); queries have v = dO·scale and u, the denominator's cotangent.
#pragma once

#include "macgrad/cuda/launch.h"
#include "macgrad/cuda/linear_attention_block.cuh"

namespace macgrad::cuda::linear {

/// Shifts of all key ranges, then the states of the keys before every causal block (of all keys,
/// over the last range, when not causal) and Σ w of their keys.
template <class T>
void key_states(const Problem<T>& p, const Cut& cut);
/// States of the queries of every range and all later ones (all ranges: number 0), and what their
/// floors pull. After key_states and with p.scalars.
template <class T>
void query_states(const Problem<T>& p, const Cut& cut, const Tensor& grad, const double* sums);

/// Calls f.template operator()<rounding>() in the mode of products.
template <class T, class F>
void with_rounding(F&& f) {
  if constexpr (std::is_same_v<T, double>) {
    f.template operator()<Rounding::exact>();
  } else {
    rmfa::with_rounding<T>(f);
  }
}

}  // namespace macgrad::cuda::linear
