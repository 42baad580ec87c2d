// Random Maclaurin feature attention and the draws of its features. Shape letters: B batch, H
// heads, T query length, S key length, d head dimension, dv value dimension, P projections, M
// features with a projection.
#pragma once

#include <vector>

#include "macgrad/core/generator.h"
#include "macgrad/core/kernel.h"

namespace macgrad {

/// RmfaArgs::layout: constant, linear and the logit scale of the weights, then the levels, zeros
/// beyond.
inline constexpr int64_t kRmfaLayoutLevels = 64;
inline constexpr int64_t kRmfaLayoutScale = 2, kRmfaLayoutHeader = 3;
inline constexpr int64_t kRmfaLayout = kRmfaLayoutHeader + kRmfaLayoutLevels;

/// Random Maclaurin feature attention (nn/README.md): phi(x) = [sqrt(linear) x, w_m Π_l (x Ω_l)_m];
/// level l has levels[l] features (descending); columns of Ω are level after level.
///
/// A captured step (core/step_graph.h) outlives its draw. `layout` holds constant, linear and
/// levels where the device reads them at each replay; the fields next to it are then those of the
/// current draw, and only whether there is a linear block must stay. How the work is partitioned
/// follows the widths of omega and weight, so that a draw has one result, replayed or not.
struct RmfaArgs {
  std::vector<int64_t> levels;  // levels[0] = M, sum = P
  double constant = 0.0;        // c_0²: what all degree-0 features add to every kernel value
  double linear = 0.0;          // weight of the exact degree-1 block x·y (0: none)
  double floor = 0.0;           // den is floored at floor·(visible keys); 0: not floored
  bool causal = false;          // as in SoftmaxAttentionArgs
  Tensor layout{};              // (kRmfaLayout) float64 on the operands' device, or absent
};

struct RmfaOperands {
  using KernelOperands = void;
  In q, k, v, key_valid, query_valid;  // as in SoftmaxAttentionOperands
  /// omega (d, P), or (H, d, P) for draws per head; weight (M); both may be wider, for larger draws
  /// to come: what lies beyond P and M is not read.
  In omega, weight;
  const RmfaArgs& args;
};
struct RmfaForward {
  using KernelOperands = void;
  RmfaOperands in;
  Out out;  // (B, H, T, dv), last stride 1
  Out den;  // (B, H, T) of compute_dtype: denominators before flooring
  /// (4) float64: denominators, of them floored (without a floor: <= 0), 0, and the smallest
  /// den/(visible keys).
  Out stats;
  Scratch scratch{};
};
struct RmfaBackward {
  using KernelOperands = void;
  RmfaOperands in;
  In out, den;     // of the forward kernel
  In grad;         // of out's shape, last stride 1
  Out dq, dk, dv;  // of the shapes of q, k, v
  Scratch scratch{};
};

/// Signs of random features are independent, rows of fresh Hadamard blocks, or rows of Hadamard
/// blocks of which those of one degree are shifted against each other, so that no combination of
/// rows comes twice.
enum class SignDesign : uint8_t { independent, blocks, shifted_blocks };

/// What a draw of features (nn/allocation.h) has in addition to its law.
struct FeatureDrawArgs {
  DrawKey key{};
  int64_t head_dim = 1;    // d
  int64_t tail_from = 0;   // degrees of the tail's features are >= it
  int64_t tail_count = 0;  // features of the tail
  double constant = 0.0, linear = 0.0, logit_scale = 1.0;  // exact parts; the weights' scale
  SignDesign design = SignDesign::independent;
  bool systematic = false;  // degrees of the tail equally spaced in its law, else independent
};

}  // namespace macgrad

#define MACGRAD_RMFA_KERNELS(KERNEL, SCRATCH)                                                \
  SCRATCH(rmfa_forward, RmfaForward)                                                         \
  SCRATCH(rmfa_backward, RmfaBackward)                                                       \
  /* Draws of the features of many maps at once, one entry per map in each list. laws:       \
     float64 vectors, how many features each degree 0 … kRmfaLayoutLevels has in addition  \
     to the tail, then the weight of a feature of each of these degrees (negative: it has    \
     no projection; of degree 0: what it adds to constant), then P[degree >= tail_from +     \
     i] of the tail. Written are omega (d, P') or (H, d, P'), weight (M') of omega's         \
     dtype and layout (kRmfaLayout) float64, as in RmfaArgs; P' and M' are at least the      \
     draw's, with zeros beyond. No feature's degree may be above kRmfaLayoutLevels. */       \
  KERNEL(draw_features, InList laws, InOutList omegas, InOutList weights, InOutList layouts, \
         const std::vector<FeatureDrawArgs>& args)

MACGRAD_SCRATCH_KERNELS(MACGRAD_RMFA_KERNELS)
