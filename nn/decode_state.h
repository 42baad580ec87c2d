// What attention keeps between the steps of decoding, row by row of the batch. Softmax and exact
// attention keep keys and values; linear attention the sums of nn/README.md, equation (16), of
// constant size. Values only: decoding does not record. Shape letters: B rows, H heads, S keys so
// far, d head dimension, dv value dimension, M features.
#pragma once

#include <utility>

#include "macgrad/autograd/variable.h"

namespace macgrad::nn {

/// Of one attention; empty before its first keys. Appending writes in place, so a state moves but
/// does not copy.
class DecodeState {
 public:
  DecodeState() = default;
  DecodeState(DecodeState&&) = default;
  DecodeState& operator=(DecodeState&&) = default;

  /// Keys seen, padded ones included.
  int64_t length() const { return length_; }
  int64_t rows() const { return length_ == 0 ? 0 : (k_.defined() ? k_ : sums_).size(0); }

  /// Appends k (B,H,n,d) and v (B,H,n,dv) unless they are undefined, and gives all so far:
  /// (B,H,S,d) and (B,H,S,dv), views that hold until the next append.
  std::pair<Variable, Variable> append(const Variable& k, const Variable& v);

  /// Adds n keys to the sums of linear attention: features (B,H,n,M) φ or log φ, or undefined for
  /// M = 0; log_weight ℓ (B,H,n) or undefined; values (B,H,n,dv+1) = [v, 1], with zero rows for
  /// padding. Features and values have a compute_dtype: in bfloat16 256 + 1 is 256. With log φ or ℓ
  /// the sums are kept relative to running maxima (nn/README.md), so that they neither
  /// overflow nor underflow.
  void add(const Variable& features, bool log_features, const Variable& log_weight,
           const Variable& values);
  /// Σ φ w [v, 1] (B,H,M,dv+1), undefined without features, and Σ w [v, 1] (B,H,1,dv+1), both times
  /// exp(-shift()). With log φ the latter is Σ [v, 1].
  const Tensor& products() const { return products_; }
  const Tensor& sums() const { return sums_; }
  /// float64 (B,H,M,1): the running maximum of log φ + ℓ of each feature; (B,H,1,1), that of ℓ,
  /// where features are given; undefined without either.
  const Tensor& shift() const { return shift_; }
  /// Keys that are no padding, (B,H,1,1).
  const Tensor& count() const { return count_; }

  /// Row i becomes the present row rows[i] (int64, on the state's device); rows may repeat or be
  /// missing.
  void select(const Tensor& rows);

 private:
  int64_t length_ = 0;
  Tensor k_, v_;  // (B,H,capacity,·), the first length_ places in use
  Tensor products_, sums_, shift_, count_;
};

/// Of one decoder layer. A row of `source` is a sentence, a row of `self` one of its hypotheses.
struct LayerState {
  DecodeState self;
  DecodeState source;
};

}  // namespace macgrad::nn
