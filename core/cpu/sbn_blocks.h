// What preSBN and postSBN share: small tensors of any floating dtype as values to compute with, and
// sums over rows. Those are taken over fixed blocks, and the blocks in order, so that they do not
// depend on the number of threads.
#pragma once

#include <algorithm>
#include <vector>

#include "macgrad/core/cpu/parallel.h"
#include "macgrad/core/kernels/sbn.h"

namespace macgrad::cpu::sbn {

inline constexpr int64_t kRowBlock = 128;

/// Tasks of one block of rows each that make a block for a thread.
inline int64_t task_grain(int64_t d) {
  return std::max<int64_t>(1, kElementGrain / (kRowBlock * std::max<int64_t>(1, d)));
}

/// The values of a small tensor of any floating dtype (absent: none).
template <class C>
std::vector<C> values_of(const Tensor& t) {
  std::vector<C> values;
  if (!t.defined()) return values;
  dispatch_floating(t.dtype(), "sbn", [&]<class T>() {
    const T* p = t.data<T>();
    for (int64_t i = 0; i < t.numel(); ++i) {
      values.push_back(static_cast<C>(static_cast<compute_t<T>>(p[i])));
    }
  });
  return values;
}

template <class C>
void store(const std::vector<C>& values, const Tensor& t) {
  dispatch_floating(t.dtype(), "sbn", [&]<class T>() {
    T* p = t.data<T>();
    for (size_t i = 0; i < values.size(); ++i) {
      p[i] = static_cast<T>(static_cast<compute_t<T>>(values[i]));
    }
  });
}

/// Sums two vectors of length `n` over blocks, in order: partial (blocks, 2, n).
template <class C>
void merge(const C* partial, int64_t blocks, int64_t n, std::vector<double>& first,
           std::vector<double>& second) {
  for (int64_t block = 0; block < blocks; ++block) {
    const C* p = partial + block * 2 * n;
    for (int64_t c = 0; c < n; ++c) {
      first[static_cast<size_t>(c)] += static_cast<double>(p[c]);
      second[static_cast<size_t>(c)] += static_cast<double>(p[n + c]);
    }
  }
}

}  // namespace macgrad::cpu::sbn
