// Growing and reordering decoding states.
#include "macgrad/nn/decode_state.h"

#include <algorithm>

#include "macgrad/autograd/ops.h"
#include "macgrad/autograd/scope.h"
#include "macgrad/core/kernels.h"

namespace macgrad::nn {
namespace {

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

void DecodeState::add(const Variable& phi, const Variable& values) {
  check_not_recording();
  const Tensor now = sum(values, {2}, true).value();
  sums_ = sums_.defined() ? macgrad::add(Variable(sums_), Variable(now)).value() : now;
  if (phi.defined()) {
    const bool first = !products_.defined();
    if (first)
      products_ = Tensor::empty(Shape{phi.size(0), phi.size(1), phi.size(3), values.size(3)},
                                phi.dtype(), phi.device());
    kernels::matmul(phi.value().contiguous().transpose(2, 3), values.value().contiguous(),
                    products_, 1.0, first ? 0.0 : 1.0);
  }
  length_ += values.size(2);
}

void DecodeState::select(const Tensor& rows) {
  select_rows(k_, rows);
  select_rows(v_, rows);
  select_rows(products_, rows);
  select_rows(sums_, rows);
}

}  // namespace macgrad::nn
