// The two products of attention in one warp's registers, three ways: plain float32 (FmaTile),
// tensor cores in tf32 (Tf32Tile) and in bfloat16 (Bf16Tile). A warp owns kRows rows (queries, or
// keys in the backward pass) and meets kCols rows of the other side, all kWidth wide in shared
// memory and filled up with 0:
//   dot:   scores (kRows × kCols)  = own · other^T
//   weigh: sums   (kRows × kWidth) += scores · other
// Which scores and sums a lane holds differs; slot, row, column and sum_column say it.
#pragma once

#include "macgrad/cuda/device_code.cuh"
#include "macgrad/cuda/mma.cuh"

namespace macgrad::cuda::attention {

/// Lanes stand 4 × 8; each holds lane_rows × columns/8 scores and lane_rows × width/8 sums. Per 4
/// steps of the inner dimension that is (lane_rows + columns/8) 16-byte loads of shared memory for
/// lane_rows · columns/2 multiply-adds. The weights of `weigh` pass through `scratch`.
template <int lane_rows, int columns, int width>
struct FmaTile {
  using Element = float;
  static constexpr int kRows = 4 * lane_rows, kCols = columns, kWidth = width;
  // 4·odd words: 8 rows that follow each other start in 8 different groups of 4 banks.
  static constexpr int kPitch = width + 4;
  static constexpr int kLaneRows = lane_rows, kRowLanes = 8;
  // Blocks a multiprocessor holds, as shared memory and registers allow.
  static constexpr int kBlocks = width > 64 ? 2 : lane_rows > 4 ? 4 : 3;
  static constexpr int kLaneCols = columns / 8, kLaneWidth = width / 8, kRun = 4;
  static constexpr int kScores = lane_rows * kLaneCols, kSums = lane_rows * kLaneWidth;
  static constexpr int kScratchPitch = columns + 8;  // 8·odd words: stores meet no bank twice
  static constexpr int kScratch = kRows * kScratchPitch;

  MACGRAD_HD static constexpr int slot(int e) { return e / kLaneCols; }
  MACGRAD_HD static constexpr int row(int lane, int slot) { return lane / 8 + 4 * slot; }
  MACGRAD_HD static constexpr int column(int lane, int e) { return lane % 8 + 8 * (e % kLaneCols); }
  MACGRAD_HD static constexpr int sum_slot(int e) { return e / kLaneWidth; }
  MACGRAD_HD static constexpr int sum_column(int lane, int e) {
    return 4 * (lane % 8) + 32 * (e % kLaneWidth / 4) + e % 4;
  }

  /// A value, or 16 bytes of values stored as T, on the way into shared memory.
  __device__ static float rounded(float x) { return x; }
  template <class T>
  __device__ static void put(float* to, const uint4& x) {
    static_assert(sizeof(T) == sizeof(float));
    *reinterpret_cast<uint4*>(to) = x;
  }

  __device__ static void dot(float (&s)[kScores], const float* own, const float* other, int lane) {
    own += lane / 8 * kPitch;
    other += lane % 8 * kPitch;
#pragma unroll
    for (int e = 0; e < kScores; ++e) s[e] = 0;
#pragma unroll 1
    for (int x = 0; x < width; x += 4) {
      float4 a[lane_rows];
#pragma unroll
      for (int i = 0; i < lane_rows; ++i)
        a[i] = *reinterpret_cast<const float4*>(own + 4 * i * kPitch + x);
#pragma unroll
      for (int j = 0; j < kLaneCols; ++j) {
        const float4 b = *reinterpret_cast<const float4*>(other + 8 * j * kPitch + x);
#pragma unroll
        for (int i = 0; i < lane_rows; ++i) {
          float& sum = s[i * kLaneCols + j];
          sum = fmaf(a[i].x, b.x, sum);
          sum = fmaf(a[i].y, b.y, sum);
          sum = fmaf(a[i].z, b.z, sum);
          sum = fmaf(a[i].w, b.w, sum);
        }
      }
    }
  }

  __device__ static void weigh(float (&o)[kSums], const float (&s)[kScores], const float* other,
                               float* scratch, int lane) {
    __syncwarp();  // the last weigh has read its weights
    scratch += lane / 8 * kScratchPitch;
#pragma unroll
    for (int e = 0; e < kScores; ++e) scratch[4 * slot(e) * kScratchPitch + column(lane, e)] = s[e];
    __syncwarp();
    other += 4 * (lane % 8);
#pragma unroll 1
    for (int j = 0; j < columns; j += 4) {
      float4 w[lane_rows];
#pragma unroll
      for (int i = 0; i < lane_rows; ++i)
        w[i] = *reinterpret_cast<const float4*>(scratch + 4 * i * kScratchPitch + j);
#pragma unroll
      for (int m = 0; m < width / 32; ++m) {
        add_row<0>(o, w, other + j * kPitch, m);
        add_row<1>(o, w, other + (j + 1) * kPitch, m);
        add_row<2>(o, w, other + (j + 2) * kPitch, m);
        add_row<3>(o, w, other + (j + 3) * kPitch, m);
      }
    }
  }

