// Linear attention on given features, forward: out = Φ_q (Φ_kᵀ V̄), first dv columns over the last.
// States of the keys first (linear_attention_states.cu); then a block per 64 queries reads the
// state of the keys before them and, causal, adds the masked product with its own keys.
//
// cuBLAS fits only the full form of plain features without weights and masks; the other forms would
// need shifted or masked copies of the features in device memory. One path for all forms needs
// none. Shape letters: B batch, H heads, T queries (Tn), S keys, C columns, dv values. Equations:
// nn/README.md, other maps.
#include "macgrad/cuda/linear_attention_causal.cuh"
#include "macgrad/cuda/linear_attention_states.cuh"

namespace macgrad::cuda {
namespace linear {
namespace {

static_assert(kSeenNumbers == Denominators::kNumbers);

template <class T>
struct Result {
  Rows<T> out;
  double* sums = nullptr;  // (B, H, T, 3)
  double* seen = nullptr;  // Denominators::kNumbers per block
};

/// Rows whose denominators and results a block finishes, one thread per row.
template <class T, Rounding rounding>
struct Reader : Causal<T, rounding> {
  using Base = Causal<T, rounding>;
  using Base::b, Base::h, Base::head, Base::index, Base::keys, Base::m, Base::n, Base::p, Base::t;
  const T* state;
  const double* shift;  // of the state

  __device__ Reader(const Problem<T>& problem, Tiles<T>& memory, int of_head, int of_index)
      : Base(problem, memory, of_head, of_index),
        state(p.key_states + p.state_at(p.keys_state(index), of_head)),
        shift(p.shift(p.causal ? index : 0, of_head)) {}

