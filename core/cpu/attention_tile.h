// Register tiles of the attention kernels: products of small blocks with queries in the lanes of
// vector registers, so that softmax statistics need no sums across lanes and nothing but a block's
// queries is ever transposed. A library GEMM would spend more time per call than on these blocks.
//
// A panel is a matrix of `ld` = NV·kLanes columns, row after row, 64-byte aligned; a block of
// queries is cut into panels of kPanel columns, the last one as wide as it needs to be.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <utility>

#include "macgrad/core/vector_math.h"

namespace macgrad::cpu::attention {

#if defined(__AVX512F__)
inline constexpr int kVectorBytes = 64;
#elif defined(__AVX__)
inline constexpr int kVectorBytes = 32;
#else
inline constexpr int kVectorBytes = 16;
#endif

template <class T>
struct VectorOf;
template <>
struct VectorOf<float> {
  typedef float type __attribute__((vector_size(kVectorBytes)));
  typedef float in_memory __attribute__((vector_size(kVectorBytes), aligned(4), may_alias));
  typedef uint32_t index __attribute__((vector_size(kVectorBytes)));
};
template <>
struct VectorOf<double> {
  typedef double type __attribute__((vector_size(kVectorBytes)));
  typedef double in_memory __attribute__((vector_size(kVectorBytes), aligned(8), may_alias));
  typedef uint64_t index __attribute__((vector_size(kVectorBytes)));
};
template <class T>
using Vector = typename VectorOf<T>::type;

template <class T>
inline constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(T));
/// Vectors and columns of a full panel: 4 rows × 3 vectors of sums, 3 of B and 1 of A fill 16
/// registers.
inline constexpr int kPanelVectors = 3;
inline constexpr int kTileRows = 4;
template <class T>
inline constexpr int kPanel = kPanelVectors* kLanes<T>;
/// Tiles with features in the lanes (dk, dv): 6 × 2, since head dimensions are powers of two.
inline constexpr int kFeatureVectors = 2;
inline constexpr int kFeatureRows = 6;

template <class T>
inline constexpr T kInfinity = std::numeric_limits<T>::infinity();

template <class T>
[[gnu::always_inline]] inline Vector<T> load(const T* p) {
  return *reinterpret_cast<const typename VectorOf<T>::in_memory*>(p);
}
template <class T>
[[gnu::always_inline]] inline void store(T* p, const Vector<T>& v) {
  *reinterpret_cast<typename VectorOf<T>::in_memory*>(p) = v;
}
template <class T>
[[gnu::always_inline]] inline Vector<T> broadcast(T x) {
  return x - Vector<T>{};
}

/// `columns` rounded up to whole vectors.
template <class T>
int64_t whole_vectors(int64_t columns) {
  return (columns + kLanes<T> - 1) / kLanes<T> * kLanes<T>;
}

/// Keeps a value that several products use in a register: as a memory operand of each product it
/// would be loaded again every time, and loads would bound the tile.
template <class V>
[[gnu::always_inline]] inline void keep_in_register([[maybe_unused]] V& v) {
#if defined(__x86_64__)
  asm("" : "+v"(v));
#endif
}

/// f(0), f(1), …, f(N-1) with constant arguments, so that arrays of vectors indexed by them live in
/// registers.
template <int N, class F>
[[gnu::always_inline]] inline void unrolled(F&& f) {
  [&]<int... I>(std::integer_sequence<int, I...>) __attribute__((always_inline)) {
    (f(std::integral_constant<int, I>{}), ...);
  }
  (std::make_integer_sequence<int, N>{});
}

/// f(row, vector) over a tile, unrolled.
template <int MR, int NV, class F>
[[gnu::always_inline]] inline void for_tile(F&& f) {
  unrolled<MR>([&](auto r) __attribute__((always_inline)) {
    unrolled<NV>([&](auto v) __attribute__((always_inline)) { f(r, v); });
  });
}

/// sums (MR × NV vectors) += A·B over `depth`: A(r, i) = a[r·lda + i], or a[i·lda + r] when
/// transposed; B has rows of NV vectors, ld apart.
template <class T, int MR, int NV, bool kTransposed>
[[gnu::always_inline]] inline void accumulate(const T* a, int64_t lda, const T* b, int64_t ld,
                                              int64_t depth, Vector<T> (&sums)[MR][NV]) {
#pragma GCC unroll 2
  for (int64_t i = 0; i < depth; ++i) {
    Vector<T> row[NV];
    unrolled<NV>([&](auto v) __attribute__((always_inline)) {
      row[v] = load(b + i * ld + v * kLanes<T>);
      keep_in_register(row[v]);
    });
    unrolled<MR>([&](auto r) __attribute__((always_inline)) {
      const T x = kTransposed ? a[i * lda + r] : a[r * lda + i];
      unrolled<NV>([&](auto v) __attribute__((always_inline)) { sums[r][v] += x * row[v]; });
    });
  }
}

/// Calls f.operator()<rows>(first) on tiles of MR rows of [0, m), and on the rest with its size.
template <int MR, class F>
[[gnu::always_inline]] inline void for_row_tiles(int64_t m, F&& f) {
  int64_t r = 0;
  for (; r + MR <= m; r += MR) f.template operator()<MR>(r);
  switch (m - r) {
    case 1:
      return f.template operator()<1>(r);
    case 2:
      return f.template operator()<2>(r);
    case 3:
      return f.template operator()<3>(r);
    case 4:
      if constexpr (MR > 4) return f.template operator()<4>(r);
      return;
    case 5:
      if constexpr (MR > 5) return f.template operator()<5>(r);
      return;
    default:
      return;
  }
}

