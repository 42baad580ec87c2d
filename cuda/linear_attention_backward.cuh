// What both kernels of the backward pass of linear attention on given features share: gradients,
// and causal blocks with their cotangents. Equations and shape letters:
// cuda/linear_attention_backward.cu.
#pragma once

#include "macgrad/cuda/linear_attention_causal.cuh"
#include "macgrad/cuda/linear_attention_states.cuh"

namespace macgrad::cuda::linear {

/// What the forward pass left, and gradients.
template <class T>
struct Gradients {
  Rows<const T> out, grad;
  const double* sums = nullptr;  // (B, H, T, 3)
  Rows<T> dq, dk, dv;
  double* dl = nullptr;  // (B, H, S), or absent
};

/// Gradients of keys, values and key weights, after both sides' states.
template <class T>
void pull_keys(const Problem<T>& p, const Cut& cut, const Gradients<T>& x);

/// A causal block with its cotangents.
template <class T, Rounding rounding>
struct Puller : Causal<T, rounding> {
  using Base = Causal<T, rounding>;
  using Base::b, Base::first, Base::h, Base::head, Base::index, Base::keys, Base::m, Base::n,
      Base::p, Base::t;
  using typename Base::Spread;
  const Gradients<T>& x;

  __device__ Puller(const Problem<T>& problem, Tiles<T>& memory, const Gradients<T>& gradients,
                    int of_head, int of_index)
      : Base(problem, memory, of_head, of_index), x(gradients) {}

  /// Rows of the block, and ℓ of its keys. Ends with a barrier.
  __device__ void load_rows() {
    this->load_weights(first, keys);
    __syncthreads();
    this->find_references(0.0);
    const int r = static_cast<int>(threadIdx.x);
    if (r < kTile) {
      const int64_t row = int64_t{head} * p.Tn + t + r;
      const double* sums = x.sums + 3 * row;
      m.live[r] = r < n && sums[2] != kNone;
      m.lost[r] = m.live[r] && sums[2] == kRecomputed;
      m.shift[r] = m.live[r] ? sums[1] : 0.0;
      m.scale[r] = m.live[r] ? p.scalars[3 * row] : T(0);
      m.u[r] = m.live[r] ? p.scalars[3 * row + 1] : T(0);
      m.pull[r] = m.live[r] ? p.scalars[3 * row + 2] : T(0);
    }
    __syncthreads();
  }
  /// Scores of all rows, those of lost ones summed in log space.
  __device__ void make_all_scores() {
    this->make_scores();
#pragma unroll 1
    for (int r = 0; r < n; ++r)
      if (m.lost[r]) this->sum_lost(r, m.shift[r]);
  }
  /// scores = cotangents of the kernel's values, times their weights where the row is not lost; 0
  /// where key j is not seen. Uses a and b; begins and ends with a barrier.
  __device__ void make_cotangents() {
    Spread sums;
    sums.clear();
    for (int value = 0; value < p.map.values(); ++value) {
      __syncthreads();
      load_grad(m.a, value);
      this->load_values(m.b, p.v, first, keys, value,
                        [&](int j) { return this->visible(j) ? T(1) : T(0); });
      __syncthreads();
      multiply_add<true, true>(sums, m.a, kLd, m.b, kLd, Map::padded(p.map.dv, value));
    }
    sums.store(m.scores, kLd);
    __syncthreads();
    fill_tile(m.scores, [&](int r, int j) {
      if (j >= this->end(r) || !this->visible(j)) return T(0);
      return (m.scores[r * kLd + j] + m.u[r]) * (m.lost[r] ? T(1) : this->weight(r, j));
    });
    __syncthreads();
  }
  __device__ void load_grad(T* tile, int value) {
    this->load_values(tile, x.grad, t, n, value, [&](int r) { return m.scale[r]; });
  }
  /// exp(b_im + a_jm - s_i) of a lost row.
  __device__ double pair(const T* query, const T* key, int r, int j, int column) const {
    return math::exp(static_cast<double>(p.query(query, column)) +
                     static_cast<double>(p.key(key, column)) + m.l[j] - m.shift[r]);
  }
};

/// The shape of a launch with a block per head and tile of tokens.
template <class T>
LaunchShape blocks_of(const Problem<T>& p, int64_t tokens) {
  return {blocks_for(p.heads() * rmfa::tiles_of(tokens), 1), kThreads, sizeof(Tiles<T>)};
}

}  // namespace macgrad::cuda::linear
