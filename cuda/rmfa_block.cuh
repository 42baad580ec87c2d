// What the RMFA kernels share on the device: the operands, tiles of tokens loaded into shared
// memory with padding as zeros, the features of a tile, and the cotangents of a tile of queries.
//
// phi(x) = [w_m Π_l (x Ω_l)_m, sqrt(linear)·x], a chunk at a time (rmfa_plan.h). A chunk's columns
// of Ω lie packed, level after level, so that one product makes all its projections; features are
// products along a row of them. Shape letters: B batch, H heads, T queries (Tn), S keys, d head
// dimension, dv values, P projections.
#pragma once

#include "macgrad/cuda/device_code.cuh"
#include "macgrad/cuda/rmfa_tile.cuh"

namespace macgrad::cuda::rmfa {

/// (B, H, n, columns) with unit last stride.
template <class E>
struct Rows {
  E* base = nullptr;
  int64_t batch = 0, head = 0, token = 0;

  Rows() = default;
  explicit Rows(const Tensor& t)
      : base(t.data<std::remove_const_t<E>>()),
        batch(t.stride(0)),
        head(t.stride(1)),
        token(t.stride(2)) {}
  __device__ E* at(int64_t b, int64_t h, int64_t t) const {
    return base + b * batch + h * head + t * token;
  }
};

/// Kernel arguments.
template <class E>
struct Problem {
  Rows<const E> q, k, v;
  const bool *key_valid = nullptr, *query_valid = nullptr;  // (B, S), (B, T), or absent
  const E *omega = nullptr, *weight = nullptr;
  int64_t omega_head = 0;
  const int* counts = nullptr;  // visible keys, (B, T) when causal, else (B); absent: no key_valid
  double floor = 0;
  int64_t Tn = 0, S = 0;
  int B = 0, H = 0;
  bool causal = false;
  Map map;
  const Layout* layout = nullptr;
  const Chunk* chunks = nullptr;

  /// Keys before the tile of queries that begins at t.
  __device__ int64_t keys_before(int64_t t) const {
    const int64_t s = t + S - Tn;
    return s < 0 ? 0 : s > S ? S : s;
  }
  __device__ bool query_visible(int b, int64_t t) const {
    return !query_valid || query_valid[b * Tn + t];
  }
  __device__ int visible_keys(int b, int64_t t) const {
    if (counts) return causal ? counts[b * Tn + t] : counts[b];
    return static_cast<int>(causal ? keys_before(t + 1) : S);
  }
};

/// Whether rows can be moved in Fours.
template <class E>
__device__ inline bool four_at_a_time(const E* first, int64_t stride, int columns) {
  return columns % 4 == 0 && stride % 4 == 0 &&
         reinterpret_cast<uintptr_t>(first) % sizeof(Four<E>) == 0;
}

/// A thread's share of a tile of 64 rows: four columns of every kStep-th row. Addresses advance by
/// a constant, since a 64-bit product per row costs more than the load.
template <int W>
struct Share {
  static constexpr int kQuads = kTile / 4 * W, kStep = kThreads / kQuads;
  int row = static_cast<int>(threadIdx.x) / kQuads,
      column = static_cast<int>(threadIdx.x) % kQuads * 4;
};

/// `n` rows of `columns` values, zeros where invalid and up to 64×(64·W).
template <int W, class E>
__device__ inline void load_rows(float* tile, const E* from, int64_t stride, int columns, int n,
                                 const bool* valid) {
  const Share<W> mine;
  const int rows = mine.column < columns ? n : 0;
  float* to = tile + mine.row * kWide<W> + mine.column;
  const auto each_row = [&]<int unrolled>(auto read) {
    const E* p = from + mine.row * stride + mine.column;
#pragma unroll unrolled
    for (int r = mine.row; r < kTile; r += Share<W>::kStep) {
      float4 x = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
      if (r < rows && (!valid || valid[r])) x = read(p);
      *reinterpret_cast<float4*>(to) = x;
      p += Share<W>::kStep * stride;
      to += Share<W>::kStep * kWide<W>;
    }
  };
  if (four_at_a_time(from, stride, columns)) {
    each_row.template operator()<4>([](const E* p) {
      const Four<E> x = *reinterpret_cast<const Four<E>*>(p);
      return make_float4(static_cast<float>(x.v[0]), static_cast<float>(x.v[1]),
                         static_cast<float>(x.v[2]), static_cast<float>(x.v[3]));
    });
  } else {
    const int left = columns - mine.column;
    each_row.template operator()<1>([left](const E* p) {
      return make_float4(static_cast<float>(p[0]), left > 1 ? static_cast<float>(p[1]) : 0.0f,
                         left > 2 ? static_cast<float>(p[2]) : 0.0f,
                         left > 3 ? static_cast<float>(p[3]) : 0.0f);
    });
  }
}

/// Writes `n` rows of a tile; rows whose flag is 0 become zeros.
template <int W, class E>
__device__ inline void store_rows(E* to, int64_t stride, int columns, int n, const float* tile,
                                  const int* live) {
  const Share<W> mine;
  if (mine.column >= columns) return;
  const bool whole = four_at_a_time(to, stride, columns);
  const float* from = tile + mine.row * kWide<W> + mine.column;
  E* p = to + mine.row * stride + mine.column;
#pragma unroll 1
  for (int r = mine.row; r < n; r += Share<W>::kStep) {
    float4 x = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    if (live[r]) x = *reinterpret_cast<const float4*>(from);
    const Four<E> four{
        {static_cast<E>(x.x), static_cast<E>(x.y), static_cast<E>(x.z), static_cast<E>(x.w)}};
    if (whole) {
      *reinterpret_cast<Four<E>*>(p) = four;
    } else {
#pragma unroll
      for (int j = 0; j < 4; ++j)
        if (mine.column + j < columns) p[j] = four.v[j];
    }
    from += Share<W>::kStep * kWide<W>;
    p += Share<W>::kStep * stride;
  }
}

/// One block's view of its work. All methods are called by all its threads.
template <class E, Rounding rounding, int W>
struct Block {
  const Problem<E>& p;
  const E* omega;
  Chunk& chunk;
  float* stage;     // Ω: 64 columns of a chunk, (64·W, kLd)
  float* products;  // (64, ld_products): projections, then in place features or their gradients
  int ld_products;