  /// Shifts of log-features and the state's part of the denominators, a warp per row.
  __device__ void read_denominators() {
    const T* fsum = this->sums_of(state);
    for (int r = warp_index(); r < n; r += kThreads / kWarp) {
      if (!m.live[r]) continue;
      const T* row = p.q.at(b, h, t + r);
      if (p.map.log) {
        const T* inner = p.causal ? p.inner_shift(index, head) : nullptr;
        double of_state = kLowest, of_block = kLowest;
        for (int c = lane_index(); c < p.map.C; c += kWarp) {
          const T x = p.query(row, c);
          of_state = Larger{}(of_state, p.shifted(x, shift[c]));
          if (inner) of_block = Larger{}(of_block, p.shifted(x, static_cast<double>(inner[c])));
        }
        of_state = warp_reduce(of_state, Larger{});
        of_block = warp_reduce(of_block, Larger{}) + m.reference[r];
        // -inf where the block has no visible key.
        if (lane_index() == 0) m.shift[r] = Larger{}(of_state, of_block);
        __syncwarp();
      }
      T sum = 0;
      for (int c = lane_index(); c < p.map.C; c += kWarp)
        sum += p.feature(p.query(row, c), p.map.log ? shift[c] - m.shift[r] : 0.0) * fsum[c];
      sum = warp_sum(sum);
      if (lane_index() == 0) m.den[r] = m.keep[r] * sum;
    }
    __syncthreads();
  }
  /// Adds the block's own keys.
  __device__ void add_scores() {
    for (int r = warp_index(); r < n; r += kThreads / kWarp) {
      if (!m.live[r]) continue;
      const T* row = m.scores + r * kLd;
      const T sum = warp_sum(row[lane_index()] + row[lane_index() + kWarp]);
      if (lane_index() == 0) m.den[r] += sum;
    }
    __syncthreads();
  }
  /// Row r in log space: its shift, scores and denominator.
  __device__ void recompute(int r) {
    const T* row = p.q.at(b, h, t + r);
    const T* fsum = this->sums_of(state);
    double s = kLowest;
#pragma unroll 1
    for (int c = static_cast<int>(threadIdx.x); c < p.map.C; c += kThreads)
      s = Larger{}(s, this->state_log(row, shift, c));
    this->each_key(
        r, kLowest, [](double x) { return x; }, Larger{},
        [&](int, double x) { s = Larger{}(s, x); });
    s = block_reduce<kThreads>(s, m.reduce, Larger{});
    this->sum_lost(r, s);
    double den = 0.0;
#pragma unroll 1
    for (int c = static_cast<int>(threadIdx.x); c < p.map.C; c += kThreads)
      den += math::exp(this->state_log(row, shift, c) - s) * static_cast<double>(fsum[c]);
    for (int j = static_cast<int>(threadIdx.x); j < keys; j += kThreads)
      den += static_cast<double>(m.scores[r * kLd + j]);
    den = block_sum<kThreads>(den, m.reduce);
    if (threadIdx.x == 0) {
      m.shift[r] = s;
      m.den[r] = static_cast<T>(den);
    }
    __syncthreads();
  }
  /// Divides: writes `sums` and fills m.scale with what numerators are multiplied by.
  __device__ void finish_denominator(double* sums, Denominators& seen) {
    const int r = static_cast<int>(threadIdx.x);
    if (r >= n) return;
    if (!m.live[r] || m.total[r] == 0.0) {
      m.live[r] = 0;
      m.scale[r] = T(0);
      for (int i = 0; i < 3; ++i) sums[3 * r + i] = kNone;
      return;
    }
    const auto value = static_cast<double>(m.den[r]);
    const double bound = p.floor * m.total[r];
    const bool floored = p.floor > 0.0 && value < bound;
    const bool unsafe = p.quotient && (p.floor > 0.0 ? floored : value <= 0.0);
    seen.add(1.0, unsafe, m.lost[r],
             !p.quotient ? INFINITY
             : p.map.log ? value
                         : value / m.total[r]);
    const double den = floored ? bound : value;
    sums[3 * r] = den;
    sums[3 * r + 1] = m.shift[r];
    sums[3 * r + 2] = floored ? kFloored : m.lost[r] ? kRecomputed : kUsed;
    m.scale[r] = static_cast<T>(p.quotient ? 1.0 / den : p.factor * math::exp(m.shift[r]));
  }
};

template <class T, Rounding rounding>
__global__ void __launch_bounds__(kThreads, rmfa::kBlocks)
    read_queries(const __grid_constant__ Problem<T> p, Result<T> result) {
  auto& m = *shared_memory<Tiles<T>>();
  const int tid = static_cast<int>(threadIdx.x);
  Reader<T, rounding> block(p, m, static_cast<int>(blockIdx.x) % p.heads(),
                            static_cast<int>(blockIdx.x) / p.heads());
  const int n = block.n;
  block.load_weights(block.first, block.keys);
  __syncthreads();
  const double total =
      block.find_references(p.weights[int64_t{p.keys_state(block.index)} * p.heads() + block.head]);
  if (tid < kTile) {
    m.total[tid] = total;
    m.live[tid] = tid < n && p.query_visible(block.b, block.t + tid);
    m.lost[tid] = 0;
  }
  __syncthreads();
  block.read_denominators();
  if (p.causal) {
    block.make_scores();
    block.add_scores();
    if (p.map.log) {
#pragma unroll 1
      for (int r = 0; r < n; ++r) {
        if (!m.live[r] || m.total[r] == 0.0 || !(static_cast<double>(m.den[r]) < kSmallest))
          continue;
        if (tid == 0) m.lost[r] = 1;
        block.recompute(r);
      }
    }
  }
  Denominators seen;
  block.finish_denominator(result.sums + 3 * (int64_t{block.head} * p.Tn + block.t), seen);
  seen.write<kThreads>(result.seen + Denominators::kNumbers * blockIdx.x, m.reduce);
  for (int value = 0; value < p.map.values(); ++value) {
    typename Reader<T, rounding>::Packed sums;
    sums.clear();
    for (int chunk = 0; chunk < p.map.chunks(); ++chunk) {
      __syncthreads();
      block.load_queries(m.a, block.t, n, chunk, block.shift);
      block.load_state(m.b, block.state, chunk, value);
      __syncthreads();
      multiply_add<true, false>(sums, m.a, kLd, m.b, kLd, Map::padded(p.map.C, chunk));
    }
    __syncthreads();
    if (p.causal) {
      block.load_values(m.b, p.v, block.first, block.keys, value,
                        [&](int j) { return block.visible(j) ? T(1) : T(0); });
      __syncthreads();
      multiply_add<true, false>(sums, m.scores, kLd, m.b, kLd, kTile);
    }
    sums.store(m.a, kLd);
    __syncthreads();
    block.store_rows(result.out, block.t, n, p.map.dv, value, [&](int r, int c) {
      return m.live[r] ? m.scale[r] * m.a[r * kLd + c] : T(0);
    });
  }
}

template <class T>
void forward(const LinearAttentionForward& x) {
  const Map map = make_map(x.in);
  const Cut cut(map, x.in);
  const Memory<T> memory(x.scratch.data(), map, cut, x.in, false);
  const Problem<T> p(x.in, map, cut, memory);
  key_states(p, cut);
  const Result<T> result{Rows<T>(x.out), x.sums->data<double>(), memory.seen};
  const unsigned blocks = blocks_for(p.heads() * rmfa::tiles_of(p.Tn), 1);
  with_rounding<T>([&]<Rounding rounding>() {
    launch(read_queries<T, rounding>, {blocks, kThreads, sizeof(Tiles<T>)}, p, result);
  });
  join_denominators(memory.seen, blocks, x.stats->data<double>());
}

}  // namespace
}  // namespace linear

void linear_attention_forward(const LinearAttentionForward& x) {
  if (x.in.phi_q->dtype() == DType::float64) {
    linear::forward<double>(x);
  } else {
    linear::forward<float>(x);
  }
}

Support linear_attention_forward_supports(const LinearAttentionOperands& in) {
  return linear::supports(in);
}

size_t linear_attention_forward_scratch(const LinearAttentionOperands& in) {
  return linear::scratch_bytes(in, false);
}

}  // namespace macgrad::cuda
