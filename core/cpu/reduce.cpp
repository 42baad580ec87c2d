// Reductions of the middle dimension of (A, R, N). Long sums are cut into blocks of fixed size
// whose partial results are added in order: accurate, and the same at any thread count.

#include <algorithm>
#include <vector>

#include "macgrad/core/cpu/parallel.h"
#include "macgrad/core/kernels/arrays.h"

namespace macgrad::cpu {
namespace {

constexpr int64_t kRowBlock = 4096;    // elements of a contiguous sum before it is added in double
constexpr int64_t kColumnRows = 128;   // rows added in the compute type before going to the total
constexpr int64_t kColumnBlock = 256;  // columns a task of a column sum works on

constexpr int64_t kLanes = 32;  // partial sums of a block: short chains round little

// The same sums with and without vector instructions.
template <class T>
compute_t<T> block_sum(const T* x, int64_t n) {
  using C = compute_t<T>;
  C lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
#pragma omp simd
    for (int64_t l = 0; l < kLanes; ++l) lanes[l] += static_cast<C>(x[i + l]);
  }
  for (int64_t l = 0; i < n; ++i, ++l) lanes[l] += static_cast<C>(x[i]);
  for (int64_t width = kLanes / 2; width > 0; width /= 2)
    for (int64_t l = 0; l < width; ++l) lanes[l] += lanes[l + width];
  return lanes[0];
}

template <class T>
void sum_rows(const T* x, T* y, int64_t rows, int64_t n) {
  using C = compute_t<T>;
  const int64_t pieces = (n + kRowBlock - 1) / kRowBlock;
  if (pieces <= 1) {
    parallel_blocks(rows, std::max<int64_t>(1, kElementGrain / std::max<int64_t>(1, n)),
                    [&](int64_t first, int64_t last) {
                      for (int64_t r = first; r < last; ++r)
                        y[r] = static_cast<T>(block_sum(x + r * n, n));
                    });
    return;
  }
  std::vector<C> partial(static_cast<size_t>(rows * pieces));
  parallel_blocks(rows * pieces, 4, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const int64_t begin = (i % pieces) * kRowBlock;
      partial[static_cast<size_t>(i)] =
          block_sum(x + (i / pieces) * n + begin, std::min(kRowBlock, n - begin));
    }
  });
  for (int64_t r = 0; r < rows; ++r) {
    double total = 0;
    for (int64_t p = 0; p < pieces; ++p)
      total += static_cast<double>(partial[static_cast<size_t>(r * pieces + p)]);
    y[r] = static_cast<T>(static_cast<C>(total));
  }
}

// Adds rows [r0, r1) of the columns [c0, c1) into total.
template <class T, class C>
void add_rows(const T* x, int64_t n, int64_t r0, int64_t r1, int64_t c0, int64_t c1, C* total) {
  for (int64_t r = r0; r < r1; ++r) {
    const T* row = x + r * n + c0;
#pragma omp simd
    for (int64_t c = 0; c < c1 - c0; ++c) total[c] += static_cast<C>(row[c]);
  }
}

