// Gathers and scatters over (A, R, N). Sums into one place go in order of k, by one thread, so the
// result does not depend on the number of threads.

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "macgrad/core/cpu/parallel.h"
#include "macgrad/core/kernels/arrays.h"

namespace macgrad::cpu {
namespace {

void check_range(const char* op, const Tensor& index, int64_t extent) {
  const int64_t* p = index.data<int64_t>();
  for (int64_t i = 0; i < index.numel(); ++i)
    require(p[i] >= 0 && p[i] < extent, "[{}] index {} at place {} is outside [0, {})", op, p[i], i,
            extent);
}

// Columns a task of a scatter owns.
constexpr int64_t kColumns = 64;

// Tasks of a scatter of k rows that are worth a block of their own.
int64_t task_grain(int64_t k, int64_t n) {
  return std::max<int64_t>(1, kElementGrain / std::max<int64_t>(1, k * std::min(n, kColumns)));
}

}  // namespace

void gather(In x, In index, Out y) {
  const int64_t outer = x->size(0), rows = x->size(1), n = x->size(2), k = index->size(1);
  check_range("gather", index, rows);
  const int64_t* at = index->data<int64_t>();
  dispatch_any(x->dtype(), [&]<class T>() {
    const T* px = x->data<T>();
    T* py = y->data<T>();
    parallel_blocks(outer * k, std::max<int64_t>(1, kElementGrain / std::max<int64_t>(1, n)),
                    [&](int64_t first, int64_t last) {
                      for (int64_t i = first; i < last; ++i)
                        for (int64_t c = 0; c < n; ++c)
                          py[i * n + c] = px[((i / k) * rows + at[i * n + c]) * n + c];
                    });
  });
}

void scatter_add(In index, In source, InOut y) {
  const int64_t outer = y->size(0), rows = y->size(1), n = y->size(2), k = index->size(1);
  check_range("scatter_add", index, rows);
  const int64_t* at = index->data<int64_t>();
  const int64_t pieces = (n + kColumns - 1) / kColumns;
  dispatch_floating(y->dtype(), "scatter_add", [&]<class T>() {
    using C = compute_t<T>;
    const Tensor sums = y->to(dtype_of<C>());
    const T* ps = source->data<T>();
    C* py = sums.data<C>();
    parallel_blocks(outer * pieces, task_grain(k, n), [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) {
        const int64_t a = i / pieces, c0 = (i % pieces) * kColumns;
        const int64_t c1 = std::min(n, c0 + kColumns);
        for (int64_t j = 0; j < k; ++j) {
          for (int64_t c = c0; c < c1; ++c) {
            const int64_t from = (a * k + j) * n + c;
            py[(a * rows + at[from]) * n + c] += static_cast<C>(ps[from]);
          }
        }
      }
    });
    if constexpr (!std::is_same_v<T, C>) y->copy_from(sums);
  });
}

void index_select(In x, In index, Out y) {
  const int64_t outer = x->size(0), rows = x->size(1), n = x->size(2), k = index->size(0);
  check_range("index_select", index, rows);
  const int64_t* at = index->data<int64_t>();
  dispatch_any(x->dtype(), [&]<class T>() {
    const T* px = x->data<T>();
    T* py = y->data<T>();
    parallel_blocks(outer * k, std::max<int64_t>(1, kElementGrain / std::max<int64_t>(1, n)),
                    [&](int64_t first, int64_t last) {
                      for (int64_t i = first; i < last; ++i)
                        std::memcpy(py + i * n, px + ((i / k) * rows + at[i % k]) * n,
                                    static_cast<size_t>(n) * sizeof(T));
                    });
  });
}

void index_add(In index, In source, InOut y) {
  const int64_t outer = y->size(0), rows = y->size(1), n = y->size(2), k = index->size(0);
  check_range("index_add", index, rows);
  const int64_t* at = index->data<int64_t>();
  const int64_t pieces = (n + kColumns - 1) / kColumns;
  dispatch_floating(y->dtype(), "index_add", [&]<class T>() {
    using C = compute_t<T>;
    const Tensor sums = y->to(dtype_of<C>());
    const T* ps = source->data<T>();
    C* py = sums.data<C>();
    parallel_blocks(outer * pieces, task_grain(k, n), [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) {
        const int64_t a = i / pieces, c0 = (i % pieces) * kColumns;
        const int64_t columns = std::min(n, c0 + kColumns) - c0;
        for (int64_t j = 0; j < k; ++j) {
          const T* from = ps + (a * k + j) * n + c0;
          C* to = py + (a * rows + at[j]) * n + c0;
#pragma omp simd
          for (int64_t c = 0; c < columns; ++c) to[c] += static_cast<C>(from[c]);
        }
      }
    });
    if constexpr (!std::is_same_v<T, C>) y->copy_from(sums);
  });
}

}  // namespace macgrad::cpu
