// preSBN of ppSBN (Macformer, arXiv 2408.11656, Algorithm 1; settled form in nn/README.md):
// z = (x - mean)/sqrt(var + eps), y = z/|z| for each row. Batch statistics are one pass over x, cut
// into chunks of positions whose moments are merged in order (Chan, Golub & LeVeque 1979); one more
// pass centres, scales and normalises. Backward likewise: sums for each channel, then dx; with
// fixed statistics or a row's own there is one pass only.
//
// A block has one head and one chunk of positions (b·T + t), so that a thread keeps its channels'
// statistics. Shape letters: B batch, H heads, T positions, d head dimension.
#include "macgrad/core/kernels/sbn.h"
#include "macgrad/core/vector_math.h"
#include "macgrad/cuda/sbn.cuh"

namespace macgrad::cuda {
namespace {

constexpr double kSmallestNorm = 1e-12;  // rows of z up to this L2 norm become 0

/// Where the rows of a tensor (B, H, T, d) lie.
template <class T>
struct HeadRows {
  T* data;
  int64_t b, h, t;  // strides

  explicit HeadRows(const Tensor& x)
      : data(x.data<std::remove_const_t<T>>()), b(x.stride(0)), h(x.stride(1)), t(x.stride(2)) {}
  bool aligned(const Tensor& x) const {
    bool all = aligned_to(data, 16);
    for (int i = 0; i < 3; ++i)
      all = all && (x.size(i) == 1 || x.stride(i) * static_cast<int64_t>(sizeof(T)) % 16 == 0);
    return all;
  }
  __device__ T* row(uint32_t batch, uint32_t head, uint32_t position) const {
    return data + batch * b + head * h + position * t;
  }
};

/// Which rows there are, and a block's part of them.
struct Positions {
  uint32_t heads, length, count;  // H, T, B·T
  int64_t chunk;                  // positions of a block
  int64_t d;
  const bool* valid;