/// Calls f.operator()<NV>() for the vectors that hold `columns` columns, at most kPanel.
template <class T, class F>
[[gnu::always_inline]] inline void with_panel_vectors(int64_t columns, F&& f) {
  if (columns > 2 * kLanes<T>) return f.template operator()<3>();
  if (columns > kLanes<T>) return f.template operator()<2>();
  return f.template operator()<1>();
}

/// Swaps the upper half of each 2·kDistance lanes of a with the lower half of those of b.
template <int kDistance, class T, int... I>
[[gnu::always_inline]] inline void swap_halves(Vector<T>& a, Vector<T>& b,
                                               std::integer_sequence<int, I...>) {
  constexpr int n = kLanes<T>;  // lane i of b is lane n + i of the pair
  const Vector<T> first = __builtin_shufflevector(a, b, (I & kDistance ? n + I - kDistance : I)...);
  b = __builtin_shufflevector(a, b, (I & kDistance ? n + I : I + kDistance)...);
  a = first;
}

/// Transposes kLanes vectors as a square matrix: each step swaps the off-diagonal halves of blocks
/// of 2·distance.
template <int kDistance, class T>
[[gnu::always_inline]] inline void transpose_square(Vector<T> (&x)[kLanes<T>]) {
  if constexpr (kDistance > 0) {
    constexpr int n = kLanes<T>;
    unrolled<n>([&](auto i) __attribute__((always_inline)) {
      if constexpr ((i & kDistance) == 0) {
        swap_halves<kDistance, T>(x[i], x[i + kDistance], std::make_integer_sequence<int, n>{});
      }
    });
    transpose_square<kDistance / 2, T>(x);
  }
}

/// The transpose of n rows, row(i) with i < n, times scale, as a panel (width, columns), stride ld;
/// columns from n on are 0. `columns` is a multiple of the lanes.
template <class T, class Row>
void rows_to_panel(Row&& row, int64_t n, int64_t width, T scale, T* panel, int64_t ld,
                   int64_t columns) {
  constexpr int64_t w = kLanes<T>;
  for (int64_t q = 0; q < columns; q += w) {
    int64_t c = 0;
    for (; c + w <= width; c += w) {
      Vector<T> square[w];
      unrolled<w>([&](auto i) __attribute__((always_inline)) {
        square[i] = q + i < n ? load(row(q + i) + c) * scale : Vector<T>{};
      });
      transpose_square<w / 2, T>(square);
      unrolled<w>([&](auto i) __attribute__((always_inline)) {
        store(panel + (c + i) * ld + q, square[i]);
      });
    }
    for (; c < width; ++c)
      for (int64_t i = q; i < q + w; ++i) panel[c * ld + i] = i < n ? row(i)[c] * scale : T{0};
  }
}

/// The way back: n rows, row(i), from the first columns of a panel, column q times scale[q]; scale
/// has whole vectors, or is nullptr for 1.
template <class T, class Row>
void panel_to_rows(const T* panel, int64_t ld, const T* scale, Row&& row, int64_t n,
                   int64_t width) {
  constexpr int64_t w = kLanes<T>;
  for (int64_t q = 0; q < n; q += w) {
    const Vector<T> factor = scale ? load(scale + q) : broadcast(T{1});
    int64_t c = 0;
    for (; c + w <= width; c += w) {
      Vector<T> square[w];
      unrolled<w>([&](auto i) __attribute__((always_inline)) {
        square[i] = load(panel + (c + i) * ld + q) * factor;
      });
      transpose_square<w / 2, T>(square);
      unrolled<w>([&](auto i) __attribute__((always_inline)) {
        if (q + i < n) store(row(q + i) + c, square[i]);
      });
    }
    for (; c < width; ++c)
      for (int64_t i = q; i < std::min(n, q + w); ++i)
        row(i)[c] = panel[c * ld + i] * (scale ? scale[i] : T{1});
  }
}

/// e^x for x <= 0 or slightly above, 0 below the normal range, -inf included; float to 1.5e-7.
[[gnu::always_inline]] inline Vector<float> exp_lanes(const Vector<float>& x) {
  using Bits = VectorOf<float>::index;
  // x = n·ln 2 + r: adding 1.5·2^23 rounds to an integer that stands in the low mantissa bits.
  constexpr float kRound = 12582912.0f;
  const Vector<float> shifted = x * 1.44269504f + kRound;
  const Vector<float> n = shifted - kRound;
  const Vector<float> r = (x - n * 0.693145752f) - n * 1.42860677e-6f;
  Vector<float> p = r * 1.9875691e-4f + 1.3981999e-3f;
  p = p * r + 8.3334519e-3f;
  p = p * r + 4.1665795e-2f;
  p = p * r + 1.66666655e-1f;
  p = p * r + 0.5f;
  p = p * (r * r) + (r + 1.0f);
  const Vector<float> scaled = (Vector<float>)((Bits)p + ((Bits)shifted << 23));
  return x < -87.3f ? Vector<float>{} : scaled;
}
[[gnu::always_inline]] inline Vector<double> exp_lanes(const Vector<double>& x) {
  constexpr int n = kLanes<double>;
  double lanes[n];
  store(lanes, x);
#pragma omp simd
  for (int i = 0; i < n; ++i) lanes[i] = math::exp(lanes[i]);
  return load(lanes);
}

}  // namespace macgrad::cpu::attention
