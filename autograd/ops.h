// Every differentiable op. Each is one function in autograd/ops_*.cpp with its gradient rule beside
// it, written in these same ops, so a second derivative is the rule run again. Shapes broadcast as
// in NumPy; dtypes and devices of the operands must agree; errors name op, shapes and scope.
//
// Negative dimensions count from the end. Index and mask operands are Tensors (int64, bool): they
// have no gradient.
#pragma once

#include <limits>
#include <vector>

#include "macgrad/autograd/variable.h"
#include "macgrad/core/generator.h"

namespace macgrad {

// Arithmetic (ops_elementwise.cpp).
Variable add(const Variable& a, const Variable& b);
Variable sub(const Variable& a, const Variable& b);
Variable mul(const Variable& a, const Variable& b);
Variable div(const Variable& a, const Variable& b);
Variable neg(const Variable& x);
/// Larger / smaller of two; equal values share the gradient half and half.
Variable maximum(const Variable& a, const Variable& b);
Variable minimum(const Variable& a, const Variable& b);
/// a^b; the gradient of b takes log a, and is 0 where a = 0.
Variable pow(const Variable& a, const Variable& b);
Variable pow(const Variable& a, double exponent);
/// sign(a)·|a|^b; the gradient of b is 0 where a = 0.
Variable signed_pow(const Variable& a, const Variable& b);

Variable exp(const Variable& x);
Variable expm1(const Variable& x);
Variable log(const Variable& x);
Variable log1p(const Variable& x);
Variable sqrt(const Variable& x);
Variable rsqrt(const Variable& x);
Variable reciprocal(const Variable& x);
/// Gradient sign(x): 0 at 0.
Variable abs(const Variable& x);
/// Gradient 0 everywhere.
Variable sign(const Variable& x);
Variable sin(const Variable& x);
Variable cos(const Variable& x);
Variable sinh(const Variable& x);
Variable cosh(const Variable& x);
Variable tanh(const Variable& x);
Variable sigmoid(const Variable& x);
/// Gradient 0 at 0.
Variable relu(const Variable& x);
/// x·Φ(x) (Hendrycks & Gimpel 2016), exact and in the tanh form.
Variable gelu(const Variable& x);
Variable gelu_tanh(const Variable& x);
Variable erf(const Variable& x);
/// Gradient 1 inside and on the bounds, 0 outside.
Variable clamp(const Variable& x, double low, double high);
/// condition: bool Tensor; shapes broadcast.
Variable where(const Tensor& condition, const Variable& a, const Variable& b);
Variable where(const Tensor& condition, const Variable& a, double b);
/// x with `value` where mask is true.
Variable masked_fill(const Variable& x, const Tensor& mask, double value);
/// The same value in another floating dtype.
Variable cast(const Variable& x, DType dtype);
/// A new node with the same value: something to differentiate with respect to.
Variable identity(const Variable& x);

// Comparisons give bool Tensors; shapes broadcast.
Tensor equal(const Tensor& a, const Tensor& b);
Tensor not_equal(const Tensor& a, const Tensor& b);
Tensor less(const Tensor& a, const Tensor& b);
Tensor less_equal(const Tensor& a, const Tensor& b);
Tensor greater(const Tensor& a, const Tensor& b);
Tensor greater_equal(const Tensor& a, const Tensor& b);
Tensor less(const Tensor& a, double b);
Tensor greater(const Tensor& a, double b);
Tensor equal(const Tensor& a, double b);

// With numbers.
Variable add(const Variable& a, double b);
Variable mul(const Variable& a, double b);
inline Variable operator+(const Variable& a, const Variable& b) {
  return add(a, b);
}
inline Variable operator-(const Variable& a, const Variable& b) {
  return sub(a, b);
}
inline Variable operator*(const Variable& a, const Variable& b) {
  return mul(a, b);
}
inline Variable operator/(const Variable& a, const Variable& b) {
  return div(a, b);
}
inline Variable operator-(const Variable& x) {
  return neg(x);
}
inline Variable operator+(const Variable& a, double b) {
  return add(a, b);
}
inline Variable operator+(double a, const Variable& b) {
  return add(b, a);
}
inline Variable operator-(const Variable& a, double b) {
  return add(a, -b);
}
inline Variable operator-(double a, const Variable& b) {
  return add(neg(b), a);
}
inline Variable operator*(const Variable& a, double b) {
  return mul(a, b);
}
inline Variable operator*(double a, const Variable& b) {
  return mul(b, a);
}
inline Variable operator/(const Variable& a, double b) {
  return mul(a, 1.0 / b);
}
inline Variable operator/(double a, const Variable& b) {
  return mul(reciprocal(b), a);
}

// Reductions (ops_reduce.cpp). `dims` empty: all. A dimension counts from 0, or back from -1, in
// all of these ops; one that x does not have is an Error. With keepdim reduced dimensions stay with
// extent 1.
Variable sum(const Variable& x, std::vector<int> dims = {}, bool keepdim = false);
Variable mean(const Variable& x, std::vector<int> dims = {}, bool keepdim = false);
/// Variance; `correction` is subtracted from the count (1: unbiased).
Variable var(const Variable& x, std::vector<int> dims = {}, double correction = 1.0,
             bool keepdim = false);
/// Values and int64 indices of the extremum along `dim` (the first of equals gets the gradient).
std::pair<Variable, Tensor> max(const Variable& x, int dim, bool keepdim = false);
std::pair<Variable, Tensor> min(const Variable& x, int dim, bool keepdim = false);
/// The int64 indices alone, of the largest elements (the first of equals). [argmax] is an Error
/// for a dimension that x does not have, [max] for an empty one.
Tensor argmax(const Tensor& x, int dim, bool keepdim = false);
/// Product along `dim`; right at zeros to any order.
Variable prod(const Variable& x, int dim, bool keepdim = false);
/// y[k] = x[0] + … + x[k] along `dim`, x's shape; reverse: x[k] + … + x[last].
Variable cumsum(const Variable& x, int dim, bool reverse = false);
/// log Σ exp(x) along `dim`, shifted by the maximum; -inf where all is -inf.
Variable logsumexp(const Variable& x, int dim, bool keepdim = false);
/// Sums broadcast dimensions away: the reverse of expand.
Variable sum_to(const Variable& x, const Shape& shape);

// Products (ops_matmul.cpp).
/// a (…, M, K) · b (…, K, N), leading dimensions broadcast; transposed views are not copied.
Variable matmul(const Variable& a, const Variable& b);
/// x (…, I) · weightᵀ (I, O) + bias (O); bias may be undefined.
Variable linear(const Variable& x, const Variable& weight, const Variable& bias);

// Shapes (ops_shape.cpp): views where strides allow it. One extent of reshape may be -1: what is
// left. expand repeats extents of 1 and adds dimensions in front; squeeze wants an extent of 1;
// slice is [start, end) with step >= 1; concat joins along `dim`, stack along a new one.
Variable reshape(const Variable& x, const Shape& shape);
Variable permute(const Variable& x, std::vector<int> dims);
Variable transpose(const Variable& x, int dim0, int dim1);
Variable expand(const Variable& x, const Shape& shape);
Variable unsqueeze(const Variable& x, int dim);
Variable squeeze(const Variable& x, int dim);
Variable slice(const Variable& x, int dim, int64_t start, int64_t end, int64_t step = 1);
Variable select(const Variable& x, int dim, int64_t index);
Variable concat(const Variables& parts, int dim);
Variable stack(const Variables& parts, int dim);
/// Pieces of the given sizes along `dim`; they must add up.
Variables split(const Variable& x, const std::vector<int64_t>& sizes, int dim);
/// `before` and `after` elements of `value` around `dim`.
Variable pad(const Variable& x, int dim, int64_t before, int64_t after, double value = 0.0);
/// A contiguous copy when needed.
Variable contiguous(const Variable& x);

// Indexing (ops_index.cpp): int64, from 0; an index outside is an Error (on a GPU at the next time
// that the host reads a value).
/// y[…, k, …] = x[…, index[…, k, …], …] along `dim`; index has x's rank, and x's extents but at
/// `dim`.
Variable gather(const Variable& x, int dim, const Tensor& index);
/// x plus source[…, k, …] at index[…, k, …] along `dim`.
Variable scatter_add(const Variable& x, int dim, const Tensor& index, const Variable& source);
/// index (K): those slices along `dim`.
Variable index_select(const Variable& x, int dim, const Tensor& index);
/// x plus slice k of source at index[k] along `dim`.
Variable index_add(const Variable& x, int dim, const Tensor& index, const Variable& source);
/// Rows of weight (V, C) at index (…) -> (…, C). An index outside [0, V) is an error.
Variable embedding(const Variable& weight, const Tensor& index);

// Normalised exponentials, norms, losses (fused_rows.cpp). Fused; each has a composite.
/// Along `dim`, x's shape; NaN where all of a row is -inf.
Variable softmax(const Variable& x, int dim);
Variable log_softmax(const Variable& x, int dim);
/// x (…, N), weight and bias (N): biased variance over N, y = (x - mean)/sqrt(var + eps)·w + b.
Variable layer_norm(const Variable& x, const Variable& weight, const Variable& bias, double eps);
enum class Reduction { mean, sum, none };
/// logits (R, V), target (R) int64. Target distribution (1-s) on the target + s/V everywhere; rows
/// with target == ignore_index count nothing. Mean is over the rows that count; none -> (R). The
/// loss is of compute_dtype: float32 for bfloat16 logits.
inline constexpr int64_t kNoIgnore = std::numeric_limits<int64_t>::min();
Variable cross_entropy(const Variable& logits, const Tensor& target, double smoothing = 0.0,
                       int64_t ignore_index = kNoIgnore, Reduction reduction = Reduction::mean);

/// x/(1-p) where the draw keeps an element, else 0; the key replays the same mask.
Variable dropout(const Variable& x, double p, const DrawKey& key);

}  // namespace macgrad
