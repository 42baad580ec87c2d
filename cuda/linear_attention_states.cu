// Kernels of the states of linear attention (linear_attention_states.cuh): the maxima that shift
// them, a block per head, range and chunk of features and of values, and running sums over ranges.
// Shape letters: B batch, H heads, T queries (Tn), S keys, M features, C columns, dv values.
#include "macgrad/cuda/linear_attention_states.cuh"

namespace macgrad::cuda::linear {
namespace {

/// The largest log φ_k + ℓ of each column over a range, and of a causal block also the largest
/// log φ_k; of plain features the largest ℓ.
template <class T>
__global__ void __launch_bounds__(kThreads) find_maxima(const __grid_constant__ Problem<T> p) {
  auto* halves = shared_memory<double>();  // kTile, of log φ_k as well
  const int chunks = p.map.log ? p.map.chunks() : 1, tid = static_cast<int>(threadIdx.x);
  const int head = static_cast<int>(blockIdx.x) / chunks % p.heads(), b = head / p.H;
  const int range = static_cast<int>(blockIdx.x) / chunks / p.heads();
  int64_t begin, end;
  p.keys.get(range, begin, end);
  double* to = p.shifts + (int64_t{range} * p.heads() + head) * p.shift_columns;
  if (!p.map.log) {
    double top = -INFINITY;
    for (int64_t s = begin + tid; s < end; s += kThreads)
      top = Larger{}(top, p.key_weight(b, head, s));
    top = block_reduce<kThreads>(top, halves, Larger{});
    if (tid == 0) *to = top;
    return;
  }
  const int m = static_cast<int>(blockIdx.x) % chunks * kTile + tid % kTile;
  double top = kLowest, inner = kLowest;
  if (m < p.map.C) {
    constexpr int kStep = kThreads / kTile;
    const T* row = p.k.at(b, head % p.H, begin + tid / kTile);
#pragma unroll 4
    for (int64_t s = begin + tid / kTile; s < end; s += kStep, row += kStep * p.k.token) {
      const double l = p.key_weight(b, head, s);
      if (l == -INFINITY) continue;
      const auto x = static_cast<double>(p.key(row, m));
      top = Larger{}(top, x + l);
      inner = Larger{}(inner, x);
    }
  }
  if (tid >= kTile) halves[tid - kTile] = top, halves[tid] = inner;
  __syncthreads();
  if (tid >= kTile || m >= p.map.C) return;
  to[m] = Larger{}(top, halves[tid]);
  if (range >= p.keys.splits)
    p.inner[(int64_t{range - p.keys.splits} * p.heads() + head) * p.map.C + m] =
        static_cast<T>(Larger{}(inner, halves[kTile + tid]));
}

/// Running maxima over the ranges, in place: number 0 over the last split, then one per block.
__global__ void run_maxima(double* shifts, int64_t size, int splits, int count) {
  const int64_t i = thread_index();
  if (i >= size) return;
  double top = shifts[i];
#pragma unroll 8
  for (int range = 1; range < count; ++range) {
    top = Larger{}(top, shifts[range * size + i]);
    if (range >= splits - 1) shifts[range * size + i] = top;
  }
}

template <class T, Rounding rounding, bool of_queries>
__global__ void __launch_bounds__(kThreads, rmfa::kBlocks)
    accumulate_states(const __grid_constant__ Problem<T> p, Rows<const T> grad,
                      const double* sums) {
  auto& m = *shared_memory<Tiles<T>>();
  const int tid = static_cast<int>(threadIdx.x);
  const int chunks = p.map.chunks(), values = p.map.values();
  const int block_index = static_cast<int>(blockIdx.x), value = block_index % values;
  const int index = block_index / values % chunks;
  const int head = block_index / values / chunks % p.heads();
  const int range = block_index / values / chunks / p.heads();
  Block<T, rounding> block(p, m, head);
  const double* c = p.shift(of_queries ? p.query_shift(range) : p.key_shift(range), head);
  const double level = p.map.log ? 0.0 : p.column(c, 0);
  typename Block<T, rounding>::Packed sum;
  sum.clear();
  T fsum = 0;
  double usum = 0.0;
  int64_t begin, end;
  (of_queries ? p.queries : p.keys).get(range, begin, end);
  for (int64_t t = begin; t < end; t += kTile) {
    const int n = static_cast<int>(end - t < kTile ? end - t : kTile);
    if constexpr (of_queries) {
      if (tid < kTile) {
        const int64_t row = int64_t{head} * p.Tn + t + tid;
        const bool live = tid < n && sums[3 * row + 2] != kNone;
        m.live[tid] = live;
        m.shift[tid] = live ? sums[3 * row + 1] : 0.0;
        const T keep = live && !p.map.log ? static_cast<T>(growth(level, m.shift[tid])) : T(1);
        m.keep[tid] = T(1);
        m.scale[tid] = live ? keep * p.scalars[3 * row] : T(0);
        m.u[tid] = live ? keep * p.scalars[3 * row + 1] : T(0);
        if (live) usum += static_cast<double>(keep * p.scalars[3 * row + 2]);
      }
      __syncthreads();
      block.load_queries(m.a, t, n, index, c);
      block.load_values(m.b, grad, t, n, value, [&](int r) { return m.scale[r]; });
    } else {
      block.load_weights(t, n);
      if (tid < kTile) {
        const bool visible = block.visible(tid);
        m.u[tid] = visible ? T(1) : T(0);
        if (visible && !p.map.log && p.log_weight)
          m.u[tid] = static_cast<T>(growth(m.l[tid], level));
        usum += static_cast<double>(m.u[tid]);
      }
      __syncthreads();
      block.load_keys(m.a, t, n, index, c);
      block.load_values(m.b, p.v, t, n, value, [&](int r) { return m.u[r]; });
    }
    __syncthreads();
    multiply_add<false, false>(sum, m.a, kLd, m.b, kLd, kTile);
    fsum += column_of_u(m.a, kLd, m.u);
    __syncthreads();
  }
  T* state = (of_queries ? p.query_states : p.key_states) + p.state_at(range, head);
  const int width = Map::part(p.map.dv, value);
  T* rows = state + int64_t{index} * kTile * p.map.dv + value * kTile;
  sum.each([&](int r, int j, T x) {
    if (j < width) rows[int64_t{r} * p.map.dv + j] = x;
  });
  if (value > 0) return;
  fsum = reduce_halves(fsum, m.den);
  if (tid < kTile) state[int64_t{p.map.rows()} * p.map.dv + index * kTile + tid] = fsum;
  if (index > 0) return;
  usum = block_sum<kThreads>(usum, m.reduce);
  if (tid == 0) (of_queries ? p.floors : p.weights)[int64_t{range} * p.heads() + head] = usum;
}

/// Running sums over `count` states, in order or, of queries, from the end; each in units of its
/// own shift. Only the total is written, where it is all that is read. The sums of u in float64
/// follow the states' elements.
template <class T, bool of_queries>
__global__ void __launch_bounds__(256)
    add_states(const __grid_constant__ Problem<T> p, int count, int64_t size) {
  constexpr int kInFlight = 8;  // loads
  const int64_t element = thread_index();
  if (element >= size + p.heads()) return;
  const bool of_weights = element >= size;
  const int head = static_cast<int>(of_weights ? element - size : element / p.map.state_size());
  const int64_t inside = element - head * p.map.state_size(),
                last = int64_t{p.map.rows()} * p.map.dv;
  const auto m = static_cast<int>(of_weights      ? 0
                                  : inside < last ? inside / p.map.dv
                                                  : inside - last);
  // Σ w of log-features is their number.
  const bool scaled = p.shift_columns > 0 && m < p.map.C && !(of_weights && p.map.log);
  const auto range_of = [&](int i) { return of_queries ? count - 1 - i : i; };
  const auto number_of = [&](int i) {
    return of_queries ? p.query_shift(range_of(i)) : p.key_shift(range_of(i));
  };
  T* states = of_queries ? p.query_states : p.key_states;
  double* weights = of_queries ? p.floors : p.weights;
  double sum = 0.0, before = 0.0;
  for (int first = 0; first < count; first += kInFlight) {
    double x[kInFlight], c[kInFlight];
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) {
      if (first + i >= count) continue;
      const int64_t range = range_of(first + i);
      x[i] = of_weights ? weights[range * p.heads() + head]
                        : static_cast<double>(states[range * size + element]);
      c[i] = scaled ? p.column(p.shift(number_of(first + i), head), m) : 0.0;
    }
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) {
      if (first + i >= count) continue;
      if (first + i > 0 && c[i] != before) {
        const double lower = of_queries ? c[i] : before, upper = of_queries ? before : c[i];
        sum = lower == -INFINITY ? 0.0 : sum * math::exp(static_cast<T>(lower - upper));
      }
      before = c[i];
      sum += x[i];
      if (!p.causal && first + i < count - 1) continue;
      const int64_t range = range_of(first + i);
      if (of_weights)
        weights[range * p.heads() + head] = sum;
      else
        states[range * size + element] = static_cast<T>(sum);
    }
  }
}