template <class T>
void sum_columns(const T* x, T* y, int64_t outer, int64_t rows, int64_t n) {
  using C = compute_t<T>;
  const int64_t column_blocks = (n + kColumnBlock - 1) / kColumnBlock;
  // Tall and narrow: row blocks are the parallel dimension, their partial sums are added in order.
  const int64_t tall = 8 * kColumnRows;
  const int64_t row_blocks = (rows + tall - 1) / tall;
  std::vector<C> partial(static_cast<size_t>(outer * row_blocks * n), C(0));
  parallel_blocks(
      outer * row_blocks * column_blocks,
      std::max<int64_t>(1, kElementGrain / std::max<int64_t>(1, std::min(rows, tall) *
                                                                    std::min(n, kColumnBlock))),
      [&](int64_t first, int64_t last) {
        C block[kColumnBlock];
        for (int64_t i = first; i < last; ++i) {
          const int64_t a = i / (row_blocks * column_blocks);
          const int64_t rb = i / column_blocks % row_blocks;
          const int64_t c0 = (i % column_blocks) * kColumnBlock;
          const int64_t c1 = std::min(n, c0 + kColumnBlock);
          C* total = partial.data() + (a * row_blocks + rb) * n + c0;
          const int64_t end = std::min(rows, (rb + 1) * tall);
          for (int64_t r0 = rb * tall; r0 < end; r0 += kColumnRows) {
            std::fill_n(block, c1 - c0, C(0));
            add_rows(x + a * rows * n, n, r0, std::min(end, r0 + kColumnRows), c0, c1, block);
            for (int64_t c = 0; c < c1 - c0; ++c) total[c] += block[c];
          }
        }
      });
  for (int64_t a = 0; a < outer; ++a) {
    for (int64_t c = 0; c < n; ++c) {
      double total = 0;
      for (int64_t rb = 0; rb < row_blocks; ++rb)
        total += static_cast<double>(partial[static_cast<size_t>((a * row_blocks + rb) * n + c)]);
      y[a * n + c] = static_cast<T>(static_cast<C>(total));
    }
  }
}

template <class Better>
void extremum(const char* op, const Tensor& x, const Tensor& y, const Tensor& index,
              Better better) {
  const int64_t outer = x.size(0), rows = x.size(1), n = x.size(2);
  require(rows >= 1, "[{}] of an empty dimension, shape {}", op, x.shape());
  int64_t* where = index.data<int64_t>();
  dispatch_floating(x.dtype(), op, [&]<class T>() {
    using C = compute_t<T>;
    const T* px = x.data<T>();
    T* py = y.data<T>();
    parallel_blocks(outer * n, std::max<int64_t>(1, kElementGrain / rows),
                    [&](int64_t first, int64_t last) {
                      for (int64_t i = first; i < last; ++i) {
                        const T* p = px + (i / n) * rows * n + i % n;
                        C best = static_cast<C>(p[0]);
                        int64_t at = 0;
                        for (int64_t r = 1; r < rows && best == best; ++r) {
                          const C v = static_cast<C>(p[r * n]);
                          if (better(v, best) || v != v) {
                            best = v;
                            at = r;
                          }
                        }
                        py[i] = static_cast<T>(best);
                        where[i] = at;
                      }
                    });
  });
}

}  // namespace

void sum(In x, Out y) {
  const int64_t outer = x->size(0), rows = x->size(1), n = x->size(2);
  dispatch_floating(x->dtype(), "sum", [&]<class T>() {
    if (n == 1) {
      sum_rows(x->data<T>(), y->data<T>(), outer, rows);
    } else {
      sum_columns(x->data<T>(), y->data<T>(), outer, rows, n);
    }
  });
}

void max(In x, Out y, Out index) {
  extremum("max", x, y, index, [](auto a, auto b) { return a > b; });
}
void min(In x, Out y, Out index) {
  extremum("min", x, y, index, [](auto a, auto b) { return a < b; });
}

void cumsum(In x, Out y, bool reverse) {
  const int64_t outer = x->size(0), rows = x->size(1), n = x->size(2);
  if (rows == 0) return;
  dispatch_floating(x->dtype(), "cumsum", [&]<class T>() {
    using C = compute_t<T>;
    const T* px = x->data<T>();
    T* py = y->data<T>();
    parallel_blocks(outer * n, std::max<int64_t>(1, kElementGrain / rows),
                    [&](int64_t first, int64_t last) {
                      for (int64_t i = first; i < last; ++i) {
                        const int64_t base = (i / n) * rows * n + i % n;
                        C total = 0;
                        for (int64_t r = 0; r < rows; ++r) {
                          const int64_t at = base + (reverse ? rows - 1 - r : r) * n;
                          total += static_cast<C>(px[at]);
                          py[at] = static_cast<T>(total);
                        }
                      }
                    });
  });
}

}  // namespace macgrad::cpu
