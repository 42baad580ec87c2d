// Backward pass of linear attention on given features: gradients of keys, values and key weights,
// a block per 64 keys. Equations and shape letters: cuda/linear_attention_backward.cu.
#include "macgrad/cuda/linear_attention_backward.cuh"

namespace macgrad::cuda::linear {
namespace {

/// Gradients of a tile of keys: those that all queries see, or the ones of a causal block.
template <class T, Rounding rounding, bool causal>
__global__ void __launch_bounds__(kThreads, rmfa::kBlocks)
    pull_tile(const __grid_constant__ Problem<T> p,
              const __grid_constant__ Gradients<T> gradients) {
  auto& m = *shared_memory<Tiles<T>>();
  const int tid = static_cast<int>(threadIdx.x);
  const int head = static_cast<int>(blockIdx.x) % p.heads();
  const int tile = static_cast<int>(blockIdx.x) / p.heads();
  Puller<T, rounding> block(p, m, gradients, head, causal ? tile : 0);
  const int b = block.b, h = block.h;
  const int64_t s = causal ? block.first : int64_t{tile} * kTile;
  const int n = causal                         ? block.keys
                : p.keys.split_end - s < kTile ? static_cast<int>(p.keys.split_end - s)
                                               : kTile;
  if (n == 0) return;
  const int later = causal ? tile + 1 : 0;  // range of the queries that see all of the tile
  const bool seen = later < p.queries.count();
  const T* state = p.query_states + (seen ? p.state_at(later, head) : 0);
  const T* fsum = block.sums_of(state);
  const double* shift = p.shift(later, head);
  const bool plain_weights = !p.map.log && p.log_weight;
  if constexpr (causal) {
    block.load_rows();
    block.make_all_scores();
  } else {
    block.load_weights(s, n);
    __syncthreads();
  }
  // m.keep, of rows of queries so far, now belongs to keys: their weights in the state.
  if (tid < kTile) {
    const bool visible = block.visible(tid);
    m.keep[tid] = plain_weights && visible ? static_cast<T>(growth(m.l[tid], shift[0])) : T(1);
    double pulled = plain_weights && visible && seen
                        ? static_cast<double>(m.keep[tid]) * p.floors[later * p.heads() + head]
                        : 0.0;
    if (causal && plain_weights)
#pragma unroll 1
      for (int i = 0; i < block.n; ++i)
        pulled += static_cast<double>(m.scores[i * kLd + tid] * m.u[i]) +
                  static_cast<double>(m.pull[i] == T(0) ? T(0) : block.weight(i, tid) * m.pull[i]);
    m.total[tid] = pulled;  // becomes dℓ
  }
  __syncthreads();
  for (int value = 0; value < p.map.values(); ++value) {
    typename Puller<T, rounding>::Packed sums;
    sums.clear();
    for (int chunk = 0; seen && chunk < p.map.chunks(); ++chunk) {
      __syncthreads();
      block.load_keys(m.a, s, n, chunk, shift);
      block.load_state(m.b, state, chunk, value);
      __syncthreads();
      multiply_add<true, false>(sums, m.a, kLd, m.b, kLd, Map::padded(p.map.C, chunk));
    }
    sums.each([&](int j, int, T& x) { x *= m.keep[j]; });
    __syncthreads();
    if constexpr (causal) {
      block.load_grad(m.b, value);
      __syncthreads();
      multiply_add<false, false>(sums, m.scores, kLd, m.b, kLd, kTile);
    }
    sums.store(m.a, kLd);
    __syncthreads();
    block.store_rows(gradients.dv, s, n, p.map.dv, value,
                     [&](int j, int c) { return block.visible(j) ? m.a[j * kLd + c] : T(0); });
    if (plain_weights) {
      for (int j = warp_index(); j < n; j += kThreads / kWarp) {
        double sum = 0.0;
        if (block.visible(j)) {
          const T* values = p.v.at(b, h, s + j) + value * kTile;
          for (int c = lane_index(); c < Map::part(p.map.dv, value); c += kWarp)
            sum += static_cast<double>(values[c] * m.a[j * kLd + c]);
        }
        sum = warp_sum(sum);
        if (lane_index() == 0) m.total[j] += sum;
      }
    }
  }
  if constexpr (causal) block.make_cotangents();
  for (int chunk = 0; chunk < p.map.chunks(); ++chunk) {
    typename Puller<T, rounding>::Spread of_state;
    typename Puller<T, rounding>::Packed of_block;
    of_state.clear();
    of_block.clear();
    for (int value = 0; seen && value < p.map.values(); ++value) {
      __syncthreads();
      block.load_values(m.a, p.v, s, n, value,
                        [&](int j) { return block.visible(j) ? T(1) : T(0); });
      block.load_state(m.b, state, chunk, value);
      __syncthreads();
      multiply_add<true, true>(of_state, m.a, kLd, m.b, kLd, Map::padded(p.map.dv, value));
    }
    __syncthreads();
    if constexpr (causal) {
      block.load_inner_queries(m.b, chunk, [&](int r) { return m.live[r] && !m.lost[r]; });
      __syncthreads();
      multiply_add<false, false>(of_block, m.scores, kLd, m.b, kLd, kTile);
      __syncthreads();
    }
    of_state.store(m.a, kLd);
    of_block.store(m.b, kLd);
    __syncthreads();
    // Gradients of the chunk's columns, κ included, into a.
    const int width = Map::part(p.map.C, chunk);
    fill_tile(m.a, [&](int j, int c) {
      if (j >= n || c >= width || !block.visible(j)) return T(0);
      const int column = chunk * kTile + c;
      const T from_state = seen ? m.a[j * kLd + c] + fsum[column] : T(0);
      if (!p.map.log) return m.keep[j] * from_state + m.b[j * kLd + c];
      const T* key = p.k.at(b, h, s + j);
      T sum = p.feature(p.key(key, column), m.l[j] - shift[column]) * from_state;
      if constexpr (causal) {
        const double inner = static_cast<double>(p.inner_shift(tile, head)[column]);
        sum += p.feature(p.key(key, column), -inner) * m.b[j * kLd + c];
#pragma unroll 1
        for (int r = 0; r < block.n; ++r) {
          if (!m.lost[r] || j >= block.end(r)) continue;
          const T* query = p.q.at(b, h, block.t + r);
          sum += static_cast<T>(block.pair(query, key, r, j, column) *
                                static_cast<double>(m.scores[r * kLd + j]));
        }
      }
      return sum;
    });
    __syncthreads();
    block.store_rows(gradients.dk, s, n, p.map.M, chunk,
                     [&](int j, int c) { return m.a[j * kLd + c]; });
    if (!p.log_weight) continue;
    // dℓ: of log-features Σ_m da_jm, of plain ones what the state's denominators pull.
    for (int j = warp_index(); j < n; j += kThreads / kWarp) {
      if (!block.visible(j)) continue;
      const T* key = p.k.at(b, h, s + j);
      double sum = 0.0;
      for (int c = lane_index(); c < width; c += kWarp) {
        const int column = chunk * kTile + c;
        if (p.map.log)
          sum += static_cast<double>(m.a[j * kLd + c]);
        else if (seen)
          sum += static_cast<double>(m.keep[j] * p.key(key, column) * fsum[column]);
      }
      sum = warp_sum(sum);
      if (lane_index() == 0) m.total[j] += sum;
    }
  }
  __syncthreads();
  if (p.log_weight && tid < n)
    gradients.dl[int64_t{head} * p.S + s + tid] = block.visible(tid) ? m.total[tid] : 0.0;
}

}  // namespace

template <class T>
void pull_keys(const Problem<T>& p, const Cut& cut, const Gradients<T>& x) {
  with_rounding<T>([&]<Rounding rounding>() {
    launch(pull_tile<T, rounding, false>, blocks_of(p, cut.keys.split_end), p, x);
    if (p.causal) launch(pull_tile<T, rounding, true>, blocks_of(p, p.Tn), p, x);
  });
}

template void pull_keys(const Problem<float>&, const Cut&, const Gradients<float>&);
template void pull_keys(const Problem<double>&, const Cut&, const Gradients<double>&);

}  // namespace macgrad::cuda::linear
