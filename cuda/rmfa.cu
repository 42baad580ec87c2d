// Random Maclaurin feature attention, forward: out = Φ_q (Φ_kᵀ V̄), first dv columns over the last.
// Features live in shared memory only. A state of the keys first (rmfa_states.cu), then tiles of
// queries read it, chunk of features by chunk.
//
// Causal attention cuts the queries into segments, a block each, which starts with the state of all
// keys before it and walks tile by tile: the state, plus the masked product inside the tile; the
// block advances its state in device memory. Shape letters: B batch, H heads, T queries (Tn), S
// keys, d head dimension, dv values. Equations: nn/README.md, RMFA.
#include "macgrad/core/kernels/rmfa.h"
#include "macgrad/cuda/denominators.cuh"
#include "macgrad/cuda/rmfa_states.cuh"

namespace macgrad::cuda {
namespace rmfa {
namespace {

template <class E>
struct Result {
  Rows<E> out;
  float* den = nullptr;    // (B, H, T)
  double* seen = nullptr;  // Denominators::kNumbers per block
};

/// Half of a row's sum Σ_m a_m b_m over 64 elements; the halves sit in neighbouring lanes.
__device__ inline float half_dot(const float* a, const float* b) {
  float sum = 0.0f;
#pragma unroll 8
  for (int i = static_cast<int>(threadIdx.x) % 2; i < kTile; i += 2) sum += a[i] * b[i];
  return sum;
}

template <class E, Rounding rounding, int W, bool causal>
__global__ void __launch_bounds__(kThreads, kBlocks)
    read_queries(const __grid_constant__ Problem<E> p, Result<E> result, float* states,
                 int64_t length) {
  using Memory = OutputMemory<W, causal>;
  auto& memory = *shared_memory<Memory>();
  const Map& map = p.map;
  const Layout layout = *p.layout;
  const int heads = p.B * p.H;
  const int head = static_cast<int>(blockIdx.x) % heads;
  const int64_t part = static_cast<int>(blockIdx.x) / heads;
  const int b = head / p.H, h = head % p.H, tid = static_cast<int>(threadIdx.x);
  const int64_t size = map.state_size();
  float* state = states + ((causal ? part * heads : 0) + head) * size;
  float* last = state + int64_t{map.chunks} * kTile * map.row();
  Block<E, rounding, W> block{p,
                              p.omega + h * p.omega_head,
                              memory.chunk,
                              memory.stage,
                              memory.products,
                              most_columns(causal) + 4};
  // Causal features of q go beside those of k; else they stay where the projections were.
  float* phi = causal ? memory.features : memory.products;
  const int ld_phi = causal ? kLd : block.ld_products;
  const int64_t end = part * length + length < p.Tn ? part * length + length : p.Tn;
  Denominators seen;
  for (int64_t t = part * length; t < end; t += kTile) {
    const int n = static_cast<int>(end - t < kTile ? end - t : kTile);
    const bool* query_valid = p.query_valid ? p.query_valid + b * p.Tn + t : nullptr;
    const int64_t first = causal ? p.keys_before(t) : 0;
    const int keys = causal ? static_cast<int>(p.keys_before(t + n) - first) : 0;
    const int64_t shift = t + p.S - p.Tn - first;
    const bool* key_valid = causal && p.key_valid ? p.key_valid + b * p.S + first : nullptr;
    const bool more = t + kTile < end;
    __syncthreads();  // the tile before is written
    if constexpr (causal) {
      load_rows<W>(memory.v, p.v.at(b, h, first), p.v.token, map.dv, keys, key_valid);
      load_visible(memory.u, key_valid, keys);
    } else {
      load_rows<W>(memory.x, p.q.at(b, h, t), p.q.token, map.d, n, query_valid);
    }
    if (tid <= map.dv) memory.totals[tid] = last[tid];
    if (tid == 0 && map.dv == kThreads) memory.totals[kThreads] = last[kThreads];
    Sums<rounding, W> sums;
    sums.clear();
    float den = 0.0f;  // of row tid/2, this lane's half
    for (int index = 0; index < layout.chunks; ++index) {
      block.open(index);
      if constexpr (causal) {
        load_rows<W>(memory.x, p.q.at(b, h, t), p.q.token, map.d, n, query_valid);
        __syncthreads();
      }
      block.project(memory.x);
      block.features(memory.x, phi, ld_phi);
      const int K = memory.chunk.padded();
      if constexpr (causal) {
        load_rows<W>(memory.x, p.k.at(b, h, first), p.k.token, map.d, keys, key_valid);
        __syncthreads();
        block.project(memory.x);
        block.features(memory.x, memory.products, block.ld_products);
        Sums<rounding, 1, Columns::spread> scores;
        scores.clear();
        multiply_add<true, true>(scores, phi, ld_phi, memory.products, block.ld_products, K);
        // The constant's share of the tile enters with the first chunk.
        const float constant = index == 0 ? layout.constant : 0.0f;
        scores.each(
            [&](int r, int c, float& x) { x = c < keys && c <= r + shift ? x + constant : 0.0f; });
        scores.store(memory.x, kLd);
      }
      load_state<W>(memory.state, memory.fsum, state, map, index);
      __syncthreads();
      multiply_add<true, false>(sums, phi, ld_phi, memory.state, kWide<W>, K);
      den += half_dot(phi + tid / 2 * ld_phi, memory.fsum);
      if constexpr (causal) {
        multiply_add<true, false>(sums, memory.x, kLd, memory.v, kWide<W>, kTile);
        den += half_dot(memory.x + tid / 2 * kLd, memory.u);
        if (more) {
          // The tile's keys join the state.
          float* rows = state + int64_t{index} * kTile * map.row();
          Sums<rounding, W> news;
          news.clear();
          multiply_add<false, false>(news, memory.products, block.ld_products, memory.v, kWide<W>,
                                     kTile);
          news.each([&](int m, int j, float x) {
            if (j < map.dv) rows[m * map.row() + j] = memory.state[m * kWide<W> + j] + x;
          });
          const float fsum = reduce_halves(
              column_of_u(memory.products, block.ld_products, memory.u), memory.inverse);
          if (tid < kTile) rows[tid * map.row() + map.dv] = memory.fsum[tid] + fsum;
        }
      }
      __syncthreads();
    }
    if (causal && more) {
      float vsum = 0.0f, usum = 0.0f;
      for (int i = 0; i < kTile; ++i) {
        if (tid < map.dv) vsum += memory.v[i * kWide<W> + tid];
        usum += memory.u[i];
      }
      if (tid < map.dv) last[tid] = memory.totals[tid] + vsum;
      if (tid == 0) last[map.dv] = memory.totals[map.dv] + usum;
    }
    // Denominators, floored; rows that see nothing are zero.
    den += __shfl_xor_sync(kFullWarp, den, 1);
    if (tid % 2 == 0) {
      const int r = tid / 2;
      const bool live = r < n && p.query_visible(b, t + r);
      const int count = live ? p.visible_keys(b, t + r) : 0;
      memory.live[r] = count > 0;
      float value = 0.0f;
      if (count > 0) {
        value = den + layout.constant * memory.totals[map.dv];
        const float bound = static_cast<float>(p.floor * count);
        const bool unsafe = p.floor > 0.0 ? value < bound : value <= 0.0f;
        seen.add(1.0, unsafe ? 1.0 : 0.0, 0.0, static_cast<double>(value) / count);
        memory.inverse[r] = 1.0f / (p.floor > 0.0 && unsafe ? bound : value);
      }
      if (r < n) result.den[int64_t{head} * p.Tn + t + r] = value;
    }
    __syncthreads();
    sums.each([&](int r, int c, float& x) {
      x = (x + layout.constant * memory.totals[c < map.dv ? c : 0]) * memory.inverse[r];
    });
    sums.store(memory.x, kWide<W>);
    __syncthreads();
    store_rows<W>(result.out.at(b, h, t), result.out.token, map.dv, n, memory.x, memory.live);
  }
  seen.write<kThreads>(result.seen + Denominators::kNumbers * blockIdx.x, memory.reduce);
}

template <class E>
void forward(const RmfaForward& x) {
  Problem<E> p = make_problem<E>(x.in);
  const int64_t heads = int64_t{p.B} * p.H;
  const Cut cut(p.map, heads, p.Tn, p.S, p.causal);
  const Memory memory(x.scratch.data(), p.map, cut, p.B, p.H, p.Tn, p.key_valid, p.causal, false);
  prepare(p, x.in.args, memory);
  key_states(p, cut, memory.key_states);
  const int64_t parts = p.Tn == 0 ? 0 : p.causal ? cut.segments : tiles_of(p.Tn);
  const int64_t first = p.causal ? cut.first_segment : cut.keys.count() - 1;
  float* states = memory.key_states + first * heads * p.map.state_size();
  const Result<E> result{Rows<E>(x.out), x.den->data<float>(), memory.seen};
  const unsigned blocks = blocks_for(heads * parts, 1);
  dispatch_tiles<E>(p.map, [&]<Rounding rounding, int W>() {
    if (p.causal) {
      launch(read_queries<E, rounding, W, true>, {blocks, kThreads, OutputMemory<W, true>::bytes()},
             p, result, states, cut.length);
    } else {
      launch(read_queries<E, rounding, W, false>,
             {blocks, kThreads, OutputMemory<W, false>::bytes()}, p, result, states,
             int64_t{kTile});
    }
  });
  join_denominators(memory.seen, blocks, x.stats->data<double>());
}

}  // namespace
}  // namespace rmfa

void rmfa_forward(const RmfaForward& x) {
  if (x.in.q->dtype() == DType::bfloat16) {
    rmfa::forward<bfloat16>(x);
  } else {
    rmfa::forward<float>(x);
  }
}

Support rmfa_forward_supports(const RmfaOperands& in) {
  return rmfa::supports(in, false);
}

size_t rmfa_forward_scratch(const RmfaOperands& in) {
  return rmfa::scratch_bytes(in, false);
}

}  // namespace macgrad::cuda