 private:
  template <int which>
  __device__ static void add_row(float (&o)[kSums], const float4 (&w)[lane_rows], const float* row,
                                 int m) {
    const float4 v = *reinterpret_cast<const float4*>(row + 32 * m);
#pragma unroll
    for (int i = 0; i < lane_rows; ++i) {
      const float weight = which == 0 ? w[i].x : which == 1 ? w[i].y : which == 2 ? w[i].z : w[i].w;
      float* to = o + i * kLaneWidth + 4 * m;
      to[0] = fmaf(weight, v.x, to[0]);
      to[1] = fmaf(weight, v.y, to[1]);
      to[2] = fmaf(weight, v.z, to[2]);
      to[3] = fmaf(weight, v.w, to[3]);
    }
  }
};

/// What the tensor-core tiles share: scores and sums lie as the C fragments of cuda/mma.cuh, one
/// after the other along the columns.
template <int columns, int width>
struct MmaLayout {
  static constexpr int kRows = 16, kCols = columns, kWidth = width;
  static constexpr int kLaneRows = 2, kRowLanes = 4, kRun = 2;
  static constexpr int kBlocks = width > 64 ? 2 : 3;
  static constexpr int kScores = columns / 2, kSums = width / 2;
  static constexpr int kScratch = 4;  // unused

  MACGRAD_HD static constexpr int slot(int e) { return e % 4 / 2; }
  MACGRAD_HD static constexpr int row(int lane, int slot) { return lane / 4 + 8 * slot; }
  MACGRAD_HD static constexpr int column(int lane, int e) {
    return e / 4 * 8 + lane % 4 * 2 + e % 2;
  }
  MACGRAD_HD static constexpr int sum_slot(int e) { return slot(e); }
  MACGRAD_HD static constexpr int sum_column(int lane, int e) { return column(lane, e); }
  /// Fragment n of an array of fragments.
  template <int size>
  __device__ static float (&fragment(float (&all)[size], int n))[4] {
    return *reinterpret_cast<float(*)[4]>(all + 4 * n);
  }
};

/// Operands are rounded to tf32 when they enter shared memory, weights when they are used.
template <int columns, int width>
struct Tf32Tile : MmaLayout<columns, width> {
  using Layout = MmaLayout<columns, width>;
  using Element = float;
  static constexpr int kPitch = width + 4;  // 4·odd words: every load below meets 32 banks

  __device__ static float rounded(float x) { return __uint_as_float(to_tf32(x)); }
  template <class T>
  __device__ static void put(float* to, const uint4& x) {
    static_assert(sizeof(T) == sizeof(float));
    *reinterpret_cast<uint4*>(to) =
        make_uint4(to_tf32(__uint_as_float(x.x)), to_tf32(__uint_as_float(x.y)),
                   to_tf32(__uint_as_float(x.z)), to_tf32(__uint_as_float(x.w)));
  }

  __device__ static void dot(float (&s)[Layout::kScores], const float* own, const float* other,
                             int lane) {
    const int at = lane / 4 * kPitch + lane % 4;
    own += at;
    other += at;
#pragma unroll
    for (int e = 0; e < Layout::kScores; ++e) s[e] = 0;
#pragma unroll 4
    for (int x = 0; x < width; x += 8) {
      const uint32_t a[4] = {word(own + x), word(own + 8 * kPitch + x), word(own + x + 4),
                             word(own + 8 * kPitch + x + 4)};
#pragma unroll
      for (int n = 0; n < columns / 8; ++n) {
        const float* row = other + 8 * n * kPitch + x;
        const uint32_t b[2] = {word(row), word(row + 4)};
        mma_tf32(Layout::fragment(s, n), a, b);
      }
    }
  }

  // A product's inner index may be numbered at will: column 2t of the scores is taken as A's column
  // t and 2t + 1 as t + 4, so that a lane's scores are its fragment of A.
  __device__ static void weigh(float (&o)[Layout::kSums], const float (&s)[Layout::kScores],
                               const float* other, float*, int lane) {
    other += lane % 4 * 2 * kPitch + lane / 4;
#pragma unroll
    for (int j = 0; j < columns / 8; ++j) {
      const uint32_t a[4] = {to_tf32(s[4 * j]), to_tf32(s[4 * j + 2]), to_tf32(s[4 * j + 1]),
                             to_tf32(s[4 * j + 3])};
#pragma unroll
      for (int n = 0; n < width / 8; ++n) {
        const float* row = other + 8 * j * kPitch + 8 * n;
        const uint32_t b[2] = {word(row), word(row + kPitch)};
        mma_tf32(Layout::fragment(o, n), a, b);
      }
    }
  }

