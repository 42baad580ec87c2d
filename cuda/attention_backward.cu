// Softmax attention backward: weights are recomputed tile by tile, from the largest score and the
// sum of exponentials of each query (Dao 2023, "FlashAttention-2"). With P the weights, R the
// dropout factors, G = grad, D = rowsum(G ∘ out):
//   dP = R ∘ (G·V^T), dS = P ∘ (dP - D), dv = (R ∘ P)^T·G, dq = scale·dS·K, dk = scale·dS^T·Q.
// Three kernels: the statistics of each query; dk and dv by blocks of keys that walk over
// queries; dq by blocks of queries that walk over keys. 7 products instead of 5, and every sum has
// one owner and one order: no atomics, the same bits every time. Shared memory is at most 113 KB
// (width 128: (2·64 + 2·32)·132·4 bytes of rows, 64·40·4 of weights), so two blocks fit a
// multiprocessor. B batch, H heads, T queries, S keys, d and dv widths.
#include "macgrad/core/kernels/attention.h"
#include "macgrad/cuda/attention.cuh"

namespace macgrad::cuda {
namespace attention {
namespace {

template <Arithmetic arithmetic, int width>
using BackwardTile = std::conditional_t<
    arithmetic == Arithmetic::fma, FmaTile<4, 32, width>,
    std::conditional_t<arithmetic == Arithmetic::tf32, Tf32Tile<32, width>, Bf16Tile<32, width>>>;

/// Of one query: its largest score, log2 of the sum of exponentials (+inf where no weight is to be
/// made), and D. The first two are not added up: at a large offset their sum is rounded.
struct alignas(16) Row {
  float maximum = 0, log2_sum = INFINITY, delta = 0;
};

template <class Tile>
struct BackwardShared {
  alignas(16) typename Tile::Element own[2][kOwnRows * Tile::kPitch];
  alignas(16) typename Tile::Element other[2][Tile::kCols * Tile::kPitch];
  alignas(16) float scratch[kWarps<Tile>][Tile::kScratch];
  uint16_t keep[kWarps<Tile>][Tile::kRows * Tile::kCols / 16];
  Row rows[Tile::kCols];
  bool shown[Tile::kCols];
};

template <Arithmetic arithmetic, int width>
using BackwardBlock = BackwardShared<BackwardTile<arithmetic, width>>;

constexpr int kRowThreads = 256;

// A warp a query.
template <class T>
__global__ void __launch_bounds__(kRowThreads)
    row_kernel(Problem p, Heads<const T> out, Heads<const T> grad, Heads<const float> statistics,
               Row* to, int64_t rows) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t row = thread_index() / kWarp;
  if (row >= rows) return;
  const int64_t bh = row / p.queries, b = bh / p.heads, h = bh % p.heads, i = row % p.queries;
  Row mine;
  if (!p.query_valid || p.query_valid[b * p.queries + i]) {
    const T *o = out.at(b, h, i), *g = grad.at(b, h, i);
    float sum = 0;
    for (int x = lane; x < p.dv; x += kWarp) sum = fmaf(load(o + x), load(g + x), sum);
    mine.delta = warp_sum(sum);
    const float* kept = statistics.at(b, h, i);
    if (kept[1] != 0) {  // 0: the query sees no key
      mine.maximum = kept[0];
      mine.log2_sum = log2f(kept[1]);
    }
  }
  if (lane == 0) to[row] = mine;
}

template <class Tile, class T>
__global__ void __launch_bounds__(kThreads<Tile>, Tile::kBlocks)
    key_kernel(Problem p, Heads<const T> q, Heads<const T> k, Heads<const T> v, Heads<const T> grad,
               const Row* rows, Heads<T> dk, Heads<T> dv) {
  constexpr int kCols = Tile::kCols, pieces = Tile::kRows / 16;
  auto& m = *shared_memory<BackwardShared<Tile>>();
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kWarp, warp = thread / kWarp;
  // The first tile of a causal head is the longest and starts first.
  const auto tiles = static_cast<unsigned>((p.keys + kOwnRows - 1) / kOwnRows);
  const int bh = static_cast<int>(blockIdx.x / tiles), b = bh / p.heads, h = bh % p.heads;
  const int j0 = static_cast<int>(blockIdx.x % tiles) * kOwnRows;
  const bool* query_valid = p.query_valid ? p.query_valid + int64_t{b} * p.queries : nullptr;
  const bool* key_valid = p.key_valid ? p.key_valid + int64_t{b} * p.keys : nullptr;
  rows += int64_t{bh} * p.queries;

  const int n = least(kOwnRows, p.keys - j0);
  int begin = p.first_query(j0) / kCols * kCols;
  if (key_valid) {
    bool any = false;
    for (int j = thread; j < n; j += kThreads<Tile>) any = any || key_valid[j0 + j];
    if (!__syncthreads_or(any)) begin = p.queries;
  }
  if (begin < p.queries) {
    const bool* tile_valid = key_valid ? key_valid + j0 : nullptr;
    load_rows<Tile, kOwnRows>(m.own[0], k.at(b, h, j0), k.row, n, p.d, k.vector, tile_valid);
    load_rows<Tile, kOwnRows>(m.own[1], v.at(b, h, j0), v.row, n, p.dv, v.vector, tile_valid);
  }

  const int row0 = j0 + warp * Tile::kRows, own = warp * Tile::kRows * Tile::kPitch;
  const int warp_begin = row0 < p.keys ? p.first_query(row0) : p.queries;
  const int all_begin = p.first_query(row0 + Tile::kRows - 1);  // from here on all rows are seen
  float key_sums[Tile::kSums], value_sums[Tile::kSums];
#pragma unroll
  for (int e = 0; e < Tile::kSums; ++e) key_sums[e] = value_sums[e] = 0;

  for (int i0 = begin; i0 < p.queries; i0 += kCols) {
    __syncthreads();  // the last tile has been read
    bool sees = false;
    if (thread < kCols) {
      const Row row = i0 + thread < p.queries ? rows[i0 + thread] : Row{};
      sees = row.log2_sum != INFINITY;
      m.rows[thread] = row;
    }
    if (!__syncthreads_or(sees)) continue;
    const int n_queries = least(kCols, p.queries - i0);
    const bool* tile_valid = query_valid ? query_valid + i0 : nullptr;
    load_rows<Tile, kCols>(m.other[0], q.at(b, h, i0), q.row, n_queries, p.d, q.vector, tile_valid);
    load_rows<Tile, kCols>(m.other[1], grad.at(b, h, i0), grad.row, n_queries, p.dv, grad.vector,
                           tile_valid);
    __syncthreads();
    if (i0 + kCols <= warp_begin || warp_begin >= p.queries) continue;

    float s[Tile::kScores], ds[Tile::kScores];
    Tile::dot(s, m.own[0] + own, m.other[0], lane);
    orient(p, s);
    Tile::dot(ds, m.own[1] + own, m.other[1], lane);
    uint16_t* keep = m.keep[warp];
    if (p.threshold)
      draw_keep<kCols, pieces>(
          p, keep, static_cast<uint64_t>((int64_t{bh} * p.queries + i0) * p.keys + row0),
          static_cast<uint64_t>(p.keys), lane);
    int first[Tile::kLaneRows];  // query of the tile that sees the row
#pragma unroll
    for (int r = 0; r < Tile::kLaneRows; ++r)
      first[r] = i0 >= all_begin ? 0 : p.first_query(row0 + Tile::row(lane, r)) - i0;
#pragma unroll
    for (int e = 0; e < Tile::kScores; ++e) {
      const int i = Tile::column(lane, e), j = Tile::row(lane, Tile::slot(e));
      const Row row = m.rows[i];
      const bool hidden = i < first[Tile::slot(e)] || row.log2_sum == INFINITY;
      const float weight =
          hidden ? 0.0f : exp2f((s[e] - row.maximum) * p.log2_scale - row.log2_sum);
      const float factor = !p.threshold ? 1.0f : kept<pieces>(keep, i, j) ? p.kept : 0.0f;
      s[e] = weight * factor;
      ds[e] = hidden ? 0.0f : weight * (ds[e] * factor - row.delta);
    }
    Tile::weigh(value_sums, s, m.other[1], m.scratch[warp], lane);
    Tile::weigh(key_sums, ds, m.other[0], m.scratch[warp], lane);
  }

  float factor[Tile::kLaneRows];
#pragma unroll
  for (int r = 0; r < Tile::kLaneRows; ++r) factor[r] = 1;
  store_rows<Tile>(dv, b, h, row0, p.keys, p.dv, key_valid, value_sums, factor, lane);
#pragma unroll
  for (int r = 0; r < Tile::kLaneRows; ++r) factor[r] = p.scale;
  store_rows<Tile>(dk, b, h, row0, p.keys, p.d, key_valid, key_sums, factor, lane);
}

template <class Tile, class T>
__global__ void __launch_bounds__(kThreads<Tile>, Tile::kBlocks)
    query_kernel(Problem p, Heads<const T> q, Heads<const T> k, Heads<const T> v,
                 Heads<const T> grad, const Row* rows, Heads<T> dq) {
  constexpr int kCols = Tile::kCols, pieces = kCols / 16;
  auto& m = *shared_memory<BackwardShared<Tile>>();
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kWarp, warp = thread / kWarp;
  const auto tiles = static_cast<unsigned>((p.queries + kOwnRows - 1) / kOwnRows);
  const int bh = static_cast<int>(blockIdx.x / tiles), b = bh / p.heads, h = bh % p.heads;
  const int i0 = static_cast<int>(tiles - 1 - blockIdx.x % tiles) * kOwnRows;
  const bool* query_valid = p.query_valid ? p.query_valid + int64_t{b} * p.queries : nullptr;
  const bool* key_valid = p.key_valid ? p.key_valid + int64_t{b} * p.keys : nullptr;

  const int n = least(kOwnRows, p.queries - i0);
  const int row0 = i0 + warp * Tile::kRows, own = warp * Tile::kRows * Tile::kPitch;
  int end = p.seen(i0 + n - 1);
  Row row[Tile::kLaneRows];
  bool any = false;
#pragma unroll
  for (int r = 0; r < Tile::kLaneRows; ++r) {
    const int i = row0 + Tile::row(lane, r);
    row[r] = i < p.queries ? rows[int64_t{bh} * p.queries + i] : Row{};
    any = any || row[r].log2_sum != INFINITY;
  }
  if (!__syncthreads_or(any)) end = 0;
  if (end > 0) {
    const bool* tile_valid = query_valid ? query_valid + i0 : nullptr;
    load_rows<Tile, kOwnRows>(m.own[0], q.at(b, h, i0), q.row, n, p.d, q.vector, tile_valid);
    load_rows<Tile, kOwnRows>(m.own[1], grad.at(b, h, i0), grad.row, n, p.dv, grad.vector,
                              tile_valid);
  }

  const int warp_end = row0 < p.queries ? p.seen(least(row0 + Tile::kRows, p.queries) - 1) : 0;
  const int warp_all = row0 < p.queries ? p.seen(row0) : 0;
  float sums[Tile::kSums];
#pragma unroll
  for (int e = 0; e < Tile::kSums; ++e) sums[e] = 0;

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
    load_rows<Tile, kCols>(m.other[0], k.at(b, h, j0), k.row, n_keys, p.d, k.vector, tile_valid);
    load_rows<Tile, kCols>(m.other[1], v.at(b, h, j0), v.row, n_keys, p.dv, v.vector, tile_valid);
    __syncthreads();
    if (j0 >= warp_end) continue;

    float s[Tile::kScores], ds[Tile::kScores];
    Tile::dot(s, m.own[0] + own, m.other[0], lane);
    orient(p, s);
    Tile::dot(ds, m.own[1] + own, m.other[1], lane);
    uint16_t* keep = m.keep[warp];
    if (p.threshold)
      draw_keep<Tile::kRows, pieces>(
          p, keep, static_cast<uint64_t>((int64_t{bh} * p.queries + row0) * p.keys + j0),
          static_cast<uint64_t>(p.keys), lane);
    const bool all = count == kCols && j0 + kCols <= warp_all;
    int seen[Tile::kLaneRows];  // keys of the tile
#pragma unroll
    for (int r = 0; r < Tile::kLaneRows; ++r)
      seen[r] = row[r].log2_sum == INFINITY ? 0 : p.seen(row0 + Tile::row(lane, r)) - j0;
#pragma unroll
    for (int e = 0; e < Tile::kScores; ++e) {
      const int j = Tile::column(lane, e), i = Tile::row(lane, Tile::slot(e));
      const Row of = row[Tile::slot(e)];
      const bool hidden = j >= seen[Tile::slot(e)] || (!all && !m.shown[j]);
      const float weight = exp2f((s[e] - of.maximum) * p.log2_scale - of.log2_sum);
      const float factor = !p.threshold ? 1.0f : kept<pieces>(keep, i, j) ? p.kept : 0.0f;
      s[e] = hidden ? 0.0f : weight * (ds[e] * factor - of.delta);
    }
    Tile::weigh(sums, s, m.other[0], m.scratch[warp], lane);
  }

