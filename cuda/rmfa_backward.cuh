// Kernels of the backward pass of RMFA (rmfa_backward.cu): a block per tile of queries, or segment
// of them when causal, pulls dq; a block per tile or segment of keys pulls dk and dv. Features are
// made again chunk by chunk. Each combination of element type and rounding is compiled in a file of
// its own. Shape letters: B batch, H heads, T queries (Tn), S keys, d head dimension, dv values.
#pragma once

#include "macgrad/cuda/rmfa_states.cuh"

namespace macgrad::cuda::rmfa {

/// A tile of queries and the keys that begin to be seen inside it.
struct Inner {
  int queries, keys;
  int64_t first, shift;  // key c is seen by query r where c <= r + shift

  template <class E>
  __device__ static Inner at(const Problem<E>& p, int64_t t, int64_t end) {
    Inner in;
    in.queries = static_cast<int>(end - t < kTile ? end - t : kTile);
    in.first = p.keys_before(t);
    in.keys = static_cast<int>(p.keys_before(t + in.queries) - in.first);
    in.shift = t + p.S - p.Tn - in.first;
    return in;
  }
  __device__ bool seen(int r, int c) const { return c < keys && c <= r + shift; }
};

/// Gradient of the kernel's values inside a tile, (queries, keys) with stride kLd: G·V̄ᵀ, masked.
template <Rounding rounding, int W>
__device__ inline void inner_cotangents(float* to, const Inner& in, const float* g, const float* ug,
                                        const float* v, const float* uk, int values) {
  Sums<rounding, 1, Columns::spread> sums;
  sums.clear();
  multiply_add<true, true>(sums, g, kWide<W>, v, kWide<W>, values);
  sums.each([&](int r, int c, float& x) { x = in.seen(r, c) ? x + ug[r] * uk[c] : 0.0f; });
  sums.store(to, kLd);
}

/// Adds a tile's features to one chunk of a running state: the old one in shared memory, the new
/// one to device memory.
template <Rounding rounding, int W>
__device__ inline void advance(float* rows, const Map& map, const float* old, const float* old_fsum,
                               const float* features, const float* v, const float* u,
                               float* scratch) {
  Sums<rounding, W> sums;
  sums.clear();
  multiply_add<false, false>(sums, features, kLd, v, kWide<W>, kTile);
  sums.each([&](int m, int j, float x) {
    if (j < map.dv) rows[m * map.row() + j] = old[m * kWide<W> + j] + x;
  });
  const float fsum = reduce_halves(column_of_u(features, kLd, u), scratch);
  const int tid = static_cast<int>(threadIdx.x);
  if (tid < kTile) rows[tid * map.row() + map.dv] = old_fsum[tid] + fsum;
}

// dphi of a tile from [v, u] and the chunk of a state, before what a causal tile adds.
template <Rounding rounding, int W>
using FeatureGradients = Sums<rounding, 1, Columns::spread>;

/// Gradients of features back to x: through the projections left in block.products, or straight for
/// the linear block. Ends with a barrier.
template <class E, Rounding rounding, int W>
__device__ inline void pull_features(Block<E, rounding, W>& block,
                                     FeatureGradients<rounding, W>& dphi,
                                     Sums<rounding, W, Columns::spread>& dx) {
  if (block.chunk.linear) {
    const float root = block.p.layout->root;
    // The chunk's dimensions are the first or the second 64 columns of dx.
    const bool second = block.chunk.first > 0;
    constexpr int group = FeatureGradients<rounding, W>::kGroup;
#pragma unroll
    for (int e = 0; e < dx.kCount; ++e) {
      const int part = e % (group * W) / group;
      if (part == (second ? 1 : 0)) dx.v[e] += root * dphi.v[e / (group * W) * group + e % group];
    }
    __syncthreads();
    return;
  }
  // Unrolled over a thread's sums, the loops over levels would be 32 copies: more code than a
  // multiprocessor's instruction cache holds.
  __syncthreads();  // the state is no longer read
  dphi.store(block.stage, kLd);
  __syncthreads();
  block.pull_projections();
  block.pull_inputs(dx);
}

template <class E, Rounding rounding, int W, bool causal>
__global__ void __launch_bounds__(kThreads, kBlocks)
    pull_queries(const __grid_constant__ Problem<E> p,
                 const __grid_constant__ Cotangents<E> cotangents, Rows<E> dq, float* states,
                 int64_t length) {
  auto& memory = *shared_memory<QueryMemory<W, causal>>();
  const Map& map = p.map;
  const int heads = p.B * p.H;
  const int head = static_cast<int>(blockIdx.x) % heads;
  const int64_t part = static_cast<int>(blockIdx.x) / heads;
  const int b = head / p.H, h = head % p.H, tid = static_cast<int>(threadIdx.x);
  float* state = states + ((causal ? part * heads : 0) + head) * map.state_size();
  Block<E, rounding, W> block{p,
                              p.omega + h * p.omega_head,
                              memory.chunk,
                              memory.stage,
                              memory.products,
                              most_columns(causal) + 4};
  const int64_t end = part * length + length < p.Tn ? part * length + length : p.Tn;
  for (int64_t t = part * length; t < end; t += kTile) {
    const Inner in = Inner::at(p, t, end);
    const bool* query_valid = p.query_valid ? p.query_valid + b * p.Tn + t : nullptr;
    const bool* key_valid = causal && p.key_valid ? p.key_valid + b * p.S + in.first : nullptr;
    __syncthreads();  // the tile before is written
    load_cotangents<W>(p, cotangents, b, h, t, in.queries, memory.g, memory.ug);
    if (tid < kTile) {
      memory.live[tid] =
          tid < in.queries && p.query_visible(b, t + tid) && p.visible_keys(b, t + tid) > 0;
    }
    const auto load_queries = [&] {
      load_rows<W>(memory.x, p.q.at(b, h, t), p.q.token, map.d, in.queries, query_valid);
    };
    const auto load_values = [&] {
      load_rows<W>(memory.x, p.v.at(b, h, in.first), p.v.token, map.dv, in.keys, key_valid);
    };
    if constexpr (causal) {
      load_values();
      load_visible(memory.uk, key_valid, in.keys);
      __syncthreads();
      inner_cotangents<rounding, W>(memory.cotangents, in, memory.g, memory.ug, memory.x, memory.uk,
                                    block.values());
    } else {
      load_queries();
    }
    Sums<rounding, W, Columns::spread> dx;
    dx.clear();
    for (int index = 0, chunks = p.layout->chunks; index < chunks; ++index) {
      block.open(index);
      if constexpr (causal) {
        load_rows<W>(memory.x, p.k.at(b, h, in.first), p.k.token, map.d, in.keys, key_valid);
        __syncthreads();
        block.project(memory.x);
        block.features(memory.x, memory.features, kLd);
        load_queries();
      }
      block.project(memory.x);
      load_state<W>(memory.state, memory.fsum, state, map, index);
      if constexpr (causal) load_values();  // q is no longer needed
      __syncthreads();
      FeatureGradients<rounding, W> dphi;
      dphi.clear();
      multiply_add<true, true>(dphi, memory.g, kWide<W>, memory.state, kWide<W>, block.values());
      dphi.each([&](int r, int m, float& x) { x += memory.ug[r] * memory.fsum[m]; });
      if constexpr (causal) {
        multiply_add<true, false>(dphi, memory.cotangents, kLd, memory.features, kLd, kTile);
        if (t + kTile < end) {
          advance<rounding, W>(state + int64_t{index} * kTile * map.row(), map, memory.state,
                               memory.fsum, memory.features, memory.x, memory.uk, memory.scratch);
        }
      }
      pull_features(block, dphi, dx);
    }
    __syncthreads();
    dx.store(memory.x, kWide<W>);
    __syncthreads();
    store_rows<W>(dq.at(b, h, t), dq.token, map.d, in.queries, memory.x, memory.live);
  }
}

/// dk and dv of a tile of keys. Not `causal`: part i is the tile of keys from 64·i on, before
/// `key_end`, and reads the one state. Causal: part i walks the tiles of segment i from its end.
template <class E, Rounding rounding, int W, bool causal>
__global__ void __launch_bounds__(kThreads, kBlocks)
    pull_keys(const __grid_constant__ Problem<E> p,
              const __grid_constant__ Cotangents<E> cotangents, Rows<E> dk, Rows<E> dv,
              float* states, int64_t length, int64_t key_end) {
  auto& memory = *shared_memory<KeyMemory<W, causal>>();
  const Map& map = p.map;
  const int heads = p.B * p.H;
  const int head = static_cast<int>(blockIdx.x) % heads;
  const int64_t part = static_cast<int>(blockIdx.x) / heads;
  const int b = head / p.H, h = head % p.H, tid = static_cast<int>(threadIdx.x);
  float* state = states + ((causal ? part * heads : 0) + head) * map.state_size();
  float* last = state + int64_t{map.chunks} * kTile * map.row();
  Block<E, rounding, W> block{p,
                              p.omega + h * p.omega_head,
                              memory.chunk,
                              memory.stage,
                              memory.products,
                              most_columns(p.causal) + 4};
  const int64_t begin = part * length;
  const int64_t end = !causal ? begin + kTile : begin + length < p.Tn ? begin + length : p.Tn;
  for (int64_t t = begin + (end - begin - 1) / kTile * kTile; t >= begin; t -= kTile) {
    Inner in;
    if constexpr (causal) {
      in = Inner::at(p, t, end);
    } else {
      in = {0, static_cast<int>(key_end - t < kTile ? key_end - t : kTile), t, 0};
    }
    const bool* key_valid = p.key_valid ? p.key_valid + b * p.S + in.first : nullptr;
    const auto load_keys = [&] {
      load_rows<W>(memory.x, p.k.at(b, h, in.first), p.k.token, map.d, in.keys, key_valid);
    };
    __syncthreads();  // the tile before is written
    load_rows<W>(memory.v, p.v.at(b, h, in.first), p.v.token, map.dv, in.keys, key_valid);
    load_visible(memory.uk, key_valid, in.keys);
    if (tid < kTile) memory.live[tid] = tid < in.keys && (!key_valid || key_valid[tid]);
    if (tid < map.dv) memory.totals[tid] = last[tid];
    if constexpr (causal) {
      load_cotangents<W>(p, cotangents, b, h, t, in.queries, memory.g, memory.ug);
      __syncthreads();
      inner_cotangents<rounding, W>(memory.cotangents, in, memory.g, memory.ug, memory.v, memory.uk,
                                    block.values());
    } else {
      load_keys();
    }
    Sums<rounding, W, Columns::spread> dx;
    Sums<rounding, W> values;
    dx.clear();
    values.clear();
    for (int index = 0, chunks = p.layout->chunks; index < chunks; ++index) {
      block.open(index);
      if constexpr (causal) {
        load_rows<W>(memory.x, p.q.at(b, h, t), p.q.token, map.d, in.queries,
                     p.query_valid ? p.query_valid + b * p.Tn + t : nullptr);
        __syncthreads();
        block.project(memory.x);
        block.features(memory.x, memory.query_features, kLd);
        load_keys();
        __syncthreads();
      }
      block.project(memory.x);
      block.features(memory.x, memory.features, kLd);
      const int K = memory.chunk.padded();
      if constexpr (causal) {
        Sums<rounding, 1, Columns::spread> scores;
        scores.clear();
        multiply_add<true, true>(scores, memory.query_features, kLd, memory.features, kLd, K);
        const float constant = index == 0 ? p.layout->constant : 0.0f;
        scores.each([&](int r, int c, float& x) { x = in.seen(r, c) ? x + constant : 0.0f; });
        scores.store(memory.x, kLd);
      }
      load_state<W>(memory.state, memory.fsum, state, map, index);
      __syncthreads();
      multiply_add<true, false>(values, memory.features, kLd, memory.state, kWide<W>, K);
      FeatureGradients<rounding, W> dphi;
      dphi.clear();
      multiply_add<true, true>(dphi, memory.v, kWide<W>, memory.state, kWide<W>, block.values());
      dphi.each([&](int r, int m, float& x) { x += memory.uk[r] * memory.fsum[m]; });
      if constexpr (causal) {
        multiply_add<false, false>(values, memory.x, kLd, memory.g, kWide<W>, kTile);
        multiply_add<false, false>(dphi, memory.cotangents, kLd, memory.query_features, kLd, kTile);
        if (t > begin) {
          advance<rounding, W>(state + int64_t{index} * kTile * map.row(), map, memory.state,
                               memory.fsum, memory.query_features, memory.g, memory.ug,
                               memory.scratch);
        }
      }
      pull_features(block, dphi, dx);
    }
    if (causal && t > begin && tid < map.dv) {
      float sum = 0.0f;
      for (int i = 0; i < kTile; ++i) sum += memory.g[i * kWide<W> + tid];
      last[tid] = memory.totals[tid] + sum;
    }
    __syncthreads();
    dx.store(memory.x, kWide<W>);
    const float constant = p.layout->constant;
    values.each([&](int, int c, float& x) { x += constant * memory.totals[c < map.dv ? c : 0]; });
    values.store(memory.v, kWide<W>);
    __syncthreads();
    store_rows<W>(dk.at(b, h, in.first), dk.token, map.d, in.keys, memory.x, memory.live);
    store_rows<W>(dv.at(b, h, in.first), dv.token, map.dv, in.keys, memory.v, memory.live);
  }
}

/// Where the gradients go.
template <class E>
struct Gradients {
  Rows<E> dq, dk, dv;
};

/// Launches the kernels above, with the states of both sides in `memory`.
template <class E, Rounding rounding>
void pull_gradients(const Problem<E>& p, const Cotangents<E>& cotangents, const Cut& cut,
                    const Memory& memory, const Gradients<E>& to) {
  const int64_t heads = int64_t{p.B} * p.H, size = heads * p.map.state_size();
  const int64_t early = p.causal ? std::clamp<int64_t>(p.S - p.Tn, 0, p.S) : p.S;
  float* all_queries = memory.query_states + (p.causal ? 0 : cut.queries.count() - 1) * size;
  const auto blocks = [&](int64_t parts) { return blocks_for(heads * parts, 1); };
  with_width(p.map.d, p.map.dv, [&]<int W>() {
    launch(pull_keys<E, rounding, W, false>,
           {blocks(tiles_of(early)), kThreads, KeyMemory<W, false>::bytes(p.causal)}, p, cotangents,
           to.dk, to.dv, all_queries, int64_t{kTile}, early);
    if (!p.causal) {
      launch(pull_queries<E, rounding, W, false>,
             {blocks(tiles_of(p.Tn)), kThreads, QueryMemory<W, false>::bytes()}, p, cotangents,
             to.dq, memory.key_states + (cut.keys.count() - 1) * size, int64_t{kTile});
    } else if (p.Tn > 0) {
      launch(pull_queries<E, rounding, W, true>,
             {blocks(cut.segments), kThreads, QueryMemory<W, true>::bytes()}, p, cotangents, to.dq,
             memory.key_states + cut.first_segment * size, cut.length);
      launch(pull_keys<E, rounding, W, true>,
             {blocks(cut.segments), kThreads, KeyMemory<W, true>::bytes(true)}, p, cotangents,
             to.dk, to.dv, memory.query_states + size, cut.length, p.S);
    }
  });
}

#define MACGRAD_PULL_GRADIENTS(E, rounding)                                                       \
  void pull_gradients<E, Rounding::rounding>(const Problem<E>&, const Cotangents<E>&, const Cut&, \
                                             const Memory&, const Gradients<E>&)
extern template MACGRAD_PULL_GRADIENTS(float, exact);
extern template MACGRAD_PULL_GRADIENTS(float, tf32);
extern template MACGRAD_PULL_GRADIENTS(float, bf16);
extern template MACGRAD_PULL_GRADIENTS(bfloat16, bf16);

}  // namespace macgrad::cuda::rmfa