  using Projected = Sums<rounding, 1>;

  __device__ int dims() const { return (p.map.d + 15) / 16 * 16; }
  __device__ int values() const { return (p.map.dv + 15) / 16 * 16; }

  /// Copies a chunk's description into shared memory. Begins and ends with a barrier.
  __device__ void open(int index) {
    __syncthreads();  // the chunk before is no longer read
    const auto* from = reinterpret_cast<const uint4*>(p.chunks + index);
    for (size_t i = threadIdx.x; i < sizeof(Chunk) / sizeof(uint4); i += kThreads)
      reinterpret_cast<uint4*>(&chunk)[i] = from[i];
    __syncthreads();
  }

  __device__ int groups() const { return (chunk.columns + kTile - 1) / kTile; }
  /// 64 packed columns of Ω, zeros beyond the chunk's: this thread's part, every second row of one
  /// column, on its way from device memory.
  struct Columns64 {
    float v[kTile * W / 2];
  };
  __device__ void fetch(Columns64& to, int group) const {
    const int packed = group * kTile + static_cast<int>(threadIdx.x) % kTile;
    const int row = static_cast<int>(threadIdx.x) / kTile;
    const bool inside = packed < chunk.columns;
    const int rows = inside ? p.map.d - row : 0;
    const int64_t step = 2 * p.map.width;
    const E* from = omega + (inside ? chunk.column[packed] : 0) + row * p.map.width;
#pragma unroll
    for (int i = 0; i < kTile * W / 2; ++i) {
      to.v[i] = 2 * i < rows ? static_cast<float>(*from) : 0.0f;
      from += step;
    }
  }
  __device__ void place(const Columns64& from) {
    const int c = static_cast<int>(threadIdx.x) % kTile,
              row = static_cast<int>(threadIdx.x) / kTile;
#pragma unroll
    for (int i = 0; i < kTile * W / 2; ++i) stage[(row + 2 * i) * kLd + c] = from.v[i];
  }
  /// Calls f(group) with each group of columns in `stage`, the next one on its way meanwhile (a
  /// wide one only afterwards: it has no registers to wait in). Begins and ends with a barrier.
  template <class F>
  __device__ void each_group(F&& f) {
    Columns64 columns;
    if (W == 1 && groups() > 0) fetch(columns, 0);
    for (int group = 0; group < groups(); ++group) {
      __syncthreads();
      if (W > 1) fetch(columns, group);
      place(columns);
      if (W == 1 && group + 1 < groups()) fetch(columns, group + 1);
      __syncthreads();
      f(group);
    }
    __syncthreads();
  }

  /// products = x Ω for the chunk's packed columns. Ends with a barrier.
  __device__ void project(const float* x) {
    each_group([&](int group) {
      Projected sums;
      sums.clear();
      multiply_add<true, false>(sums, x, kWide<W>, stage, kLd, dims());
      sums.store(products + group * kTile, ld_products);
    });
  }