 private:
  __device__ static uint32_t word(const float* at) {
    return __float_as_uint(*at);
  }
};

/// Four 8×8 matrices of bfloat16 from shared memory (PTX "ldmatrix"). Lane l gives the address of
/// row l%8 of matrix l/8, 16-byte aligned, and gets of every matrix the pair (l/4, 2(l%4)…), or of
/// its transpose.
template <bool transposed>
__device__ inline void load_matrices(uint32_t (&r)[4], const bfloat16* row) {
#if defined(__CUDA_ARCH__)
  const auto at = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  if constexpr (transposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at)
                 : "memory");
  }
#elif defined(MACGRAD_CUDA_EMULATED)
  ::emulation::require_aligned(row, 16);
  const bfloat16* rows[kWarp];
  memcpy(rows, ::emulation::warp_exchange(kFullWarp, &row, sizeof(row)), sizeof(rows));
  const int lane = static_cast<int>(threadIdx.x) % kWarp, g = lane / 4, t = lane % 4;
  for (int m = 0; m < 4; ++m) {
    const bfloat16* const* matrix = rows + 8 * m;
    const bfloat16 low = transposed ? matrix[2 * t][g] : matrix[g][2 * t];
    const bfloat16 high = transposed ? matrix[2 * t + 1][g] : matrix[g][2 * t + 1];
    r[m] = low.bits | static_cast<uint32_t>(high.bits) << 16;
  }
#endif
}

template <int columns, int width>
struct Bf16Tile : MmaLayout<columns, width> {
  using Layout = MmaLayout<columns, width>;
  using Element = bfloat16;
  static constexpr int kPitch = width + 8;  // 16·odd bytes: 8 rows of a matrix meet 32 banks

  __device__ static bfloat16 rounded(float x) { return bfloat16(x); }
  template <class T>
  __device__ static void put(bfloat16* to, const uint4& x) {
    if constexpr (sizeof(T) == sizeof(bfloat16)) {
      *reinterpret_cast<uint4*>(to) = x;
    } else {
      uint2 both;
      both.x = to_bf16_pair(__uint_as_float(x.x), __uint_as_float(x.y));
      both.y = to_bf16_pair(__uint_as_float(x.z), __uint_as_float(x.w));
      *reinterpret_cast<uint2*>(to) = both;
    }
  }

  __device__ static void dot(float (&s)[Layout::kScores], const bfloat16* own,
                             const bfloat16* other, int lane) {
    own += lane % 16 * kPitch + lane / 16 * 8;
    other += (lane / 16 * 8 + lane % 8) * kPitch + lane / 8 % 2 * 8;
#pragma unroll
    for (int e = 0; e < Layout::kScores; ++e) s[e] = 0;
#pragma unroll 4
    for (int x = 0; x < width; x += 16) {
      uint32_t a[4];
      load_matrices<false>(a, own + x);
#pragma unroll
      for (int n = 0; n < columns / 8; n += 2) {
        uint32_t b[4];
        load_matrices<false>(b, other + 8 * n * kPitch + x);
        mma_bf16(Layout::fragment(s, n), a, {b[0], b[1]});
        mma_bf16(Layout::fragment(s, n + 1), a, {b[2], b[3]});
      }
    }
  }

  __device__ static void weigh(float (&o)[Layout::kSums], const float (&s)[Layout::kScores],
                               const bfloat16* other, float*, int lane) {
    other += lane % 16 * kPitch + lane / 16 * 8;
#pragma unroll
    for (int j = 0; j < columns / 16; ++j) {
      const float* w = s + 8 * j;
      const uint32_t a[4] = {to_bf16_pair(w[0], w[1]), to_bf16_pair(w[2], w[3]),
                             to_bf16_pair(w[4], w[5]), to_bf16_pair(w[6], w[7])};
#pragma unroll
      for (int n = 0; n < width / 8; n += 2) {
        uint32_t b[4];
        load_matrices<true>(b, other + 16 * j * kPitch + 8 * n);
        mma_bf16(Layout::fragment(o, n), a, {b[0], b[1]});
        mma_bf16(Layout::fragment(o, n + 1), a, {b[2], b[3]});
      }
    }
  }
};

}  // namespace macgrad::cuda::attention
