// What preSBN and postSBN share: small tensors of any floating dtype as one value a channel, which
// a thread looks up once for the channels it keeps.
//
// Shape letters: d head dimension (channels).
#pragma once

#include "macgrad/cuda/columns.cuh"

namespace macgrad::cuda {

/// A small contiguous tensor, stored as T or as the type that kernels on T compute in; one value
/// stands for every channel.
template <class T>
class ChannelTensor {
 public:
  using C = compute_t<T>;

  /// Any floating dtype; absent where no value is asked for.
  explicit ChannelTensor(const Tensor& t) {
    if (!t.defined()) return;
    const bool as_is = t.dtype() == dtype_of<T>() || t.dtype() == dtype_of<C>();
    values_ = as_is ? t : t.to(dtype_of<C>());
  }
  struct View {
    const void* data;
    bool computed;  // stored as C
    int64_t step;

    __device__ C at(int64_t i) const {
      i *= step;
      if constexpr (!std::is_same_v<T, C>)
        if (!computed) return load(static_cast<const T*>(data) + i);
      return static_cast<const C*>(data)[i];
    }
  };
  View view() const {
    if (!values_.defined()) return {nullptr, true, 0};
    return {values_.raw(), values_.dtype() == dtype_of<C>(), values_.numel() == 1 ? 0 : 1};
  }

 private:
  Tensor values_;  // alive until the kernels that read it are queued
};

/// f(channel) of a thread's channels: kept where rows R are in registers, else asked for again.
template <class C, class R, class F>
class ChannelValues {
 public:
  __device__ ChannelValues(int64_t d, int member, F f) : f_(f) {
    if constexpr (R::in_registers)
      each_column<R>(d, member, [&](int k, int column) {
#pragma unroll
        for (int j = 0; j < R::vec; ++j) values_[k][j] = f_(column + j);
      });
  }
  template <class Index>
  __device__ C at(int k, Index column, int j) const {
    if constexpr (R::in_registers) return values_[k][j];
    return f_(column + j);
  }

 private:
  F f_;
  C values_[R::slots][R::vec];
};
template <class C, class R, class F>
__device__ inline ChannelValues<C, R, F> channel_values(int64_t d, int member, F f) {
  return {d, member, f};
}

/// dispatch_rows for rows as short as heads are: fewer ways, since these kernels are large.
template <class T, class F>
void dispatch_channels(int64_t d, bool aligned, F&& f) {
  constexpr int full = static_cast<int>(16 / sizeof(T));
  if (aligned && d % full == 0) {
    const int64_t units = d / full;
    if (units <= 8) return f.template operator()<full, 8, 1>();
    if (units <= 16) return f.template operator()<full, 16, 1>();
    if (units <= 32) return f.template operator()<full, 32, 1>();
    if (units <= 128) return f.template operator()<full, 32, 4>();
  } else if (d <= 128) {
    return f.template operator()<1, 32, 4>();
  }
  return f.template operator()<1, kLongTeam, 0>();
}

}  // namespace macgrad::cuda
