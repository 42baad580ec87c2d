// Softmax attention forward: a block of queries walks over tiles of keys with a running maximum and
// sum a row (Milakov & Gimelshein 2018; Dao 2023, "FlashAttention-2"), never a T×S matrix. Scores
// are kept in powers of 2. Keys that are hidden are 0 in shared memory and -inf as scores; tiles
// without a visible key are passed over. Measures of a block: kOwnRows queries; shared memory at
// most 101 KB (tf32, width 128: (64 + 2·64)·132·4 bytes), so two blocks fit a multiprocessor.
// B batch, H heads, T queries, S keys, d and dv widths.
#include "macgrad/core/kernels/attention.h"
#include "macgrad/cuda/attention.cuh"

namespace macgrad::cuda {
namespace attention {
namespace {

template <Arithmetic arithmetic, int width>
using ForwardTile = std::conditional_t<
    arithmetic == Arithmetic::fma, FmaTile<width == kWidest ? 4 : 8, 32, width>,
    std::conditional_t<arithmetic == Arithmetic::tf32, Tf32Tile<64, width>, Bf16Tile<64, width>>>;

template <class Tile>
struct ForwardShared {
  alignas(16) typename Tile::Element queries[kOwnRows * Tile::kPitch];
  alignas(16) typename Tile::Element keys[Tile::kCols * Tile::kPitch];
  alignas(16) typename Tile::Element values[Tile::kCols * Tile::kPitch];
  alignas(16) float scratch[kWarps<Tile>][Tile::kScratch];
  uint16_t keep[kWarps<Tile>][Tile::kRows * Tile::kCols / 16];
  bool shown[Tile::kCols];
};

template <Arithmetic arithmetic, int width>
using ForwardBlock = ForwardShared<ForwardTile<arithmetic, width>>;

template <class Tile, class T>
__global__ void __launch_bounds__(kThreads<Tile>, Tile::kBlocks)
    forward_kernel(Problem p, Heads<const T> q, Heads<const T> k, Heads<const T> v, Heads<T> out,
                   Heads<float> statistics) {
  constexpr int kCols = Tile::kCols, pieces = kCols / 16;
  auto& m = *shared_memory<ForwardShared<Tile>>();
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kWarp, warp = thread / kWarp;
  // The last tile of a causal head is the longest: it starts first.
  const auto tiles = static_cast<unsigned>((p.queries + kOwnRows - 1) / kOwnRows);
  const int bh = static_cast<int>(blockIdx.x / tiles), b = bh / p.heads, h = bh % p.heads;
  const int i0 = static_cast<int>(tiles - 1 - blockIdx.x % tiles) * kOwnRows;
  const bool* query_valid = p.query_valid ? p.query_valid + int64_t{b} * p.queries : nullptr;
  const bool* key_valid = p.key_valid ? p.key_valid + int64_t{b} * p.keys : nullptr;

  const int n = least(kOwnRows, p.queries - i0);
  int end = p.seen(i0 + n - 1);
  if (query_valid) {
    bool any = false;
    for (int i = thread; i < n; i += kThreads<Tile>) any = any || query_valid[i0 + i];
    if (!__syncthreads_or(any)) end = 0;
  }
  if (end > 0)
    load_rows<Tile, kOwnRows>(m.queries, q.at(b, h, i0), q.row, n, p.d, q.vector,
                              query_valid ? query_valid + i0 : nullptr);

  const int row0 = i0 + warp * Tile::kRows;  // of the warp
  const int warp_end = row0 < p.queries ? p.seen(least(row0 + Tile::kRows, p.queries) - 1) : 0;
  const int warp_all = row0 < p.queries ? p.seen(row0) : 0;  // every row sees the keys below
  float sums[Tile::kSums], maximum[Tile::kLaneRows], total[Tile::kLaneRows];
#pragma unroll
  for (int e = 0; e < Tile::kSums; ++e) sums[e] = 0;
#pragma unroll
  for (int r = 0; r < Tile::kLaneRows; ++r) {
    maximum[r] = kNever;
    total[r] = 0;
  }

  for (int j0 = 0; j0 < end; j0 += kCols) {
    __syncthreads();  // the last tile has been read
    bool shown = false;
    if (thread < kCols) {
      shown = j0 + thread < p.keys && (!key_valid || key_valid[j0 + thread]);
      m.shown[thread] = shown;
    }
    const int count = __syncthreads_count(shown);
    if (count == 0) continue;
    const int n_keys = least(kCols, p.keys - j0);
    const bool* tile_valid = key_valid ? key_valid + j0 : nullptr;
    load_rows<Tile, kCols>(m.keys, k.at(b, h, j0), k.row, n_keys, p.d, k.vector, tile_valid);
    load_rows<Tile, kCols>(m.values, v.at(b, h, j0), v.row, n_keys, p.dv, v.vector, tile_valid);
    __syncthreads();
    if (j0 >= warp_end) continue;

    float s[Tile::kScores], best[Tile::kLaneRows], sum[Tile::kLaneRows], rescale[Tile::kLaneRows];
    Tile::dot(s, m.queries + warp * Tile::kRows * Tile::kPitch, m.keys, lane);
    const bool all = count == kCols && j0 + kCols <= warp_all;
#pragma unroll
    for (int r = 0; r < Tile::kLaneRows; ++r) best[r] = maximum[r];
    orient(p, s);
    if (!all) {
      int seen[Tile::kLaneRows];
#pragma unroll
      for (int r = 0; r < Tile::kLaneRows; ++r) seen[r] = p.seen(row0 + Tile::row(lane, r)) - j0;
#pragma unroll
      for (int e = 0; e < Tile::kScores; ++e) {
        const int j = Tile::column(lane, e);
        if (!m.shown[j] || j >= seen[Tile::slot(e)]) s[e] = kNever;
      }
    }
#pragma unroll
    for (int e = 0; e < Tile::kScores; ++e) best[Tile::slot(e)] = fmaxf(best[Tile::slot(e)], s[e]);
#pragma unroll
    for (int r = 0; r < Tile::kLaneRows; ++r) {
      best[r] = warp_reduce<Tile::kRowLanes>(best[r], Largest{});
      // A row that has seen no key yet: any finite shift makes its weights 0.
      const float shift = best[r] == kNever ? 0.0f : best[r];
      rescale[r] = exp2f((maximum[r] - shift) * p.log2_scale);
      maximum[r] = best[r];
      best[r] = shift;
      sum[r] = 0;
    }
#pragma unroll
    for (int e = 0; e < Tile::kScores; ++e) {
      s[e] = exp2f((s[e] - best[Tile::slot(e)]) * p.log2_scale);
      sum[Tile::slot(e)] += s[e];
    }
#pragma unroll
    for (int r = 0; r < Tile::kLaneRows; ++r) total[r] = total[r] * rescale[r] + sum[r];
#pragma unroll
    for (int e = 0; e < Tile::kSums; ++e) sums[e] *= rescale[Tile::sum_slot(e)];
    if (p.threshold) {
      uint16_t* keep = m.keep[warp];
      draw_keep<Tile::kRows, pieces>(
          p, keep, static_cast<uint64_t>((int64_t{bh} * p.queries + row0) * p.keys + j0),
          static_cast<uint64_t>(p.keys), lane);
#pragma unroll
      for (int e = 0; e < Tile::kScores; ++e)
        s[e] *= kept<pieces>(keep, Tile::row(lane, Tile::slot(e)), Tile::column(lane, e)) ? p.kept
                                                                                          : 0.0f;
    }
    Tile::weigh(sums, s, m.values, m.scratch[warp], lane);
  }

#pragma unroll
  for (int r = 0; r < Tile::kLaneRows; ++r) {
    total[r] = warp_sum<Tile::kRowLanes>(total[r]);
    const int i = row0 + Tile::row(lane, r);
    if (lane % Tile::kRowLanes == 0 && i < p.queries) {
      const bool sees = total[r] != 0 && (!query_valid || query_valid[i]);  // NaN sees
      float* kept = statistics.at(b, h, i);
      kept[0] = sees ? maximum[r] : kNever;
      kept[1] = sees ? total[r] : 0.0f;
    }
    total[r] = total[r] == 0 ? 0.0f : 1 / total[r];  // no visible key: 0 / 0 becomes 0
  }
  store_rows<Tile>(out, b, h, row0, p.queries, p.dv, query_valid, sums, total, lane);
}

template <class T>
void forward(const SoftmaxAttentionForward& x) {
  const Problem p = problem(x.in);
  const int64_t heads = x.in.q->size(0) * x.in.q->size(1);
  const int64_t tiles = (p.queries + kOwnRows - 1) / kOwnRows;
  with_arithmetic<T>(p, [&]<Arithmetic arithmetic, int width>() {
    using Tile = ForwardTile<arithmetic, width>;
    launch(forward_kernel<Tile, T>,
           {blocks_for(heads * tiles, 1), kThreads<Tile>, sizeof(ForwardBlock<arithmetic, width>)},
           p, heads_of<const T>(x.in.q), heads_of<const T>(x.in.k), heads_of<const T>(x.in.v),
           heads_of<T>(x.out), heads_of<float>(x.statistics));
  });
}

}  // namespace
}  // namespace attention

void softmax_attention_forward(const SoftmaxAttentionForward& x) {
  if (x.in.q->dtype() == DType::bfloat16) {
    attention::forward<bfloat16>(x);
  } else {
    attention::forward<float>(x);
  }
}

Support softmax_attention_forward_supports(const SoftmaxAttentionOperands& in) {
  return attention::supports<attention::ForwardBlock>(in.q, in.v);
}

size_t softmax_attention_forward_scratch(const SoftmaxAttentionOperands&) {
  return 0;
}

}  // namespace macgrad::cuda
