// Layer norm over the last dimension (Ba, Kiros & Hinton 2016): y = (x - mean)·rstd·weight + bias
// with the biased variance, taken in two passes over a row that is read once. Backward reads x and
// the gradient once: a block walks over its chunk of rows, writes dx, and keeps the sums for the
// gradients of weight and bias beside it (columns.cuh). mean and rstd are of the type of the
// arithmetic.
//
// Shape letters: R rows, N columns.
#include "macgrad/core/kernels/rows.h"
#include "macgrad/core/vector_math.h"
#include "macgrad/cuda/columns.cuh"

namespace macgrad::cuda {
namespace {

/// h = (x - mean)·rstd + shift, with what rounding took from the mean in the shift.
template <class C>
struct Normal {
  C mean, rstd, shift;
  __device__ C operator()(C x) const { return (x - mean) * rstd + shift; }
};

template <class C>
Unit<C, 2>* pairs_of(const Tensor& t) {
  return reinterpret_cast<Unit<C, 2>*>(t.data<C>());
}

template <class T, int vec, int width, int per>
__global__ void __launch_bounds__(Team<width>::threads)
    layer_norm_rows(const T* __restrict__ x, const T* __restrict__ weight,
                    const T* __restrict__ bias, int64_t rows, int64_t n, compute_t<T> eps,
                    T* __restrict__ y, Unit<compute_t<T>, 2>* __restrict__ mean,
                    compute_t<T>* __restrict__ rstd, bool keep) {
  using C = compute_t<T>;
  const Team<width> team;
  const int64_t r = int64_t{blockIdx.x} * team.rows + team.row;
  const bool inside = r < rows;
  Row<T, vec, width, per> row(x + r * n, inside ? n : 0, team.member, row_cache<T>(n, 0, keep));
  const C share = n > 0 ? C(1) / static_cast<C>(n) : C(0);
  const RowMoments<C> moments =
      row_moments<C>(row, team, inside && n > 0 ? x + r * n : nullptr, share);
  const C variance = moments.squares * share + eps;
  const C scale = n == 0 || variance == C(0) ? C(0) : C(1) / math::sqrt(variance);
  if (inside && team.member == 0) {
    mean[r] = {moments.mean, moments.correction};
    rstd[r] = scale;
  }
  const Normal<C> normal{moments.mean, scale, -moments.correction * scale};
  T* to = y + r * n;
  row.each([&](int, auto column, const auto& in) {
    const auto w = get_unit<vec>(weight, column), b = get_unit<vec>(bias, column);
    C out[vec];
#pragma unroll
    for (int j = 0; j < vec; ++j) out[j] = normal(load(&in[j])) * load(&w.v[j]) + load(&b.v[j]);
    put_unit<vec>(to, column, out);
  });
}

// With h = (x - mean)·rstd and a = g·weight: dx = rstd (a - mean(a) - h mean(a h)),
// dweight = Σ g h, dbias = Σ g. Block i has rows [i, i+1)·chunk and leaves `partial` (chunks, 2,
// N).
template <class T, int vec, int width, int per>
__global__ void __launch_bounds__(Team<width>::threads)
    layer_norm_gradient_rows(const T* __restrict__ x, const T* __restrict__ weight,
                             const Unit<compute_t<T>, 2>* __restrict__ mean,
                             const compute_t<T>* __restrict__ rstd, const T* __restrict__ grad,
                             int64_t rows, int64_t n, int64_t chunk, T* __restrict__ dx,
                             compute_t<T>* __restrict__ partial, TeamMemory memory) {
  using C = compute_t<T>;
  using R = Row<T, vec, width, per>;
  const Team<width> team;
  C* result = partial + int64_t{blockIdx.x} * 2 * n;
  ColumnPairs<C, R> sums(n, team.member, pair_place<C, R>(memory, n, result));
  const C share = C(1) / static_cast<C>(n);
  const int64_t begin = int64_t{blockIdx.x} * chunk, end = ::min(rows, begin + chunk);
  for (int64_t first = begin; first < end; first += team.rows) {
    const int64_t r = first + team.row;
    const bool inside = r < end;
    R row(x + r * n, inside ? n : 0, team.member, row_cache<T>(n, 0, memory.keep));
    R gradient(grad + r * n, inside ? n : 0, team.member, row_cache<T>(n, 1, memory.keep));
    const C scale = inside ? rstd[r] : C(0);
    const Unit<C, 2> m = inside ? mean[r] : Unit<C, 2>{};
    const Normal<C> normal{m.v[0], scale, -m.v[1] * scale};
    C sum = 0, dot = 0;
    R::each_pair(row, gradient, [&](int k, auto column, const auto& in, const auto& g) {
      const auto w = get_unit<vec>(weight, column);
#pragma unroll
      for (int j = 0; j < vec; ++j) {
        const C gj = load(&g[j]), h = normal(load(&in[j])), a = gj * load(&w.v[j]);
        sum += a;
        dot += a * h;
        sums.update(k, column, j, [&](C& dw, C& db) {
          dw += gj * h;
          db += gj;
        });
      }
    });
    sum = team.sum(sum) * share;
    dot = team.sum(dot) * share;
    T* to = dx + r * n;
    R::each_pair(row, gradient, [&](int, auto column, const auto& in, const auto& g) {
      const auto w = get_unit<vec>(weight, column);
      C out[vec];
#pragma unroll
      for (int j = 0; j < vec; ++j) {
        const C h = normal(load(&in[j])), a = load(&g[j]) * load(&w.v[j]);
        out[j] = scale * (a - sum - h * dot);
      }
      put_unit<vec>(to, column, out);
    });
  }
  sums.template finish<AddPairs>(result, shared_memory<C>());
}

}  // namespace

void layer_norm_forward(const LayerNormForward& call) {
  dispatch_floating(call.x->dtype(), "layer_norm_forward", [&]<class T>() {
    using C = compute_t<T>;
    const int64_t rows = call.x->size(0), n = call.x->size(1);
    const T *from = call.x->data<T>(), *w = call.weight->data<T>(), *b = call.bias->data<T>();
    T* to = call.y->data<T>();
    dispatch_rows<T>(n, rows_aligned<T>(n, {from, w, b, to}), [&]<int vec, int width, int per>() {
      const TeamMemory memory = team_memory(width > kWarp, n * int64_t{sizeof(T)}, 1);
      launch(layer_norm_rows<T, vec, width, per>,
             {blocks_for(rows, Team<width>::rows), Team<width>::threads, memory.bytes}, from, w, b,
             rows, n, static_cast<C>(call.eps), to, pairs_of<C>(call.mean), call.rstd->data<C>(),
             memory.keep);
    });
  });
}

void layer_norm_backward(const LayerNormBackward& call) {
  dispatch_floating(call.x->dtype(), "layer_norm_backward", [&]<class T>() {
    using C = compute_t<T>;
    const int64_t rows = call.x->size(0), n = call.x->size(1);
    if (n == 0) return;
    const T *from = call.x->data<T>(), *w = call.weight->data<T>(), *g = call.grad->data<T>();
    T* to = call.dx->data<T>();
    dispatch_rows<T>(n, rows_aligned<T>(n, {from, w, g, to}), [&]<int vec, int width, int per>() {
      using R = Row<T, vec, width, per>;
      const RowChunks cut =
          row_chunks(rows, Team<width>::rows, 1, card().multiprocessors, /*waves=*/4);
      const TeamMemory memory = pair_memory<C, R>(n, n * int64_t{sizeof(T)}, 2);
      const Tensor partial = Tensor::empty({cut.chunks, 2, n}, dtype_of<C>(), call.x->device());
      launch(layer_norm_gradient_rows<T, vec, width, per>,
             {blocks_for(cut.chunks, 1), Team<width>::threads, memory.bytes}, from, w,
             pairs_of<C>(call.mean), call.rstd->data<C>(), g, rows, n, cut.rows, to,
             partial.data<C>(), memory);
      launch_merge_sums<C>(partial.data<C>(), 1, cut.chunks, n, nullptr,
                           {call.dweight->raw(), call.dweight->dtype()},
                           {call.dbias->raw(), call.dbias->dtype()});
    });
  });
}

}  // namespace macgrad::cuda
