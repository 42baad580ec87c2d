// Every compute kernel of macgrad, in one list: the contents page of both backends. A slot starts
// with its CPU function (core/cpu/); register_cuda_kernels() fills the CUDA column (cuda/ mirrors
// core/cpu/ by file name). core/backend_functions.inc has the operands' names, in order.
//
// Shape letters: B batch, H heads, T query length, S key length, d head dimension, dv value
// dimension, P projections, M features with a projection, R rows, N columns, V vocabulary.
// "(A, R, N)" is any tensor seen as three dimensions with the middle one worked on. Unless said
// otherwise operands are contiguous and of one floating dtype.
#pragma once

#include <limits>
#include <vector>

#include "macgrad/core/generator.h"
#include "macgrad/core/kernel.h"
#include "macgrad/core/scalar_ops.h"

namespace macgrad {

/// Softmax attention: key j is visible to query i when key_valid and, if causal, j <= i + S - T.
struct SoftmaxAttentionArgs {
  double scale = 1.0;  // multiplies q·k
  bool causal = false;
  double dropout = 0.0;  // on the normalised weights; kept ones are scaled by 1/(1-dropout)
  DrawKey key{};         // element ((b·H + h)·T + i)·S + j decides
};

/// RmfaArgs::layout: constant, linear and the logit scale of the weights, then the levels, zeros
/// beyond.
inline constexpr int64_t kRmfaLayoutLevels = 64;
inline constexpr int64_t kRmfaLayoutScale = 2, kRmfaLayoutHeader = 3;
inline constexpr int64_t kRmfaLayout = kRmfaLayoutHeader + kRmfaLayoutLevels;

/// Random Maclaurin feature attention (nn/README.md): phi(x) = [sqrt(linear) x, w_m Π_l (x Ω_l)_m];
/// level l has levels[l] features (descending); columns of Ω are level after level.
///
/// A recorded step (core/step_graph.h) outlives its draw. `layout` holds constant, linear and
/// levels where the device reads them at each replay; the fields beside it are then those of the
/// draw at hand, and only whether there is a linear block must stay. How the work is cut follows
/// the widths of omega and weight, so that a draw has one result, replayed or not.
struct RmfaArgs {
  std::vector<int64_t> levels;  // levels[0] = M, sum = P
  double constant = 0.0;        // c_0²: what all degree-0 features add to every kernel value
  double linear = 0.0;          // weight of the exact degree-1 block x·y (0: none)
  double floor = 0.0;           // den is floored at floor·(visible keys); 0: not floored
  bool causal = false;          // as in SoftmaxAttentionArgs
  Tensor layout{};              // (kRmfaLayout) float64 on the operands' device, or absent
};

/// Result divided by the sum of the weights, or the weighted sum itself.
enum class Normaliser : uint8_t { quotient, none };

/// Linear attention on given features (autograd/linear_attention.h).
struct LinearAttentionArgs {
  bool log_features = false;  // phi_q and phi_k hold log φ; -inf is a feature of value 0
  double constant = 0.0;      // κ >= 0: added to every φ_q·φ_k
  double floor = 0.0;         // den is floored at floor·Σ_visible w_j; 0: not floored
  Normaliser normaliser = Normaliser::quotient;
  double factor = 1.0;  // multiplies the result with Normaliser::none
};

/// What linear attention takes of the m projections u = s·xΩ of a row (nn/README.md, other maps).
enum class ProjectionFunction : uint8_t {
  exponential,    // φ = e^u/√m, as log-features
  trigonometric,  // φ = [cos u, sin u]/√m
};

/// Linear attention on functions of projections (autograd/projected_attention.h).
struct ProjectedAttentionArgs {
  ProjectionFunction function = ProjectionFunction::exponential;
  double scale = 1.0;  // s
  double floor = 0.0;  // as in LinearAttentionArgs
};

/// Signs of random features are independent, rows of fresh Hadamard blocks, or rows of Hadamard
/// blocks of which those of one degree are shifted against each other, so that no combination of
/// rows comes twice.
enum class SignDesign : uint8_t { independent, blocks, shifted_blocks };

/// What a draw of features (nn/allocation.h) has beside its law.
struct FeatureDrawArgs {
  DrawKey key{};
  int64_t head_dim = 1;    // d
  int64_t tail_from = 0;   // degrees of the tail's features are >= it
  int64_t tail_count = 0;  // features of the tail
  double constant = 0.0, linear = 0.0, logit_scale = 1.0;  // exact parts; the weights' scale
  SignDesign design = SignDesign::independent;
  bool systematic = false;  // degrees of the tail equally spaced in its law, else independent
};

/// preSBN: statistics over batch and valid positions (batch), given ones (fixed), or a row (row).
enum class SbnStatistics { batch, fixed, row };

/// Step of AdamArgs and SgdArgs in a captured CUDA step: step, lr, grad_scale and beta1 or momentum
/// are then read from device memory (cuda/step_values.h), and lr and grad_scale of the arguments
/// multiply those.
inline constexpr int64_t kLiveUpdate = -1;

struct AdamArgs {
  double lr = 1e-3;
  double beta1 = 0.9;
  double beta2 = 0.999;
  double eps = 1e-8;
  double weight_decay = 0.0;
  bool decoupled = true;    // AdamW; false adds weight_decay·p to the gradient
  double grad_scale = 1.0;  // multiplies the gradient first (clipping, averaging)
  // Elements of the scaled gradient are then kept within ±clip_value.
  double clip_value = std::numeric_limits<double>::infinity();
  int64_t step = 1;  // counted from 1, for the bias correction
  // Updated parameters below it are set to it.
  double lower_bound = -std::numeric_limits<double>::infinity();
};

/// As AdamArgs; weight decay is added to the gradient.
struct SgdArgs {
  double lr = 1e-3;
  double momentum = 0.0;
  double weight_decay = 0.0;
  double grad_scale = 1.0;
  double clip_value = std::numeric_limits<double>::infinity();
  int64_t step = 1;  // only tells a captured step (kLiveUpdate) from another
  double lower_bound = -std::numeric_limits<double>::infinity();
};

namespace cpu {
#include "macgrad/core/backend_functions.inc"
}  // namespace cpu

namespace kernels {

#define MACGRAD_SLOT(op) inline constinit Kernel<void(In, Out)> op{#op, {cpu::op}};
MACGRAD_UNARY_OPS(MACGRAD_SLOT)
#undef MACGRAD_SLOT
#define MACGRAD_SLOT(op) inline constinit Kernel<void(In, In, Out)> op{#op, {cpu::op}};
MACGRAD_BINARY_OPS(MACGRAD_SLOT)
/// y is bool.
MACGRAD_COMPARE_OPS(MACGRAD_SLOT)
#undef MACGRAD_SLOT
/// condition is bool.
inline constinit Kernel<void(In, In, In, Out)> where{"where", {cpu::where}};

/// Any strides on both sides, any pair of dtypes (casts round to nearest), one shape.
inline constinit Kernel<void(In, Out)> copy{"copy", {cpu::copy}};
/// Any strides, any dtype.
inline constinit Kernel<void(Out, double)> fill{"fill", {cpu::fill}};

/// x (A, R, N) -> y (A, N).
inline constinit Kernel<void(In, Out)> sum{"sum", {cpu::sum}};
/// x (A, R, N) -> y (A, N), index (A, N) int64: the first place of the extremum. R >= 1. NaN wins.
inline constinit Kernel<void(In, Out, Out)> max{"max", {cpu::max}};
inline constinit Kernel<void(In, Out, Out)> min{"min", {cpu::min}};
/// x, y (A, R, N): running sums along R, from the end when reverse.
inline constinit Kernel<void(In, Out, bool)> cumsum{"cumsum", {cpu::cumsum}};

/// c = alpha·a·b + beta·c over batches: a (…, M, K), b (…, K, N), c (…, M, N) with equal batch
/// dimensions (expanded ones have stride 0). In a, b and c one of the last two strides is 1.
/// K = 0 gives beta·c.
inline constinit Kernel<void(In, In, Out, double, double)> matmul{"matmul", {cpu::matmul}};

/// x (A, R, N), index (A, K, N) int64 in [0, R) -> y (A, K, N): y[a,k,n] = x[a, index[a,k,n], n].
inline constinit Kernel<void(In, In, Out)> gather{"gather", {cpu::gather}};
/// index, source (A, K, N), y (A, R, N): y[a, index[a,k,n], n] += source[a,k,n], in order of k. A
/// bfloat16 y is summed in float32 and rounded once, here and in index_add.
inline constinit Kernel<void(In, In, InOut)> scatter_add{"scatter_add", {cpu::scatter_add}};
/// x (A, R, N), index (K) int64 in [0, R) -> y (A, K, N).
inline constinit Kernel<void(In, In, Out)> index_select{"index_select", {cpu::index_select}};
/// index (K), source (A, K, N), y (A, R, N): y[a, index[k], n] += source[a,k,n], in order of k.
inline constinit Kernel<void(In, In, InOut)> index_add{"index_add", {cpu::index_add}};

/// Uniform in [0, 1): float32 and bfloat16 from one 32-bit number an element, float64 from two.
inline constinit Kernel<void(Out, DrawKey)> random_uniform{"random_uniform", {cpu::random_uniform}};
/// Standard normal by Box-Muller: element pair (2i, 2i+1) from numbers 4i … 4i+3.
inline constinit Kernel<void(Out, DrawKey)> random_normal{"random_normal", {cpu::random_normal}};
/// -1 or +1: the top bit of number `element`, 1 meaning +1.
inline constinit Kernel<void(Out, DrawKey)> random_signs{"random_signs", {cpu::random_signs}};
/// y = x/(1-p) where uniform(element) >= p, else 0.
inline constinit Kernel<void(In, Out, double, DrawKey)> dropout{"dropout", {cpu::dropout}};

/// x, y (R, N), over N.
inline constinit Kernel<void(In, Out)> softmax_forward{"softmax_forward", {cpu::softmax_forward}};
inline constinit Kernel<void(In, In, Out)> softmax_backward{"softmax_backward",
                                                            {cpu::softmax_backward}};
inline constinit Kernel<void(In, Out)> log_softmax_forward{"log_softmax_forward",
                                                           {cpu::log_softmax_forward}};
inline constinit Kernel<void(In, In, Out)> log_softmax_backward{"log_softmax_backward",
                                                                {cpu::log_softmax_backward}};
/// logits (R, V), target (R) int64 -> loss (R), statistics (R, 2): the largest logit m and
/// Σ exp(logit - m), kept apart because their log-sum-exp is rounded to a unit of m. With smoothing
/// s the target distribution is (1-s) on the target plus s/V everywhere; rows whose target is
/// `ignore` have loss 0. loss, statistics and grad are of compute_dtype.
inline constinit Kernel<void(In, In, double, int64_t, Out, Out)> cross_entropy_forward{
    "cross_entropy_forward", {cpu::cross_entropy_forward}};
/// grad (R) -> dlogits (R, V).
inline constinit Kernel<void(In, In, In, In, double, int64_t, Out)> cross_entropy_backward{
    "cross_entropy_backward", {cpu::cross_entropy_backward}};

/// x, y (R, N), weight, bias (N), mean (R, 2), rstd (R) of compute_dtype; biased variance. The mean
/// is the sum of two numbers, the second of which is what rounding takes from the first. rstd is 0
/// where variance and eps are.
inline constinit Kernel<void(In, In, In, double, Out, Out, Out)> layer_norm_forward{
    "layer_norm_forward", {cpu::layer_norm_forward}};
inline constinit Kernel<void(In, In, In, In, In, Out, Out, Out)> layer_norm_backward{
    "layer_norm_backward", {cpu::layer_norm_backward}};

/// x (B, H, T, d) with unit last stride, any others; valid (B, T) bool or absent; mean, var (H, d)
/// of any floating dtype, written by `batch` (biased), read by `fixed`, absent for `row`. Running
/// mean and var (H, d) of any floating dtype, or absent, become (1 - momentum) of what they were
/// plus momentum of what `batch` wrote; the other modes leave them alone. y, of x's shape: centred,
/// divided by sqrt(var + eps) (in `row` mode of the row itself), then each row divided by its L2
/// norm; rows of a norm up to 1e-12 and invalid rows are 0 (math of ppSBN: nn/README.md).
inline constinit Kernel<void(In, In, SbnStatistics, double, InOut, InOut, InOut, InOut, double,
                             Out)>
    pre_sbn_forward{"pre_sbn_forward", {cpu::pre_sbn_forward}};
/// `batch` differentiates through the statistics; `fixed` treats them as constants.
inline constinit Kernel<void(In, In, In, In, In, SbnStatistics, double, Out)> pre_sbn_backward{
    "pre_sbn_backward", {cpu::pre_sbn_backward}};
/// y = s·(s² + eps²)^((beta-1)/2), s = gamma·x; x (…, d) with unit last stride, gamma and beta (1)
/// or (d).
inline constinit Kernel<void(In, In, In, double, Out)> post_sbn_forward{"post_sbn_forward",
                                                                        {cpu::post_sbn_forward}};
inline constinit Kernel<void(In, In, In, In, double, Out, Out, Out)> post_sbn_backward{
    "post_sbn_backward", {cpu::post_sbn_backward}};

/// q (B, H, T, d), k (B, H, S, d), v (B, H, S, dv), out (B, H, T, dv): last stride 1, others any.
/// key_valid (B, S), query_valid (B, T): bool, true = visible, contiguous, or absent. statistics
/// (B, H, T, 2) of compute_dtype, contiguous: m, the largest of q·k (of -q·k for a negative scale),
/// and Σ exp(|scale| (±q·k - m)), kept apart as in cross_entropy_forward; -inf and 0 where no key
/// is visible (out is 0 there). Never holds a T×S matrix.
inline constinit Kernel<void(In, In, In, In, In, const SoftmaxAttentionArgs&, Out, Out, Scratch)>
    softmax_attention_forward{
        "softmax_attention_forward",
        {cpu::softmax_attention_forward, cpu::softmax_attention_forward_supports,
         cpu::softmax_attention_forward_scratch}};
/// grad and the results have the shapes of out, q, k, v.
inline constinit Kernel<void(In, In, In, In, In, In, In, In, const SoftmaxAttentionArgs&, Out, Out,
                             Out, Scratch)>
    softmax_attention_backward{
        "softmax_attention_backward",
        {cpu::softmax_attention_backward, nullptr, cpu::softmax_attention_backward_scratch}};

/// Operands as in softmax_attention_forward. omega (d, P), or (H, d, P) for draws a head; weight
/// (M); both may be wider, for larger draws to come: what lies beyond P and M is not read. den
/// (B, H, T) of compute_dtype: denominators before flooring. stats (4) float64: denominators, of
/// them floored (without a floor: <= 0), 0, and the smallest den/(visible keys).
inline constinit Kernel<void(In, In, In, In, In, In, In, const RmfaArgs&, Out, Out, Out, Scratch)>
    rmfa_forward{"rmfa_forward",
                 {cpu::rmfa_forward, cpu::rmfa_forward_supports, cpu::rmfa_forward_scratch}};
inline constinit Kernel<void(In, In, In, In, In, In, In, In, In, In, const RmfaArgs&, Out, Out, Out,
                             Scratch)>
    rmfa_backward{"rmfa_backward", {cpu::rmfa_backward, nullptr, cpu::rmfa_backward_scratch}};

/// phi_q (B, H, T, M), phi_k (B, H, S, M), v (B, H, S, dv), out (B, H, T, dv): last stride 1,
/// others any. log_weight (B, H, S) float64, contiguous, or absent; masks as in
/// softmax_attention_forward; then the arguments and whether j <= i + S - T is required. sums (B,
/// H, T, 3) float64: the denominator used over exp(shift); shift; 1, 2 where it was floored, 3
/// where recomputed in log space (0: no visible key). stats (4) float64: denominators, floored,
/// recomputed, and the smallest den/Σ w (of log-features: the smallest shifted den).
inline constinit Kernel<void(In, In, In, In, In, In, const LinearAttentionArgs&, bool, Out, Out,
                             Out, Scratch)>
    linear_attention_forward{"linear_attention_forward",
                             {cpu::linear_attention_forward, cpu::linear_attention_forward_supports,
                              cpu::linear_attention_forward_scratch}};
/// The operands of the forward kernel, its out and sums, grad; writes the gradients of phi_q,
/// phi_k, v and log_weight (absent without it).
inline constinit Kernel<void(In, In, In, In, In, In, In, In, In, const LinearAttentionArgs&, bool,
                             Out, Out, Out, Out, Scratch)>
    linear_attention_backward{
        "linear_attention_backward",
        {cpu::linear_attention_backward, nullptr, cpu::linear_attention_backward_scratch}};

/// Linear attention of q (B, H, T, d) and k (B, H, S, d), whose M features the kernel computes from
/// omega (d, m) or (H, d, m); the other operands, sums and stats as in linear_attention_forward.
/// state (B, H, M, dv) of q's dtype and state_sums (B, H, 2, M + 1) float64 are both absent or,
/// without a causal mask, what the backward kernel then need not sum again: Σ_j φ_k v_jᵀ; Σ_j φ_k
/// and Σ_j w_j; the shifts of the features and of the weights.
inline constinit Kernel<void(In, In, In, In, In, In, In, const ProjectedAttentionArgs&, bool, Out,
                             Out, Out, Out, Out, Scratch)>
    projected_attention_forward{
        "projected_attention_forward",
        {cpu::projected_attention_forward, nullptr, cpu::projected_attention_forward_scratch}};
/// The operands of the forward kernel, its out, sums, state and state_sums, grad; writes the
/// gradients of q, k, v and log_weight (absent without it).
inline constinit Kernel<void(In, In, In, In, In, In, In, In, In, In, In, In,
                             const ProjectedAttentionArgs&, bool, Out, Out, Out, Out, Scratch)>
    projected_attention_backward{
        "projected_attention_backward",
        {cpu::projected_attention_backward, nullptr, cpu::projected_attention_backward_scratch}};

/// Draws of the features of many maps at once, one entry of each list a map. laws: float64 vectors,
/// how many features each degree 0 … kRmfaLayoutLevels has besides the tail, then the weight of a
/// feature of each of these degrees (negative: it has no projection; of degree 0: what it adds to
/// constant), then P[degree >= tail_from + i] of the tail. Written are omega (d, P') or (H, d, P'),
/// weight (M') of omega's dtype and layout (kRmfaLayout) float64, as in RmfaArgs; P' and M' are at
/// least the draw's, with zeros beyond. No feature's degree may be above kRmfaLayoutLevels.
inline constinit Kernel<void(InList, InOutList, InOutList, InOutList,
                             const std::vector<FeatureDrawArgs>&)>
    draw_features{"draw_features", {cpu::draw_features}};

/// Parameters, masters, gradients, first and second moments: every tensor contiguous, one entry of
/// each list a parameter. Without masters (an empty list) moments have the parameter's dtype. With
/// them parameters are bfloat16, masters and moments float32: the master is updated, and the
/// parameter becomes the master rounded.
inline constinit Kernel<void(InOutList, InOutList, InList, InOutList, InOutList, const AdamArgs&)>
    adam{"adam", {cpu::adam}};
/// Lists as those of adam, with one moment: b = momentum·b + gradient, parameter -= lr·b (Sutskever
/// et al. 2013, in PyTorch's form). Without moments (an empty list) b is the gradient.
inline constinit Kernel<void(InOutList, InOutList, InList, InOutList, const SgdArgs&)> sgd{
    "sgd", {cpu::sgd}};
/// total (1) float64: sum of squares of all elements of all tensors.
inline constinit Kernel<void(InList, Out)> sum_of_squares{"sum_of_squares", {cpu::sum_of_squares}};

}  // namespace kernels
}  // namespace macgrad
