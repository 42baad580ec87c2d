// What the forward and backward kernels of softmax attention share: the problem, which keys a query
// sees, rows on their way into shared memory and out of registers, and dropout. A block owns
// kOwnRows rows of one head (queries, or keys for dk and dv), kRows a warp, and walks over the
// other side in tiles of kCols rows (attention_tile.cuh), so no T×S matrix exists anywhere.
// B batch, H heads, T queries, S keys, d and dv widths.
#pragma once

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <type_traits>

#include "macgrad/core/kernels/attention.h"
#include "macgrad/cuda/attention_tile.cuh"
#include "macgrad/cuda/launch.h"
#include "macgrad/cuda/math_mode.h"
#include "macgrad/cuda/pack.cuh"
#include "macgrad/cuda/step_values.h"

namespace macgrad::cuda::attention {

inline constexpr int kOwnRows = 64;
inline constexpr int kWidest = 128;  // d and dv
inline constexpr float kNever = -INFINITY;

/// The warps and threads of a kernel over `Tile`.
template <class Tile>
inline constexpr int kWarps = kOwnRows / Tile::kRows;
template <class Tile>
inline constexpr int kThreads = 32 * kWarps<Tile>;

MACGRAD_HD inline int least(int a, int b) {
  return a < b ? a : b;
}

struct Problem {
  int heads, queries, keys, d, dv;
  float scale;       // of the scores
  float log2_scale;  // its size, above 0, for powers of 2
  bool negative;     // the scale: scores are compared as -q·k
  bool causal;
  const bool *key_valid, *query_valid;  // (B, S), (B, T); null: all
  DrawKey key;
  const StepValues* live;
  uint32_t threshold;  // dropped where the draw's 24 bits are below; 0: no dropout
  float kept;          // factor of the others

