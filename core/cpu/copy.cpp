// Copies with any strides between any dtypes, and fills. A transposition is walked in tiles so that
// both sides stay in cache.

#include <algorithm>
#include <cstring>

#include "macgrad/core/convert.h"
#include "macgrad/core/cpu/strided.h"
#include "macgrad/core/kernels/arrays.h"

namespace macgrad::cpu {
namespace {

constexpr int64_t kTile = 32;

// Innermost dimension strided on one side, a neighbouring one contiguous there: tiles of 32 × 32.
template <class T>
bool copy_transposed(const LoopPlan<2>& plan, const T* x, T* y) {
  if (plan.extents.empty()) return false;
  const size_t last = plan.extents.size() - 1;
  const int64_t rows = plan.extents[last];
  const int64_t columns = plan.inner_extent;
  const auto outer = plan.strides[last];
  const auto inner = plan.inner;
  if (!(inner[1] == 1 && outer[0] == 1 && inner[0] > 1)) return false;
  if (rows < 8 || columns < 8) return false;
  int64_t batches = 1;
  for (size_t d = 0; d < last; ++d) batches *= plan.extents[d];
  const int64_t tiles = (rows + kTile - 1) / kTile;
  parallel_blocks(batches * tiles, std::max<int64_t>(1, kElementGrain / (kTile * columns)),
                  [&](int64_t first, int64_t end) {
                    for (int64_t t = first; t < end; ++t) {
                      int64_t b = t / tiles;
                      const T* px = x;
                      T* py = y;
                      for (size_t d = last; d-- > 0;) {
                        const int64_t i = b % plan.extents[d];
                        b /= plan.extents[d];
                        px += i * plan.strides[d][0];
                        py += i * plan.strides[d][1];
                      }
                      const int64_t r0 = (t % tiles) * kTile;
                      const int64_t r1 = std::min(rows, r0 + kTile);
                      for (int64_t c0 = 0; c0 < columns; c0 += kTile) {
                        const int64_t c1 = std::min(columns, c0 + kTile);
                        for (int64_t r = r0; r < r1; ++r)
                          for (int64_t c = c0; c < c1; ++c)
                            py[r * outer[1] + c] = px[r + c * inner[0]];
                      }
                    }
                  });
  return true;
}

}  // namespace

void copy(In x, Out y) {
  const auto plan = plan_loops<2>({&x.t, &y.t});
  dispatch_any(x->dtype(), [&]<class From>() {
    const From* px = x->data<From>();
    dispatch_any(y->dtype(), [&]<class To>() {
      To* py = y->data<To>();
      if constexpr (std::is_same_v<To, From>) {
        if (copy_transposed(plan, px, py)) return;
      }
      const auto s = plan.inner;
      run_loops(plan, [&](const std::array<int64_t, 2>& at, int64_t n) {
        const From* from = px + at[0];
        To* to = py + at[1];
        if (s[0] == 1 && s[1] == 1) {
          if constexpr (std::is_same_v<To, From>) {
            std::memcpy(to, from, static_cast<size_t>(n) * sizeof(To));
          } else {
#pragma omp simd
            for (int64_t i = 0; i < n; ++i) to[i] = convert<To>(from[i]);
          }
        } else {
          for (int64_t i = 0; i < n; ++i) to[i * s[1]] = convert<To>(from[i * s[0]]);
        }
      });
    });
  });
}

void fill(Out y, double value) {
  const auto plan = plan_loops<1>({&y.t});
  dispatch_any(y->dtype(), [&]<class T>() {
    T* py = y->data<T>();
    const T v = convert<T>(value);
    run_loops(plan, [&](const std::array<int64_t, 1>& at, int64_t n) {
      T* out = py + at[0];
      if (plan.inner[0] == 1) {
        std::fill_n(out, n, v);
      } else {
        for (int64_t i = 0; i < n; ++i) out[i * plan.inner[0]] = v;
      }
    });
  });
}

}  // namespace macgrad::cpu
