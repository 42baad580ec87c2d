// Linear attention on given features, backward. With G = [g, u], g = dO/den and u = -(dO·O)/den (0
// where the denominator was floored): dΦ_q = G·stateᵀ, R = Φ_qᵀ G, dΦ_k = V̄ Rᵀ, dV = Φ_k R. The
// gradient of log φ is φ times that of φ, that of ℓ_j its key's weight times that of the weight.
//
// The forward kernel left each row's shift, so features are made again as they were. States of the
// keys, then of the queries (linear_attention_states.cu); then blocks of 64 queries pull dφ_q and
// blocks of 64 keys the rest, with the products inside a causal block added to both. Rows that were
// summed in log space take part in the states with their own shift; inside their block, where a
// product of features would lose them, they are summed alone. Shape letters: B batch, H heads, T
// queries (Tn), S keys, C columns, dv values.
#include "macgrad/cuda/linear_attention_backward.cuh"

namespace macgrad::cuda {
namespace linear {
namespace {

/// Of each query, in units of its shift: what dO is multiplied by, the cotangent u of the
/// denominator, and what a floor pulls on the weights. A warp per row.
template <class T>
__global__ void __launch_bounds__(kThreads)
    scale_cotangents(const __grid_constant__ Problem<T> p, const __grid_constant__ Gradients<T> x) {
  const int64_t row = thread_index() / kWarp;
  if (row >= p.heads() * p.Tn) return;
  const int head = static_cast<int>(row / p.Tn), b = head / p.H, h = head % p.H;
  const int64_t t = row % p.Tn;
  const double* sums = x.sums + 3 * row;
  const bool live = sums[2] != kNone;
  T dot = 0;
  if (live) {
    const T *dy = x.grad.at(b, h, t), *y = x.out.at(b, h, t);
    for (int e = lane_index(); e < p.map.dv; e += kWarp) dot += dy[e] * y[e];
  }
  dot = warp_sum(dot);
  if (lane_index() > 0) return;
  const double scale = !live ? 0.0 : p.quotient ? 1.0 / sums[0] : p.factor * math::exp(sums[1]);
  const double pulled = p.quotient ? -static_cast<double>(dot) * scale : 0.0;
  const bool floored = sums[2] == kFloored;
  p.scalars[3 * row] = static_cast<T>(scale);
  p.scalars[3 * row + 1] = static_cast<T>(floored ? 0.0 : pulled);
  p.scalars[3 * row + 2] = static_cast<T>(floored ? pulled * p.floor : 0.0);
}

template <class T, Rounding rounding>
__global__ void __launch_bounds__(kThreads, rmfa::kBlocks)
    pull_queries(const __grid_constant__ Problem<T> p,
                 const __grid_constant__ Gradients<T> gradients) {
  auto& m = *shared_memory<Tiles<T>>();
  Puller<T, rounding> block(p, m, gradients, static_cast<int>(blockIdx.x) % p.heads(),
                            static_cast<int>(blockIdx.x) / p.heads());
  const T* state = p.key_states + p.state_at(p.keys_state(block.index), block.head);
  const T* fsum = block.sums_of(state);
  const double* shift = p.shift(p.causal ? block.index : 0, block.head);
  block.load_rows();
  if (p.causal) block.make_cotangents();
  for (int chunk = 0; chunk < p.map.chunks(); ++chunk) {
    typename Puller<T, rounding>::Spread of_state, of_block;
    of_state.clear();
    of_block.clear();
    for (int value = 0; value < p.map.values(); ++value) {
      __syncthreads();
      block.load_grad(m.a, value);
      block.load_state(m.b, state, chunk, value);
      __syncthreads();
      multiply_add<true, true>(of_state, m.a, kLd, m.b, kLd, Map::padded(p.map.dv, value));
    }
    __syncthreads();
    if (p.causal) {
      block.load_inner_keys(m.b, chunk);
      __syncthreads();
      multiply_add<true, false>(of_block, m.scores, kLd, m.b, kLd, kTile);
      __syncthreads();
    }
    of_state.store(m.a, kLd);
    of_block.store(m.b, kLd);
    __syncthreads();
    block.store_rows(gradients.dq, block.t, block.n, p.map.M, chunk, [&](int r, int c) {
      if (!m.live[r]) return T(0);
      const int column = chunk * kTile + c;
      const T from_state = m.a[r * kLd + c] + m.u[r] * fsum[column];
      if (!p.map.log) return m.keep[r] * from_state + m.b[r * kLd + c];
      const T* query = p.q.at(block.b, block.h, block.t + r);
      const T by_state = p.feature(query[column], shift[column] - m.shift[r]);
      if (!p.causal) return by_state * from_state;
      if (!m.lost[r]) {
        const double inner = static_cast<double>(p.inner_shift(block.index, block.head)[column]);
        return by_state * from_state +
               p.feature(query[column], inner + (m.reference[r] - m.shift[r])) * m.b[r * kLd + c];
      }
      double sum = static_cast<double>(by_state * from_state);
#pragma unroll 1
      for (int j = 0; j < block.end(r); ++j) {
        if (!block.visible(j)) continue;
        const T* key = p.k.at(block.b, block.h, block.first + j);
        sum += block.pair(query, key, r, j, column) * static_cast<double>(m.scores[r * kLd + j]);
      }
      return static_cast<T>(sum);
    });
  }
}

template <class T>
void backward(const LinearAttentionBackward& x) {
  const Map map = make_map(x.in);
  const Cut cut(map, x.in);
  const Memory<T> memory(x.scratch.data(), map, cut, x.in, true);
  const Problem<T> p(x.in, map, cut, memory);
  const Gradients<T> g{Rows<const T>(x.out),
                       Rows<const T>(x.grad),
                       x.sums->data<double>(),
                       Rows<T>(x.dphi_q),
                       Rows<T>(x.dphi_k),
                       Rows<T>(x.dv),
                       x.dlog_weight->defined() ? x.dlog_weight->data<double>() : nullptr};
  launch(scale_cotangents<T>, {blocks_for(p.heads() * p.Tn, kThreads / kWarp), kThreads}, p, g);
  key_states(p, cut);
  query_states(p, cut, x.grad, g.sums);
  with_rounding<T>(
      [&]<Rounding rounding>() { launch(pull_queries<T, rounding>, blocks_of(p, p.Tn), p, g); });
  pull_keys(p, cut, g);
}

}  // namespace
}  // namespace linear

void linear_attention_backward(const LinearAttentionBackward& x) {
  if (x.in.phi_q->dtype() == DType::float64) {
    linear::backward<double>(x);
  } else {
    linear::backward<float>(x);
  }
}

Support linear_attention_backward_supports(const LinearAttentionOperands& in) {
  return linear::supports(in);
}

size_t linear_attention_backward_scratch(const LinearAttentionOperands& in) {
  return linear::scratch_bytes(in, true);
}

}  // namespace macgrad::cuda
