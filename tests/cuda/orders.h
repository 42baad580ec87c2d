// A result must have the same bits every time: in every order of threads that the emulator
// knows, and on a GPU in one run after the other.
#pragma once

#include <doctest/doctest.h>

#include <cstring>

#include "macgrad/core/tensor.h"
#ifdef MACGRAD_CUDA_EMULATED
#include "macgrad/tests/cuda/emulation/machine.h"
#endif

namespace macgrad::testing {

inline bool same_bits(const Tensor& a, const Tensor& b) {
  const Tensor x = a.to(kCpu).contiguous(), y = b.to(kCpu).contiguous();
  return x.shape() == y.shape() && x.dtype() == y.dtype() &&
         (x.numel() == 0 || std::memcmp(x.raw(), y.raw(), x.bytes()) == 0);
}

/// Calls f(), which makes a Tensor, and again in other orders of threads; returns the first result,
/// on the CPU.
template <class F>
Tensor same_in_any_order(F&& f) {
  const Tensor first = f().to(kCpu);
  for (int run = 0; run < 2; ++run) {
#ifdef MACGRAD_CUDA_EMULATED
    emulation::set_order(run == 0 ? emulation::Order::backward : emulation::Order::scattered);
#endif
    CHECK(same_bits(f(), first));
  }
#ifdef MACGRAD_CUDA_EMULATED
  emulation::set_order(emulation::Order::forward);
#endif
  return first;
}

}  // namespace macgrad::testing