  /// Query i sees keys below seen(i).
  MACGRAD_HD int seen(int i) const {
    if (!causal) return keys;
    const int end = i + 1 + keys - queries;
    return end < 0 ? 0 : least(end, keys);
  }
  /// The first query that sees key j.
  MACGRAD_HD int first_query(int j) const {
    const int i = j + queries - keys;
    return !causal || i < 0 ? 0 : i;
  }
};

/// Products q·k as scores that can be compared and subtracted. The scale comes after the
/// difference: an offset common to all keys cancels before it is rounded once more.
template <int n>
__device__ inline void orient(const Problem& p, float (&s)[n]) {
  if (!p.negative) return;
#pragma unroll
  for (int e = 0; e < n; ++e) s[e] = -s[e];
}

/// One (B, H, N, width) operand; strides in elements.
template <class T>
struct Heads {
  T* data;
  int64_t batch, head, row;
  bool vector;  // every row starts and ends at a multiple of 16 bytes
  __device__ T* at(int64_t b, int64_t h, int64_t i) const {
    return data + b * batch + h * head + i * row;
  }
};

template <class T>
Heads<T> heads_of(const Tensor& t) {
  using Stored = std::remove_const_t<T>;
  Heads<T> h{t.data<Stored>(), t.stride(0), t.stride(1), t.stride(2), false};
  const auto whole = [](int64_t n) { return n * static_cast<int64_t>(sizeof(T)) % 16 == 0; };
  h.vector = reinterpret_cast<uintptr_t>(h.data) % 16 == 0 && whole(h.batch) && whole(h.head) &&
             whole(h.row) && t.rank() == 4 && whole(t.size(3));
  return h;
}

inline Problem problem(const SoftmaxAttentionOperands& in) {
  const Tensor &q = in.q, &k = in.k, &v = in.v;
  const SoftmaxAttentionArgs& args = in.args;
  require(q.size(2) < (1 << 30) && k.size(2) < (1 << 30),
          "softmax_attention: {} queries and {} keys are more than the CUDA kernel counts",
          q.size(2), k.size(2));
  Problem p{};
  p.heads = static_cast<int>(q.size(1));
  p.queries = static_cast<int>(q.size(2));
  p.keys = static_cast<int>(k.size(2));
  p.d = static_cast<int>(q.size(3));
  p.dv = static_cast<int>(v.size(3));
  p.scale = static_cast<float>(args.scale);
  p.log2_scale = std::max(static_cast<float>(std::abs(args.scale) * 1.4426950408889634), FLT_MIN);
  p.negative = args.scale < 0;
  p.causal = args.causal;
  p.key_valid = in.key_valid->defined() ? in.key_valid->data<bool>() : nullptr;
  p.query_valid = in.query_valid->defined() ? in.query_valid->data<bool>() : nullptr;
  p.key = args.key;
  p.live = args.dropout > 0 ? live_for(args.key) : nullptr;
  p.threshold = static_cast<uint32_t>(std::ceil(args.dropout * 0x1p24));
  p.kept = static_cast<float>(1.0 / (1.0 - args.dropout));
  return p;
}

/// Calls f.template operator()<M, width>() for the arithmetic that T and math_mode() ask for and
/// the narrowest compiled width that holds d and dv.
enum class Arithmetic { fma, tf32, bf16 };
template <Arithmetic arithmetic, class F>
void with_width(int64_t width, F&& f) {
  if (width <= 32) {
    f.template operator()<arithmetic, 32>();
  } else if (width <= 64) {
    f.template operator()<arithmetic, 64>();
  } else {
    f.template operator()<arithmetic, kWidest>();
  }
}
template <class T, class F>
void with_arithmetic(int64_t width, F&& f) {
  if constexpr (std::is_same_v<T, float>) {
    if (math_mode() == MathMode::exact) return with_width<Arithmetic::fma>(width, f);
    if (math_mode() == MathMode::tf32) return with_width<Arithmetic::tf32>(width, f);
  }
  with_width<Arithmetic::bf16>(width, f);
}
template <class T, class F>
void with_arithmetic(const Problem& p, F&& f) {
  with_arithmetic<T>(std::max(p.d, p.dv), f);
}

/// Whether kernels that keep a Shared<arithmetic, width> per block take these operands.
template <template <Arithmetic, int> class Shared>
Support supports(const Tensor& q, const Tensor& v) {
  if (q.dtype() != DType::float32 && q.dtype() != DType::bfloat16)
    return {false,
            fmt::format("the CUDA kernel takes float32 and bfloat16, got {}", name(q.dtype()))};
  const int64_t width = std::max(q.size(3), v.size(3));
  if (width > kWidest)
    return {false, fmt::format("the CUDA kernel takes heads up to {} wide, got d {} and dv {}",
                               kWidest, q.size(3), v.size(3))};
  size_t bytes = 0;
  const auto measure = [&]<Arithmetic arithmetic, int w>() {
    bytes = sizeof(Shared<arithmetic, w>);
  };
  if (q.dtype() == DType::bfloat16) {
    with_arithmetic<bfloat16>(width, measure);
  } else {
    with_arithmetic<float>(width, measure);
  }
  const std::string reason = shared_memory_refusal(bytes);
  return {reason.empty(), reason};
}

/// n_rows rows of a tile from `from` on, `count` of which exist. Others, rows that are not `valid`
/// (never read: they may hold anything) and columns from `width` on become 0.
template <class Tile, int n_rows, class T>
__device__ void load_rows(typename Tile::Element* tile, const T* from, int64_t stride, int count,
                          int width, bool vector, const bool* valid) {
  const int thread = static_cast<int>(threadIdx.x);
  if (vector) {
    constexpr int run = kPacked<T>, per_row = Tile::kWidth / run;
#pragma unroll 4
    for (int c = thread; c < n_rows * per_row; c += kThreads<Tile>) {
      const int r = c / per_row, x = c % per_row * run;
      uint4 values = make_uint4(0, 0, 0, 0);
      if (r < count && x < width && (!valid || valid[r]))
        values = *reinterpret_cast<const uint4*>(from + r * stride + x);
      Tile::template put<T>(tile + r * Tile::kPitch + x, values);
    }
  } else {
#pragma unroll 1
    for (int c = thread; c < n_rows * Tile::kWidth; c += kThreads<Tile>) {
      const int r = c / Tile::kWidth, x = c % Tile::kWidth;
      const bool there = r < count && x < width && (!valid || valid[r]);
      tile[r * Tile::kPitch + x] = Tile::rounded(there ? load(from + r * stride + x) : 0.0f);
    }
  }
}

/// The warp's sums, times `factor` of their row, to the rows from `row0` on; rows that are not
/// valid become 0.
template <class Tile, class T>
__device__ void store_rows(const Heads<T>& to, int64_t b, int64_t h, int row0, int count, int width,
                           const bool* valid, const float (&sums)[Tile::kSums],
                           const float (&factor)[Tile::kLaneRows], int lane) {
  constexpr int run = Tile::kRun;
#pragma unroll
  for (int e = 0; e < Tile::kSums; e += run) {
    const int row = row0 + Tile::row(lane, Tile::sum_slot(e)), x = Tile::sum_column(lane, e);
    if (row >= count || x >= width) continue;
    const bool ok = !valid || valid[row];
    Packed<T, run> values;
#pragma unroll
    for (int i = 0; i < run; ++i)
      values.v[i] = static_cast<T>(ok ? sums[e + i] * factor[Tile::sum_slot(e)] : 0.0f);
    T* at = to.at(b, h, row) + x;
    if (to.vector) {
      *reinterpret_cast<Packed<T, run>*>(at) = values;
    } else {
#pragma unroll
      for (int i = 0; i < run; ++i)
        if (x + i < width) at[i] = values.v[i];
    }
  }
}

/// 16 numbers of a draw from `element` on, a bit each: kept or dropped. They lie in five groups of
/// four, or in four when the first begins at `element`.
__device__ inline uint16_t keep_bits(const DrawKey& key, uint64_t element, uint32_t threshold) {
  const auto group = static_cast<uint32_t>(element >> 2);
  const int early = static_cast<int>(element & 3), groups = early ? 5 : 4;
  uint32_t bits = 0;
#pragma unroll 1
  for (int g = 0; g < groups; ++g) {
    const Philox4 r = random_block(key, group + static_cast<uint32_t>(g));
#pragma unroll
    for (int i = 0; i < 4; ++i) bits |= (r.v[i] >> 8 >= threshold ? 1u : 0u) << (4 * g + i);
  }
  return static_cast<uint16_t>(bits >> early);
}

/// Fills the warp's `keep` (lines × pieces of 16): line l holds elements first + l·stride ….
template <int lines, int pieces>
__device__ void draw_keep(const Problem& p, uint16_t* keep, uint64_t first, uint64_t stride,
                          int lane) {
  const DrawKey key = resolved(p.key, p.live);
  __syncwarp();  // the last tile's bits have been read
#pragma unroll 1
  for (int item = lane; item < lines * pieces; item += kWarp)
    keep[item] = keep_bits(key,
                           first + static_cast<uint64_t>(item / pieces) * stride +
                               static_cast<uint64_t>(item % pieces * 16),
                           p.threshold);
  __syncwarp();
}
template <int pieces>
__device__ bool kept(const uint16_t* keep, int line, int at) {
  return keep[line * pieces + at / 16] >> (at % 16) & 1;
}

/// The largest of the lanes that hold a row; a NaN is passed over, its weight will tell.
struct Largest {
  __device__ float operator()(float a, float b) const { return fmaxf(a, b); }
};

}  // namespace macgrad::cuda::attention