  float factor[Tile::kLaneRows];
#pragma unroll
  for (int r = 0; r < Tile::kLaneRows; ++r) factor[r] = p.scale;
  store_rows<Tile>(dq, b, h, row0, p.queries, p.d, query_valid, sums, factor, lane);
}

template <class T>
void backward(const SoftmaxAttentionBackward& x) {
  const Problem p = problem(x.in);
  const int64_t heads = x.in.q->size(0) * x.in.q->size(1), n_rows = heads * p.queries;
  auto* rows = static_cast<Row*>(x.scratch.data());
  launch(row_kernel<T>, {blocks_for(n_rows, kRowThreads / kWarp), kRowThreads}, p,
         heads_of<const T>(x.out), heads_of<const T>(x.grad), heads_of<const float>(x.statistics),
         rows, n_rows);
  const auto blocks = [&](int64_t length) {
    return blocks_for(heads * ((length + kOwnRows - 1) / kOwnRows), 1);
  };
  with_arithmetic<T>(p, [&]<Arithmetic arithmetic, int width>() {
    using Tile = BackwardTile<arithmetic, width>;
    constexpr size_t shared = sizeof(BackwardBlock<arithmetic, width>);
    const auto query = heads_of<const T>(x.in.q), key = heads_of<const T>(x.in.k),
               value = heads_of<const T>(x.in.v);
    const auto cotangent = heads_of<const T>(x.grad);
    launch(key_kernel<Tile, T>, {blocks(p.keys), kThreads<Tile>, shared}, p, query, key, value,
           cotangent, rows, heads_of<T>(x.dk), heads_of<T>(x.dv));
    launch(query_kernel<Tile, T>, {blocks(p.queries), kThreads<Tile>, shared}, p, query, key, value,
           cotangent, rows, heads_of<T>(x.dq));
  });
}

}  // namespace
}  // namespace attention

void softmax_attention_backward(const SoftmaxAttentionBackward& x) {
  if (x.in.q->dtype() == DType::bfloat16) {
    attention::backward<bfloat16>(x);
  } else {
    attention::backward<float>(x);
  }
}

Support softmax_attention_backward_supports(const SoftmaxAttentionOperands& in) {
  return attention::supports<attention::BackwardBlock>(in.q, in.v);
}

size_t softmax_attention_backward_scratch(const SoftmaxAttentionOperands& in) {
  return static_cast<size_t>(in.q->size(0) * in.q->size(1) * in.q->size(2)) *
         sizeof(attention::Row);
}

}  // namespace macgrad::cuda
