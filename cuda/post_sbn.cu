// postSBN of ppSBN (Macformer, arXiv 2408.11656, Algorithm 1; settled form in nn/README.md):
// y = s·(s² + eps²)^((beta-1)/2) with s = gamma·x, a signed power whose slope at 0 stays finite.
// Backward reads x and the gradient once, writes dx and keeps the sums for gamma and beta beside it
// (columns.cuh).
//
// Shape letters: d head dimension, R rows.
#include "macgrad/core/kernels/sbn.h"
#include "macgrad/core/vector_math.h"
#include "macgrad/cuda/sbn.cuh"
#include "macgrad/cuda/strided.h"

namespace macgrad::cuda {
namespace {

template <class T, int vec, int width, int per>
__global__ void __launch_bounds__(Team<width>::threads)
    post_sbn_rows(const T* __restrict__ x, T* __restrict__ y, Strided<2> rows, int64_t d,
                  typename ChannelTensor<T>::View gamma, typename ChannelTensor<T>::View beta,
                  compute_t<T> small) {
  using C = compute_t<T>;
  using R = Row<T, vec, width, per>;
  const Team<width> team;
  const auto gammas = channel_values<C, R>(d, team.member, [=](int64_t c) { return gamma.at(c); });
  const auto powers =
      channel_values<C, R>(d, team.member, [=](int64_t c) { return beta.at(c) - C(1); });
  const int64_t step = int64_t{gridDim.x} * team.rows;
  for (int64_t r = int64_t{blockIdx.x} * team.rows + team.row; r < rows.count; r += step) {
    int64_t at[2];
    rows.offsets(static_cast<uint32_t>(r), at);
    R row(x + at[0], d, team.member);
    T* to = y + at[1];
    row.each([&](int k, auto column, const auto& in) {
      C out[vec];
#pragma unroll
      for (int j = 0; j < vec; ++j) {
        const C s = gammas.at(k, column, j) * load(&in[j]);
        const C half_log = C(0.5) * math::log(s * s + small);
        out[j] = s * math::exp(powers.at(k, column, j) * half_log);
      }
      put_unit<vec>(to, column, out);
    });
  }
}

// With u = s² + eps², p = u^((beta-1)/2): dy/ds = p (1 + (beta-1) s²/u), dy/dbeta = y log(u)/2.
// Block i has rows [i, i+1)·chunk and leaves `partial` (chunks, 2, d).
template <class T, int vec, int width, int per>
__global__ void __launch_bounds__(Team<width>::threads)
    post_sbn_gradient_rows(const T* __restrict__ x, const T* __restrict__ grad, T* __restrict__ dx,
                           Strided<3> rows, int64_t d, int64_t chunk,
                           typename ChannelTensor<T>::View gamma,
                           typename ChannelTensor<T>::View beta, compute_t<T> small,
                           compute_t<T>* __restrict__ partial, TeamMemory memory) {
  using C = compute_t<T>;
  using R = Row<T, vec, width, per>;
  const Team<width> team;
  const auto gammas = channel_values<C, R>(d, team.member, [=](int64_t c) { return gamma.at(c); });
  const auto powers =
      channel_values<C, R>(d, team.member, [=](int64_t c) { return beta.at(c) - C(1); });
  C* result = partial + int64_t{blockIdx.x} * 2 * d;
  ColumnPairs<C, R> sums(d, team.member, pair_place<C, R>(memory, d, result));
  const int64_t begin = int64_t{blockIdx.x} * chunk;
  const int64_t end = ::min(int64_t{rows.count}, begin + chunk);
  for (int64_t r = begin + team.row; r < end; r += team.rows) {
    int64_t at[3];
    rows.offsets(static_cast<uint32_t>(r), at);
    R row(x + at[0], d, team.member), gradient(grad + at[1], d, team.member);
    T* to = dx + at[2];
    R::each_pair(row, gradient, [&](int k, auto column, const auto& in, const auto& g) {
      C out[vec];
#pragma unroll
      for (int j = 0; j < vec; ++j) {
        const C v = load(&in[j]), o = load(&g[j]);
        const C scale = gammas.at(k, column, j), power = powers.at(k, column, j);
        const C s = scale * v, u = s * s + small, half_log = C(0.5) * math::log(u);
        const C p = math::exp(power * half_log);
        const C ds = o * p * (C(1) + power * s * s / u);
        out[j] = ds * scale;
        sums.update(k, column, j, [&](C& dg, C& db) {
          dg += ds * v;
          db += o * s * p * half_log;
        });
      }
      put_unit<vec>(to, column, out);
    });
  }
  sums.template finish<AddPairs>(result, shared_memory<C>());
}

/// The rows of a tensor (…, d): its leading dimensions.
Tensor leading(const Tensor& x) {
  return x.select(-1, 0);
}

template <class T>
bool rows_aligned(const Tensor& x) {
  bool all = aligned_to(x.data<T>(), 16);
  for (int i = 0; i + 1 < x.rank(); ++i)
    all = all && (x.size(i) == 1 || x.stride(i) * static_cast<int64_t>(sizeof(T)) % 16 == 0);
  return all;
}

ColumnOutput output(const Tensor& t, int64_t d) {
  return {t.raw(), t.dtype(), t.numel() == 1 && d != 1};
}

}  // namespace

void post_sbn_forward(In x, In gamma, In beta, double eps, Out y) {
  dispatch_floating(x->dtype(), "post_sbn_forward", [&]<class T>() {
    using C = compute_t<T>;
    const int64_t d = x->size(-1);
    if (x->numel() == 0) return;
    const ChannelTensor<T> gammas(gamma), betas(beta);
    const Tensor from = leading(x), to = leading(y);
    const bool aligned = rows_aligned<T>(x) && rows_aligned<T>(y);
    dispatch_channels<T>(d, aligned, [&]<int vec, int width, int per>() {
      for (const auto& [rows, start] : strided_parts<2>({&from, &to}))
        launch(post_sbn_rows<T, vec, width, per>,
               {blocks_strided(rows.count, Team<width>::rows), Team<width>::threads},
               from.data<T>() + start[0], to.data<T>() + start[1], rows, d, gammas.view(),
               betas.view(), static_cast<C>(eps * eps));
    });
  });
}

void post_sbn_backward(const PostSbnBackward& call) {
  dispatch_floating(call.x->dtype(), "post_sbn_backward", [&]<class T>() {
    using C = compute_t<T>;
    const int64_t d = call.x->size(-1);
    if (d == 0) {
      // A single gamma or beta still has a gradient, 0; `fill` of no elements is nothing.
      call.dgamma->fill(0);
      call.dbeta->fill(0);
      return;
    }
    const ChannelTensor<T> gammas(call.gamma), betas(call.beta);
    const Tensor from = leading(call.x), gradient = leading(call.grad), to = leading(call.dx);
    const bool aligned =
        rows_aligned<T>(call.x) && rows_aligned<T>(call.grad) && rows_aligned<T>(call.dx);
    dispatch_channels<T>(d, aligned, [&]<int vec, int width, int per>() {
      using R = Row<T, vec, width, per>;
      const auto parts = strided_parts<3>({&from, &gradient, &to});
      const auto cut = [&](const Strided<3>& rows) {
        return row_chunks(rows.count, Team<width>::rows, 1, card().multiprocessors, /*waves=*/8);
      };
      int64_t chunks = 0;
      for (const auto& part : parts) chunks += cut(part.shape).chunks;
      const TeamMemory memory = pair_memory<C, R>(d, 0, 0);
      const Tensor partial = Tensor::empty({chunks, 2, d}, dtype_of<C>(), call.x->device());
      int64_t first = 0;
      for (const auto& [rows, start] : parts) {
        const RowChunks c = cut(rows);
        launch(post_sbn_gradient_rows<T, vec, width, per>,
               {blocks_for(c.chunks, 1), Team<width>::threads, memory.bytes},
               from.data<T>() + start[0], gradient.data<T>() + start[1], to.data<T>() + start[2],
               rows, d, c.rows, gammas.view(), betas.view(), static_cast<C>(call.eps * call.eps),
               partial.data<C>() + first * 2 * d, memory);
        first += c.chunks;
      }
      launch_merge_sums<C>(partial.data<C>(), 1, chunks, d, nullptr, output(call.dgamma, d),
                           output(call.dbeta, d));
    });
  });
}

}  // namespace macgrad::cuda
