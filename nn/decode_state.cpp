// Growing and reordering decoding states.
#include "macgrad/nn/decode_state.h"

#include <algorithm>

#include "macgrad/autograd/ops.h"
#include "macgrad/autograd/scope.h"
#include "macgrad/core/kernels/arrays.h"

namespace macgrad::nn {
namespace {

constexpr double kLowest = -1e300;

void check_not_recording() {
  check(!grad_enabled(), "[decode] a decoding state is written in place; open a {} around decoding",
        "NoGrad");
}

// Writes `fresh` behind the first `length` places of `kept` (B,H,capacity,·), in a larger tensor
// when they do not fit.
void append_places(Tensor& kept, int64_t length, const Tensor& fresh) {
  const int64_t total = length + fresh.size(2);
  if (!kept.defined()) {
    // A source comes whole; a translation grows.
    kept = Tensor::empty(fresh.shape(), fresh.dtype(), fresh.device());
  } else if (kept.size(2) < total) {
    const int64_t capacity = std::max({total, length + length / 2, int64_t{16}});
    const Tensor wider =
        Tensor::empty(fresh.shape().with(2, capacity), fresh.dtype(), fresh.device());
    wider.slice(2, 0, length).copy_from(kept.slice(2, 0, length));
    kept = wider;
  }
  kept.slice(2, length, total).copy_from(fresh);
}

void select_rows(Tensor& t, const Tensor& rows) {
  if (t.defined()) t = index_select(Variable(t), 0, rows).value();
}

}  // namespace

std::pair<Variable, Variable> DecodeState::append(const Variable& k, const Variable& v) {
  check_not_recording();
  if (k.defined()) {
    append_places(k_, length_, k.value());
    append_places(v_, length_, v.value());
    length_ += k.size(2);
  }
  check(length_ > 0, "[decode] the state is empty: {}", "the first call must bring keys");
  return {Variable(k_.slice(2, 0, length_)), Variable(v_.slice(2, 0, length_))};
}

void DecodeState::add(const Variable& features, bool log_features, const Variable& log_weight,
                      const Variable& values) {
  check_not_recording();
  const DType wide = values.dtype();
  const int64_t last = values.size(3) - 1;
  const Variable ones = slice(values, 3, last, last + 1);  // 0 for padding
  const auto plus = [](const Tensor& kept, const Variable& fresh) {
    return kept.defined() ? macgrad::add(Variable(kept), fresh).value() : fresh.value();
  };
  check(length_ == 0 || log_features || log_weight.defined() == shift_.defined(),
        "[decode] {} key weights, but the keys before had {}: give them to all keys or to none",
        log_weight.defined() ? "there are" : "there are no", shift_.defined() ? "some" : "none");
  Variable phi = features, weighted = values;
  if (log_features || log_weight.defined()) {
    Variable a;  // log φ + ℓ, or ℓ
    if (log_weight.defined()) a = cast(unsqueeze(log_weight, 3), DType::float64);
    if (log_features) {
      const Variable log_phi = cast(features, DType::float64);
      a = a.defined() ? macgrad::add(log_phi, a) : log_phi;
    }
    // A finite stand-in for -inf: the difference of two infinities is NaN.
    a = maximum(masked_fill(a, equal(ones.value(), 0.0), kLowest),
                Variable(Tensor::full(Shape{}, kLowest, DType::float64, a.device())));
    Variable shift = transpose(max(a, 2, true).first, 2, 3);
    if (shift_.defined()) {
      shift = maximum(shift, Variable(shift_));
      const Variable shrink = cast(exp(sub(Variable(shift_), shift)), wide);
      if (products_.defined()) products_ = mul(Variable(products_), shrink).value();
      if (!log_features) sums_ = mul(Variable(sums_), shrink).value();
    }
    shift_ = shift.value();
    const Variable factor = cast(exp(sub(a, transpose(shift, 2, 3))), wide);
    if (log_features)
      phi = factor;
    else
      weighted = mul(values, factor);
  }
  sums_ = plus(sums_, sum(weighted, {2}, true));
  count_ = plus(count_, sum(ones, {2}, true));
  if (phi.defined()) {
    const bool first = !products_.defined();
    if (first)
      products_ = Tensor::empty(Shape{phi.size(0), phi.size(1), phi.size(3), values.size(3)},
                                phi.dtype(), phi.device());
    kernels::matmul(phi.value().contiguous().transpose(2, 3), weighted.value().contiguous(),
                    products_, 1.0, first ? 0.0 : 1.0);
  }
  length_ += values.size(2);
}

void DecodeState::select(const Tensor& rows) {
  select_rows(k_, rows);
  select_rows(v_, rows);
  select_rows(products_, rows);
  select_rows(sums_, rows);
  select_rows(shift_, rows);
  select_rows(count_, rows);
}

}  // namespace macgrad::nn