  /// Features (64, 64) of the tile from its projections, zeros beyond the chunk's. `to` may be the
  /// products themselves. Begins after a barrier and ends with one.
  __device__ void features(const float* x, float* to, int ld) {
    const int m = static_cast<int>(threadIdx.x) % kTile;
    const int levels = chunk.linear ? 0 : chunk.degree[m];
    const float w = !chunk.linear && m < chunk.count ? load(p.weight + chunk.first + m) : 0.0f;
    for (int t = static_cast<int>(threadIdx.x) / kTile; t < kTile; t += kThreads / kTile) {
      if (m >= chunk.count) continue;
      if (chunk.linear) {
        to[t * ld + m] = p.layout->root * x[t * kWide<W> + chunk.first + m];
        continue;
      }
      float phi = w;
      for (int l = 0; l < levels; ++l) phi *= products[t * ld_products + chunk.offset[l] + m];
      to[t * ld + m] = phi;
    }
    __syncthreads();
    if (chunk.count == kTile) return;
    // In place these columns held projections of higher levels.
    if (m >= chunk.count) {
      for (int t = static_cast<int>(threadIdx.x) / kTile; t < kTile; t += kThreads / kTile)
        to[t * ld + m] = 0.0f;
    }
    __syncthreads();
  }

  /// From the gradients of the features, (64, kLd) in `stage`, to those of their projections, in
  /// place: dp_l = dphi·w·Π_{j≠l} p_j with the product before l taken anew and that after l
  /// carried; no division.
  __device__ void pull_projections() {
    const int m = static_cast<int>(threadIdx.x) % kTile;
    if (m >= chunk.count) return;
    const int levels = chunk.degree[m];
    const float w = load(p.weight + chunk.first + m);
#pragma unroll 1
    for (int t = static_cast<int>(threadIdx.x) / kTile; t < kTile; t += kThreads / kTile) {
      float* row = products + t * ld_products + m;
      const float g = w * stage[t * kLd + m];
      float after = 1.0f;
      for (int l = levels - 1; l >= 0; --l) {
        float before = g;
        for (int j = 0; j < l; ++j) before *= row[chunk.offset[j]];
        float* here = row + chunk.offset[l];
        const float x = *here;
        *here = before * after;
        after *= x;
      }
    }
  }

  /// sums += dp Ωᵀ, dp where the products were. Ends with a barrier.
  template <class S>
  __device__ void pull_inputs(S& sums) {
    each_group([&](int group) {
      const int left = chunk.columns - group * kTile;
      multiply_add<true, true>(sums, products + group * kTile, ld_products, stage, kLd,
                               left < kTile ? (left + 15) / 16 * 16 : kTile);
    });
  }
};

/// u of a tile of keys: 1 where visible.
__device__ inline void load_visible(float* u, const bool* valid, int n) {
  const int i = static_cast<int>(threadIdx.x);
  if (i < kTile) u[i] = i < n && (!valid || valid[i]) ? 1.0f : 0.0f;
}

/// What the backward pass reads beside the operands.
template <class E>
struct Cotangents {
  Rows<const E> out, grad;
  const float* den = nullptr;  // (B, H, T)
};

/// Cotangents of a tile of queries: g = dO/den (64, 64·W), u = -(dO·O)/den, which is 0 where the
/// denominator was floored; both 0 where nothing is visible.
template <int W, class E>
__device__ inline void load_cotangents(const Problem<E>& p, const Cotangents<E>& c, int b, int h,
                                       int64_t t, int n, float* g, float* u) {
  for (int r = warp_index(); r < kTile; r += kThreads / kWarp) {
    bool live = r < n && p.query_visible(b, t + r);
    const int count = live ? p.visible_keys(b, t + r) : 0;
    live = live && count > 0;
    bool floored = false;
    float inverse = 0.0f;
    if (live) {
      float den = c.den[(int64_t{b} * p.H + h) * p.Tn + t + r];
      const float bound = static_cast<float>(p.floor * count);
      floored = p.floor > 0.0 && den < bound;
      inverse = 1.0f / (floored ? bound : den);
    }
    const E* dy = c.grad.at(b, h, t + r);
    const E* y = c.out.at(b, h, t + r);
    float dot = 0.0f;
#pragma unroll
    for (int i = 0; i < 2 * W; ++i) {
      const int j = i * kWarp + lane_index();
      float value = 0.0f;
      if (live && j < p.map.dv) {
        const float gradient = load(dy + j);
        value = gradient * inverse;
        dot += gradient * load(y + j);
      }
      g[r * kWide<W> + j] = value;
    }
    dot = warp_sum(dot);
    if (lane_index() == 0) u[r] = live && !floored ? -dot * inverse : 0.0f;
  }
}

}  // namespace macgrad::cuda::rmfa