  __device__ bool is_valid(int64_t i) const { return !valid || valid[i]; }
  __device__ uint32_t head() const { return blockIdx.x % heads; }
  __device__ int64_t block_chunk() const { return blockIdx.x / heads; }
  __device__ int64_t begin() const { return block_chunk() * chunk; }
  __device__ int64_t end() const { return ::min(int64_t{count}, begin() + chunk); }
};

// partial (H, chunks, 2, d): mean and sum of squared differences of a chunk's valid positions
// (Welford 1962), counts (chunks): how many those are.
template <class T, int vec, int width, int per>
__global__ void __launch_bounds__(Team<width>::threads, per == 1 ? 4 : 1)
    chunk_moments(HeadRows<const T> x, Positions rows, compute_t<T>* __restrict__ partial,
                  double* __restrict__ counts, TeamMemory memory) {
  using C = compute_t<T>;
  using R = Row<T, vec, width, per>;
  const Team<width> team;
  const int64_t chunks = gridDim.x / rows.heads, chunk = rows.block_chunk(), d = rows.d;
  C* result = partial + (rows.head() * chunks + chunk) * 2 * d;
  ColumnPairs<C, R> moments(d, team.member, pair_place<C, R>(memory, d, result));
  C count = 0;
  const auto take = [&](R& row) {
    count += C(1);
    const C share = C(1) / count;
    row.each([&](int k, auto column, const auto& in) {
#pragma unroll
      for (int j = 0; j < vec; ++j) {
        const C v = load(&in[j]);
        moments.update(k, column, j, [&](C& mean, C& squares) {
          const C delta = v - mean;
          mean += delta * share;
          squares += delta * (v - mean);
        });
      }
    });
  };
  const int64_t end = rows.end();
  // Two rows on their way at a time.
  for (int64_t i = rows.begin() + team.row; i < end; i += 2 * team.rows) {
    const int64_t next = i + team.rows;
    const bool first = rows.is_valid(i), second = next < end && rows.is_valid(next);
    const auto row = [&](int64_t index, bool wanted) {
      const auto at = static_cast<uint32_t>(wanted ? index : 0);
      return R(x.row(at / rows.length, rows.head(), at % rows.length), wanted ? d : 0, team.member);
    };
    R one = row(i, first), two = row(next, second);
    if (first) take(one);
    if (second) take(two);
  }
  count = moments.template finish<MergeMoments<C>>(result, shared_memory<C>(), count);
  if (rows.head() == 0 && threadIdx.x == 0) counts[chunk] = static_cast<double>(count);
}

/// 1/sqrt(var + eps), 0 where both are 0.
template <class C>
__device__ C inverse_root(C var, C eps) {
  return var + eps == C(0) ? C(0) : C(1) / math::sqrt(var + eps);
}

template <class T, int vec, int width, int per>
__global__ void __launch_bounds__(Team<width>::threads)
    pre_sbn_rows(HeadRows<const T> x, HeadRows<T> y, Positions rows,
                 typename ChannelTensor<T>::View mean, typename ChannelTensor<T>::View var,
                 bool by_row, compute_t<T> eps, TeamMemory memory) {
  using C = compute_t<T>;
  using R = Row<T, vec, width, per>;
  const Team<width> team;
  const int64_t d = rows.d, base = rows.head() * d, end = rows.end();
  const auto centres = channel_values<C, R>(
      d, team.member, [=](int64_t c) { return by_row ? C(0) : mean.at(base + c); });
  const auto factors = channel_values<C, R>(d, team.member, [=](int64_t c) {
    return by_row ? C(1) : inverse_root(var.at(base + c), eps);
  });
  for (int64_t first = rows.begin(); first < end; first += team.rows) {
    const int64_t i = first + team.row;
    const bool inside = i < end, valid = inside && rows.is_valid(i);
    const auto at = static_cast<uint32_t>(inside ? i : 0);
    const uint32_t b = at / rows.length, t = at % rows.length;
    R row(x.row(b, rows.head(), t), valid ? d : 0, team.member, row_cache<T>(d, 0, memory.keep));
    // A row with its own statistics is only centred: y = z/|z| takes a factor of it out again.
    RowMoments<C> own;
    C smallest = static_cast<C>(kSmallestNorm);
    if (by_row) {
      own = row_moments<C>(row, team, valid ? x.row(b, rows.head(), t) : nullptr,
                           C(1) / static_cast<C>(d));
      smallest *= math::sqrt(own.squares / static_cast<C>(d) + eps);
    }
    const auto z = [&](int k, auto column, int j, C v) {
      return by_row ? (v - own.mean) - own.correction
                    : (v - centres.at(k, column, j)) * factors.at(k, column, j);
    };
    C squares = 0;
    row.each([&](int k, auto column, const auto& in) {
#pragma unroll
      for (int j = 0; j < vec; ++j) {
        const C v = z(k, column, j, load(&in[j]));
        squares += v * v;
      }
    });
    const C length = math::sqrt(team.sum(squares));
    // Written so that a NaN row stays NaN.
    const C inverse = length <= smallest ? C(0) : C(1) / length;
    T* to = y.row(b, rows.head(), t);
    if (valid) {
      row.each([&](int k, auto column, const auto& in) {
        C out[vec];
#pragma unroll
        for (int j = 0; j < vec; ++j) out[j] = z(k, column, j, load(&in[j])) * inverse;
        put_unit<vec>(to, column, out);
      });
    } else {
      const C zeros[vec] = {};
      each_column<R>(inside ? d : 0, team.member,
                     [&](int, auto column) { put_unit<vec>(to, column, zeros); });
    }
  }
}

// With g the gradient of y = z/|z|: dz = (g - y (y·g))/|z|, 0 for a zero row. Over n valid
// positions (batch): dx = factor (dz - mean(dz) - z mean(dz z)); fixed statistics leave dx = factor
// dz; over the d channels of a row (row), whose z is only centred: dx = dz - mean(dz), since dz is
// orthogonal to z.
//
// sums: nothing is written but `partial` (H, chunks, 2, d), Σ dz and Σ dz z, and counts (chunks);
// else dx, from those means (H, d) where the statistics are the batch's.
template <bool sums, class T, int vec, int width, int per>
__global__ void __launch_bounds__(Team<width>::threads)
    pre_sbn_gradient_rows(HeadRows<const T> x, HeadRows<const T> grad, HeadRows<T> dx,
                          Positions rows, typename ChannelTensor<T>::View mean,
                          typename ChannelTensor<T>::View var, bool by_row, compute_t<T> eps,
                          const compute_t<T>* __restrict__ mean_dz,
                          const compute_t<T>* __restrict__ mean_dz_z,
                          compute_t<T>* __restrict__ partial, double* __restrict__ counts,
                          TeamMemory memory) {
  using C = compute_t<T>;
  using R = Row<T, vec, width, per>;
  const Team<width> team;
  const int64_t d = rows.d, base = rows.head() * d, end = rows.end();
  const auto centres = channel_values<C, R>(
      d, team.member, [=](int64_t c) { return by_row ? C(0) : mean.at(base + c); });
  const auto factors = channel_values<C, R>(d, team.member, [=](int64_t c) {
    return by_row ? C(1) : inverse_root(var.at(base + c), eps);
  });
  const bool through = !sums && mean_dz != nullptr;
  const auto common = channel_values<C, R>(
      d, team.member, [=](int64_t c) { return through ? mean_dz[base + c] : C(0); });
  const auto along = channel_values<C, R>(
      d, team.member, [=](int64_t c) { return through ? mean_dz_z[base + c] : C(0); });
  const int64_t chunks = gridDim.x / rows.heads;
  C* result = sums ? partial + (rows.head() * chunks + rows.block_chunk()) * 2 * d : nullptr;
  ColumnPairs<C, R> pairs(sums ? d : 0, team.member, pair_place<C, R>(memory, d, result));
  C count = 0;
  for (int64_t first = rows.begin(); first < end; first += team.rows) {
    const int64_t i = first + team.row;
    const bool inside = i < end, valid = inside && rows.is_valid(i);
    const auto at = static_cast<uint32_t>(inside ? i : 0);
    const uint32_t b = at / rows.length, t = at % rows.length, h = rows.head();
    const int64_t columns = valid ? d : 0;
    if (valid) count += C(1);
    R row(x.row(b, h, t), columns, team.member, row_cache<T>(d, 0, memory.keep));
    R gradient(grad.row(b, h, t), columns, team.member, row_cache<T>(d, 1, memory.keep));
    // A row with its own statistics is only centred: y = z/|z| takes a factor of it out again.
    RowMoments<C> own;
    C smallest = static_cast<C>(kSmallestNorm);
    if (by_row) {
      own = row_moments<C>(row, team, valid ? x.row(b, rows.head(), t) : nullptr,
                           C(1) / static_cast<C>(d));
      smallest *= math::sqrt(own.squares / static_cast<C>(d) + eps);
    }
    const auto z = [&](int k, auto column, int j, C v) {
      return by_row ? (v - own.mean) - own.correction
                    : (v - centres.at(k, column, j)) * factors.at(k, column, j);
    };
    C squares = 0, dot = 0;
    R::each_pair(row, gradient, [&](int k, auto column, const auto& in, const auto& g) {
#pragma unroll
      for (int j = 0; j < vec; ++j) {
        const C v = z(k, column, j, load(&in[j]));
        squares += v * v;
        dot += v * load(&g[j]);
      }
    });
    const C length = math::sqrt(team.sum(squares));
    const bool vanishes = length <= smallest;
    const C inverse = C(1) / length;
    dot = team.sum(dot) * inverse * inverse;
    const auto dz = [&](C v, C g) { return vanishes ? C(0) : (g - v * dot) * inverse; };
    if constexpr (sums) {
      R::each_pair(row, gradient, [&](int k, auto column, const auto& in, const auto& g) {
#pragma unroll
        for (int j = 0; j < vec; ++j) {
          const C v = z(k, column, j, load(&in[j])), dv = dz(v, load(&g[j]));
          pairs.update(k, column, j, [&](C& plain, C& with_z) {
            plain += dv;
            with_z += dv * v;
          });
        }
      });
      continue;
    }
    C own_common = 0;
    if (by_row) {
      R::each_pair(row, gradient, [&](int k, auto column, const auto& in, const auto& g) {
#pragma unroll
        for (int j = 0; j < vec; ++j) own_common += dz(z(k, column, j, load(&in[j])), load(&g[j]));
      });
      own_common = team.sum(own_common) / static_cast<C>(d);
    }
    T* to = dx.row(b, h, t);
    if (valid) {
      R::each_pair(row, gradient, [&](int k, auto column, const auto& in, const auto& g) {
        C out[vec];
#pragma unroll
        for (int j = 0; j < vec; ++j) {
          const C v = z(k, column, j, load(&in[j])), dv = dz(v, load(&g[j]));
          out[j] = by_row ? dv - own_common
                          : factors.at(k, column, j) *
                                (dv - common.at(k, column, j) - v * along.at(k, column, j));
        }
        put_unit<vec>(to, column, out);
      });
    } else {
      const C zeros[vec] = {};
      each_column<R>(inside ? d : 0, team.member,
                     [&](int, auto column) { put_unit<vec>(to, column, zeros); });
    }
  }
  if constexpr (sums) {
    count = pairs.template finish<AddPairs>(result, shared_memory<C>(), count);
    if (rows.head() == 0 && threadIdx.x == 0)
      counts[rows.block_chunk()] = static_cast<double>(count);
  }
}

struct Work {
  Positions rows;
  RowChunks cut;
  LaunchShape shape;
};
/// A block a head and chunk of positions.
Work work_of(const Tensor& x, const Tensor& valid, int team_rows, int threads, size_t bytes) {
  const int64_t heads = x.size(1), count = x.size(0) * x.size(2);
  require(count <= 0x7fffffff && heads <= 0x7fffffff, "pre_sbn: {} positions are too many", count);
  Work w;
  w.cut = row_chunks(count, team_rows, heads, card().multiprocessors, /*waves=*/8);
  w.rows = {static_cast<uint32_t>(heads),
            static_cast<uint32_t>(x.size(2)),
            static_cast<uint32_t>(count),
            w.cut.rows,
            x.size(3),
            valid.defined() ? valid.data<bool>() : nullptr};
  w.shape = {blocks_for(heads * w.cut.chunks, 1), static_cast<unsigned>(threads), bytes};
  return w;
}

/// `t` itself when it is of dtype, else memory of that dtype.
Tensor in_dtype(const Tensor& t, DType dtype) {
  return t.dtype() == dtype ? t : Tensor::empty(t.shape(), dtype, t.device());
}

}  // namespace

void pre_sbn_forward(const PreSbnForward& call) {
  dispatch_floating(call.x->dtype(), "pre_sbn_forward", [&]<class T>() {
    using C = compute_t<T>;
    const int64_t d = call.x->size(3), heads = call.x->size(1);
    if (d == 0 || heads == 0) return;
    const HeadRows<const T> from(call.x);
    const HeadRows<T> to(call.y);
    dispatch_channels<T>(
        d, from.aligned(call.x) && to.aligned(call.y), [&]<int vec, int width, int per>() {
          using R = Row<T, vec, width, per>;
          const auto work = [&](size_t bytes) {
            return work_of(call.x, call.valid, Team<width>::rows, Team<width>::threads, bytes);
          };
          Tensor m = call.mean, v = call.var;
          if (call.statistics == SbnStatistics::batch) {
            m = in_dtype(call.mean, dtype_of<C>());
            v = in_dtype(call.var, dtype_of<C>());
            const TeamMemory memory = pair_memory<C, R>(d, 0, 0);
            const Work w = work(memory.bytes);
            const Tensor partial =
                Tensor::empty({heads, w.cut.chunks, 2, d}, dtype_of<C>(), call.x->device());
            const Tensor counts = Tensor::empty({w.cut.chunks}, DType::float64, call.x->device());
            launch(chunk_moments<T, vec, width, per>, w.shape, from, w.rows, partial.data<C>(),
                   counts.data<double>(), memory);
            const auto output = [](const Tensor& t) {
              return t.defined() ? ColumnOutput{t.raw(), t.dtype()} : ColumnOutput{};
            };
            launch_merge_moments<C>(
                partial.data<C>(), heads, w.cut.chunks, d, counts.data<double>(), m.data<C>(),
                v.data<C>(), {output(call.running_mean), output(call.running_var), call.momentum});
            if (call.mean->dtype() != m.dtype()) call.mean->copy_from(m);
            if (call.var->dtype() != v.dtype()) call.var->copy_from(v);
          }
          const TeamMemory memory = team_memory(width > kWarp, d * int64_t{sizeof(T)}, 1);
          const Work w = work(memory.bytes);
          launch(pre_sbn_rows<T, vec, width, per>, w.shape, from, to, w.rows,
                 ChannelTensor<T>(m).view(), ChannelTensor<T>(v).view(),
                 call.statistics == SbnStatistics::row, static_cast<C>(call.eps), memory);
        });
  });
}

void pre_sbn_backward(const PreSbnBackward& call) {
  dispatch_floating(call.x->dtype(), "pre_sbn_backward", [&]<class T>() {
    using C = compute_t<T>;
    const int64_t d = call.x->size(3), heads = call.x->size(1);
    if (call.x->numel() == 0) return;
    const HeadRows<const T> from(call.x), gradient(call.grad);
    const ChannelTensor<T> centres(call.mean), variances(call.var);
    const HeadRows<T> to(call.dx);
    const bool aligned = from.aligned(call.x) && gradient.aligned(call.grad) && to.aligned(call.dx);
    dispatch_channels<T>(d, aligned, [&]<int vec, int width, int per>() {
      using R = Row<T, vec, width, per>;
      const auto row_bytes = d * int64_t{sizeof(T)};
      const bool by_row = call.statistics == SbnStatistics::row;
      const auto pass = [&](const auto& kernel, const TeamMemory& memory, const Work& w,
                            const C* mean_dz, const C* mean_dz_z, C* partial, double* counts) {
        launch(kernel, w.shape, from, gradient, to, w.rows, centres.view(), variances.view(),
               by_row, static_cast<C>(call.eps), mean_dz, mean_dz_z, partial, counts, memory);
      };
      const auto work = [&](size_t bytes) {
        return work_of(call.x, call.valid, Team<width>::rows, Team<width>::threads, bytes);
      };
      Tensor means;  // (2, H, d): of dz and of dz z over the batch
      const C* mean_dz = nullptr;
      if (call.statistics == SbnStatistics::batch) {
        const TeamMemory memory = pair_memory<C, R>(d, row_bytes, 2);
        const Work w = work(memory.bytes);
        means = Tensor::empty({2, heads, d}, dtype_of<C>(), call.x->device());
        const Tensor partial =
            Tensor::empty({heads, w.cut.chunks, 2, d}, dtype_of<C>(), call.x->device());
        const Tensor counts = Tensor::empty({w.cut.chunks}, DType::float64, call.x->device());
        C* both = means.data<C>();
        mean_dz = both;
        pass(pre_sbn_gradient_rows<true, T, vec, width, per>, memory, w, nullptr, nullptr,
             partial.data<C>(), counts.data<double>());
        launch_merge_sums<C>(partial.data<C>(), heads, w.cut.chunks, d, counts.data<double>(),
                             {both, dtype_of<C>()}, {both + heads * d, dtype_of<C>()});
      }
      const TeamMemory memory = team_memory(width > kWarp, row_bytes, 2);
      pass(pre_sbn_gradient_rows<false, T, vec, width, per>, memory, work(memory.bytes), mean_dz,
           mean_dz ? mean_dz + heads * d : nullptr, nullptr, nullptr);
    });
  });
}

}  // namespace macgrad::cuda