template <class T, bool of_queries>
void make_states(const Problem<T>& p, int count, const Rows<const T>& grad, const double* sums) {
  const int64_t blocks = int64_t{count} * p.heads() * p.map.chunks() * p.map.values();
  with_rounding<T>([&]<Rounding rounding>() {
    launch(accumulate_states<T, rounding, of_queries>,
           {blocks_for(blocks, 1), kThreads, sizeof(Tiles<T>)}, p, grad, sums);
  });
  if (count <= 1) return;  // a state is its own sum
  const int64_t size = p.heads() * p.map.state_size();
  launch(add_states<T, of_queries>, {blocks_for(size + p.heads(), 256), 256}, p, count, size);
}

}  // namespace

template <class T>
void key_states(const Problem<T>& p, const Cut& cut) {
  if (p.shift_columns > 0) {
    const int64_t blocks = int64_t{cut.keys.count()} * p.heads() * (p.map.log ? p.map.chunks() : 1);
    launch(find_maxima<T>, {blocks_for(blocks, 1), kThreads, 2 * kTile * sizeof(double)}, p);
    const int64_t size = int64_t{p.heads()} * p.shift_columns;
    launch(run_maxima, {blocks_for(size, 256), 256}, p.shifts, size, cut.keys.splits,
           cut.keys.count());
  }
  make_states<T, false>(p, cut.key_states, Rows<const T>(), nullptr);
}

template <class T>
void query_states(const Problem<T>& p, const Cut& cut, const Tensor& grad, const double* sums) {
  make_states<T, true>(p, cut.queries.count(), Rows<const T>(grad), sums);
}

template void key_states(const Problem<float>&, const Cut&);
template void key_states(const Problem<double>&, const Cut&);
template void query_states(const Problem<float>&, const Cut&, const Tensor&, const double*);
template void query_states(const Problem<double>&, const Cut&, const Tensor&, const double*);

}  // namespace macgrad::cuda::linear
