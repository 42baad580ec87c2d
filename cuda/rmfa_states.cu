// Kernels of the states of RMFA (rmfa_states.cuh): a block for each head, chunk of features and
// range of tokens, sums of states over ranges in a fixed order, and the number of keys that are
// visible. Shape letters: B batch, H heads, T queries (Tn), S keys, d head dimension, dv values.
#include "macgrad/cuda/rmfa_states.cuh"

namespace macgrad::cuda::rmfa {
namespace {

template <class E, Rounding rounding, int W, bool of_queries>
__global__ void __launch_bounds__(kThreads, kBlocks)
    accumulate_states(const __grid_constant__ Problem<E> p,
                      const __grid_constant__ Cotangents<E> cotangents, Ranges ranges,
                      float* states) {
  auto& memory = *shared_memory<StateMemory<W>>();
  const Map& map = p.map;
  const int index = static_cast<int>(blockIdx.x) % map.chunks;
  if (index >= p.layout->chunks) return;
  const int heads = p.B * p.H;
  const int head = static_cast<int>(blockIdx.x) / map.chunks % heads;
  const int range = static_cast<int>(blockIdx.x) / map.chunks / heads;
  const int b = head / p.H, h = head % p.H;
  const int tid = static_cast<int>(threadIdx.x);
  Block<E, rounding, W> block{p,
                              p.omega + h * p.omega_head,
                              memory.chunk,
                              memory.stage,
                              memory.products,
                              most_columns(p.causal) + 4};
  block.open(index);
  Sums<rounding, W> sums;
  sums.clear();
  float fsum = 0.0f, vsum = 0.0f, usum = 0.0f;
  int64_t begin, end;
  ranges.get(range, begin, end);
  for (int64_t t = begin; t < end; t += kTile) {
    const int n = static_cast<int>(end - t < kTile ? end - t : kTile);
    if constexpr (of_queries) {
      load_rows<W>(memory.x, p.q.at(b, h, t), p.q.token, map.d, n,
                   p.query_valid ? p.query_valid + b * p.Tn + t : nullptr);
      load_cotangents<W>(p, cotangents, b, h, t, n, memory.v, memory.u);
    } else {
      const bool* valid = p.key_valid ? p.key_valid + b * p.S + t : nullptr;
      load_rows<W>(memory.x, p.k.at(b, h, t), p.k.token, map.d, n, valid);
      load_rows<W>(memory.v, p.v.at(b, h, t), p.v.token, map.dv, n, valid);
      load_visible(memory.u, valid, n);
    }
    block.project(memory.x);
    block.features(memory.x, memory.products, block.ld_products);
    multiply_add<false, false>(sums, memory.products, block.ld_products, memory.v, kWide<W>, kTile);
    fsum += column_of_u(memory.products, block.ld_products, memory.u);
    if (index == 0) {
#pragma unroll 8
      for (int i = 0; i < kTile; ++i) {
        if (tid < kTile * W) vsum += memory.v[i * kWide<W> + tid];
        usum += memory.u[i];
      }
    }
    __syncthreads();
  }
  const int row = map.row();
  float* state = states + (int64_t{range} * heads + head) * map.state_size();
  float* rows = state + int64_t{index} * kTile * row;
  sums.each([&](int m, int j, float x) {
    if (j < map.dv) rows[m * row + j] = x;
  });
  fsum = reduce_halves(fsum, memory.halves);
  if (tid < kTile) rows[tid * row + map.dv] = fsum;
  if (index == 0) {
    float* last = state + int64_t{map.chunks} * kTile * row;
    if (tid < map.dv) last[tid] = vsum;
    if (tid == 0) last[map.dv] = usum;
  }
}

/// Running sums over `count` states of `size` floats, in order or from the end; only the total is
/// written, over the last, when `total`. What belongs to no chunk of the draw is left alone.
__global__ void add_states(float* states, Map map, const Layout* layout, int64_t size, int count,
                           bool from_end, bool total) {
  const int64_t i = thread_index();
  if (i >= size) return;
  const int64_t row = i % map.state_size() / map.row();
  if (row >= int64_t{layout->chunks} * kTile && row < int64_t{map.chunks} * kTile) return;
  double sum = 0.0;
  for (int c = 0; c < count; ++c) {
    float* at = states + (from_end ? count - 1 - c : c) * size + i;
    sum += static_cast<double>(*at);
    if (!total || c == count - 1) *at = static_cast<float>(sum);
  }
}

constexpr int kCountThreads = 256;

__global__ void __launch_bounds__(kCountThreads)
    count_visible(const bool* valid, int64_t S, int64_t Tn, bool causal, int* counts) {
  int* warps = shared_memory<int>();
  constexpr int kWarps = kCountThreads / kWarp;
  const int b = static_cast<int>(blockIdx.x), tid = static_cast<int>(threadIdx.x);
  const int lane = tid % kWarp, warp = tid / kWarp;
  int before = 0;
  for (int64_t s = 0; s < S; s += kCountThreads) {
    const bool seen = s + tid < S && valid[b * S + s + tid];
    const unsigned votes = __ballot_sync(kFullWarp, seen);
    __syncthreads();
    if (lane == 0) warps[warp] = __popc(votes);
    __syncthreads();
    int here = before + __popc(votes & (0xffffffffu >> (31 - lane)));
    for (int w = 0; w < kWarps; ++w) {
      if (w < warp) here += warps[w];
      before += warps[w];
    }
    const int64_t t = s + tid + Tn - S;  // the query that sees keys up to this one
    if (causal && s + tid < S && t >= 0) counts[b * Tn + t] = here;
  }
  if (!causal) {
    if (tid == 0) counts[b] = before;
    return;
  }
  for (int64_t t = tid; t < Tn - S; t += kCountThreads) counts[b * Tn + t] = 0;
}

constexpr int kLayoutThreads = 64;

/// A block a chunk, which finds its features by cutting all that come before.
__global__ void __launch_bounds__(kLayoutThreads)
    write_layout(Draw given, const double* live, int d, int most, Layout* layout, Chunk* chunks) {
  Draw& draw = *shared_memory<Draw>();
  const int tid = static_cast<int>(threadIdx.x), index = static_cast<int>(blockIdx.x);
  for (int l = tid; l < kMaxLevels; l += kLayoutThreads)
    draw.level[l] = live ? static_cast<int>(live[kRmfaLayoutHeader + l]) : given.level[l];
  if (tid == 0) {
    draw.constant = live ? static_cast<float>(live[0]) : given.constant;
    draw.root = live ? static_cast<float>(sqrt(live[1])) : given.root;
  }
  __syncthreads();
  const int count = fill_chunk(draw, d, most, index, chunks[index], tid, kLayoutThreads);
  // The scratch memory holds a chunk a block; a layout that cuts into more is not of these bounds.
  const int bound = static_cast<int>(gridDim.x);
  if (index == 0 && tid == 0) *layout = {draw.constant, draw.root, count < bound ? count : bound};
}

template <class E>
void make_states(const Problem<E>& p, const Cotangents<E>& cotangents, const Ranges& ranges,
                 bool of_queries, float* states) {
  const int64_t heads = int64_t{p.B} * p.H;
  const LaunchShape shape{blocks_for(heads * p.map.chunks * ranges.count(), 1), kThreads};
  dispatch_tiles<E>(p.map, [&]<Rounding rounding, int W>() {
    LaunchShape with_memory = shape;
    with_memory.shared_bytes = StateMemory<W>::bytes(p.causal);
    launch(of_queries ? accumulate_states<E, rounding, W, true>
                      : accumulate_states<E, rounding, W, false>,
           with_memory, p, cotangents, ranges, states);
  });
  if (ranges.count() == 1) return;  // a state is its own sum
  const int64_t size = heads * p.map.state_size();
  launch(add_states, {blocks_for(size, 256), 256}, states, p.map, p.layout, size, ranges.count(),
         p.causal && of_queries, !p.causal);
}

}  // namespace

template <class E>
void key_states(const Problem<E>& p, const Cut& cut, float* states) {
  make_states(p, Cotangents<E>{}, cut.keys, false, states);
}
template <class E>
void query_states(const Problem<E>& p, const Cotangents<E>& cotangents, const Cut& cut,
                  float* states) {
  make_states(p, cotangents, cut.queries, true, states);
}

void count_keys(const bool* key_valid, int B, int64_t S, int64_t Tn, bool causal, int* counts) {
  launch(count_visible,
         {static_cast<unsigned>(B), kCountThreads, kCountThreads / kWarp * sizeof(int)}, key_valid,
         S, Tn, causal, counts);
}

void lay_out(const RmfaArgs& args, const Map& map, Layout* layout, Chunk* chunks) {
  launch(write_layout, {static_cast<unsigned>(map.chunks), kLayoutThreads, sizeof(Draw)},
         make_draw(args), args.layout.defined() ? args.layout.data<double>() : nullptr, map.d,
         most_columns(args.causal), layout, chunks);
}

template void key_states(const Problem<float>&, const Cut&, float*);
template void key_states(const Problem<bfloat16>&, const Cut&, float*);
template void query_states(const Problem<float>&, const Cotangents<float>&, const Cut&, float*);
template void query_states(const Problem<bfloat16>&, const Cotangents<bfloat16>&, const Cut&,
                           float*);

}  // namespace macgrad::cuda::rmfa
