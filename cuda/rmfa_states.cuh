// States of RMFA on the card: Σ phi(x)ᵀ [v, u] over the tokens of a range, a block for each range
// and chunk of features, then running sums over the ranges in order. Forward the tokens are keys (u
// = 1); backward also queries (v = dO/den, u = the denominator's gradient).
//
// A state is (chunks·64 + 1, row) floats: the features' rows, each dv values and the column of u,
// then the sums of v and u alone, which the constant multiplies.
#pragma once

#include "macgrad/cuda/denominators.cuh"
#include "macgrad/cuda/launch.h"
#include "macgrad/cuda/math_mode.h"
#include "macgrad/cuda/rmfa_block.cuh"

namespace macgrad::cuda::rmfa {

/// Adds the tile's products to the column of u: feature m of this thread over its half of the
/// tokens. The halves meet in reduce_halves.
template <class T>
__device__ inline T column_of_u(const T* features, int ld, const T* u) {
  const int m = static_cast<int>(threadIdx.x) % kTile;
  const int begin = static_cast<int>(threadIdx.x) / kTile * (kTile / 2);
  T sum = 0;
#pragma unroll 8
  for (int t = begin; t < begin + kTile / 2; ++t) sum += features[t * ld + m] * u[t];
  return sum;
}
/// Sum of both halves, for the threads of the first. `scratch`: 64 values.
template <class T>
__device__ inline T reduce_halves(T value, T* scratch) {
  const int i = static_cast<int>(threadIdx.x);
  __syncthreads();
  if (i >= kTile) scratch[i - kTile] = value;
  __syncthreads();
  return i < kTile ? value + scratch[i] : value;
}

/// One chunk of a state into shared memory: values and the column of u.
template <int W>
__device__ inline void load_state(float* values, float* fsum, const float* state, const Map& map,
                                  int index) {
  const int row = map.row();
  const float* rows = state + int64_t{index} * kTile * row;
  constexpr int quads = kTile / 4 * W;
#pragma unroll 4
  for (int i = static_cast<int>(threadIdx.x); i < kTile * quads; i += kThreads) {
    const int m = i / quads, c = i % quads * 4;
    float4 x = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    if (c < map.dv) {
      x = *reinterpret_cast<const float4*>(rows + m * row + c);
      // Beyond dv: the column of u and what was never written.
      if (c + 1 >= map.dv) x.y = 0.0f;
      if (c + 2 >= map.dv) x.z = 0.0f;
      if (c + 3 >= map.dv) x.w = 0.0f;
    }
    *reinterpret_cast<float4*>(values + m * kWide<W> + c) = x;
  }
  if (threadIdx.x < kTile) fsum[threadIdx.x] = rows[threadIdx.x * row + map.dv];
}

/// States of the keys: of every range the running sum, or only their total, over the last, when not
/// causal.
template <class E>
void key_states(const Problem<E>& p, const Cut& cut, float* states);
/// States of the queries' cotangents. Causal sums run from the end.
template <class E>
void query_states(const Problem<E>& p, const Cotangents<E>& cotangents, const Cut& cut,
                  float* states);

/// Visible keys from key_valid: (B), or (B, T) for each query when causal.
void count_keys(const bool* key_valid, int B, int64_t S, int64_t Tn, bool causal, int* counts);
/// The draw's layout and its chunks, from args.layout where it is there.
void lay_out(const RmfaArgs& args, const Map& map, Layout* layout, Chunk* chunks);

/// Calls f.template operator()<rounding>() for the operands' type and the mode.
template <class E, class F>
void with_rounding(F&& f) {
  if constexpr (std::is_same_v<E, bfloat16>) {
    f.template operator()<Rounding::bf16>();
  } else {
    switch (math_mode()) {
      case MathMode::exact:
        return f.template operator()<Rounding::exact>();
      case MathMode::tf32:
        return f.template operator()<Rounding::tf32>();
      case MathMode::bf16:
        return f.template operator()<Rounding::bf16>();
    }
  }
}
/// The same with the width of the tiles: f.template operator()<rounding, W>().
template <class E, class F>
void dispatch_tiles(const Map& map, F&& f) {
  with_rounding<E>([&]<Rounding rounding>() {
    with_width(map.d, map.dv, [&]<int W>() { f.template operator()<rounding, W>(); });
  });
}

/// Operands of both directions as kernel arguments, and the scratch memory both need.
template <class E>
Problem<E> make_problem(const RmfaOperands& in) {
  Problem<E> p;
  p.B = static_cast<int>(in.q->size(0));
  p.H = static_cast<int>(in.q->size(1));
  p.Tn = in.q->size(2);
  p.S = in.k->size(2);
  p.floor = in.args.floor;
  p.causal = in.args.causal;
  p.map = make_map(in);
  p.q = Rows<const E>(in.q);
  p.k = Rows<const E>(in.k);
  p.v = Rows<const E>(in.v);
  if (in.key_valid->defined()) p.key_valid = in.key_valid->data<bool>();
  if (in.query_valid->defined()) p.query_valid = in.query_valid->data<bool>();
  if (in.weight->defined() && in.weight->size(0) > 0) {
    p.omega = in.omega->data<E>();
    p.weight = in.weight->data<E>();
    p.omega_head = in.omega->rank() == 3 ? in.omega->stride(0) : 0;
  }
  return p;
}

/// Scratch memory of one call.
struct Memory {
  Layout* layout = nullptr;
  Chunk* chunks = nullptr;
  int* counts = nullptr;
  float* key_states = nullptr;
  float* query_states = nullptr;  // backward
  double* seen = nullptr;         // forward: Denominators::kNumbers per block
  size_t bytes = 0;

  Memory(void* base, const Map& map, const Cut& cut, int64_t B, int64_t H, int64_t Tn, bool masked,
         bool causal, bool backward) {
    Arena arena(base);
    layout = arena.take<Layout>(1);
    chunks = arena.take<Chunk>(map.chunks);
    if (masked) counts = arena.take<int>(causal ? B * Tn : B);
    key_states = arena.take<float>(cut.keys.count() * B * H * map.state_size());
    if (backward) {
      query_states = arena.take<float>(cut.queries.count() * B * H * map.state_size());
    } else {
      seen = arena.take<double>(Denominators::kNumbers * B * H *
                                (causal ? cut.segments : tiles_of(Tn)));
    }
    bytes = arena.bytes();
  }
};
/// Of a call of the forward or the backward pass.
inline size_t scratch_bytes(const RmfaOperands& in, bool backward) {
  const Map map = make_map(in);
  const int64_t B = in.q->size(0), H = in.q->size(1), Tn = in.q->size(2);
  const Cut cut(map, B * H, Tn, in.k->size(2), in.args.causal);
  return Memory(nullptr, map, cut, B, H, Tn, in.key_valid->defined(), in.args.causal, backward)
      .bytes;
}

/// Fills what all kernels of a call read.
template <class E>
void prepare(Problem<E>& p, const RmfaArgs& args, const Memory& memory) {
  lay_out(args, p.map, memory.layout, memory.chunks);
  p.layout = memory.layout;
  p.chunks = memory.chunks;
  if (!p.key_valid) return;
  count_keys(p.key_valid, p.B, p.S, p.Tn, p.causal, memory.counts);
  p.counts = memory.counts;
}

}  // namespace macgrad::cuda::rmfa
