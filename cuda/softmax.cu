// Softmax, log-softmax and cross entropy over rows. Short rows stay in registers; long ones are
// read once by a block that keeps the maximum and the sum of exponentials together (Milakov &
// Gimelshein 2018) and lays the row down in shared memory for the second pass. Cross entropy never
// makes probabilities. A row of only -inf gives NaN; masks belong to the attention kernels.
//
// A target outside [0, V) that is not the ignored one gives a NaN loss and a NaN gradient row, and
// the next read of a value reports it (index_fault.h).
//
// Shape letters: R rows, N columns, V vocabulary.
#include <limits>

#include "macgrad/core/kernels/rows.h"
#include "macgrad/core/vector_math.h"
#include "macgrad/cuda/index_fault.h"
#include "macgrad/cuda/rows.cuh"

namespace macgrad::cuda {
namespace {

// Exponentials are taken against 0 while everything seen is -inf, because -inf - -inf is NaN.
template <class C>
__device__ C shift_of(C max) {
  return max == -std::numeric_limits<C>::infinity() ? C(0) : max;
}

/// The largest logit of a row and the sum of exponentials of the differences from it.
template <class C>
using Pair = Unit<C, 2>;

template <class C>
struct RowSums {
  C max = -std::numeric_limits<C>::infinity();
  C exp_sum = 0;    // sum of exp(x - max)
  C below_max = 0;  // sum of max - x, where asked for
};

// NaN is passed over by the maximum and comes back through the exponentials.
template <bool with_below_max, class C, class R, class Members>
__device__ RowSums<C> row_sums(R& row, const Members& team) {
  RowSums<C> s;
  constexpr int vec = R::vec;
  if constexpr (R::in_registers) {
    row.each([&](int, auto, const auto& x) {
#pragma unroll
      for (int j = 0; j < vec; ++j) {
        const C v = load(&x[j]);
        s.max = v > s.max ? v : s.max;
      }
    });
    s.max = team.max(s.max);
    const C shift = shift_of(s.max);
    row.each([&](int, auto, const auto& x) {
#pragma unroll
      for (int j = 0; j < vec; ++j) {
        const C v = load(&x[j]);
        s.exp_sum += math::exp(v - shift);
        if constexpr (with_below_max) s.below_max += shift - v;
      }
    });
  } else {
    C count = 0;  // elements seen: when the maximum rises, each is farther below it
    row.each([&](int, auto, const auto& x) {
      C max = s.max;
#pragma unroll
      for (int j = 0; j < vec; ++j) {
        const C v = load(&x[j]);
        max = v > max ? v : max;
      }
      const C shift = shift_of(max);
      if (max > s.max) {
        s.exp_sum *= math::exp(s.max - shift);
        if constexpr (with_below_max) s.below_max += count * (shift - shift_of(s.max));
      }
      s.max = max;
#pragma unroll
      for (int j = 0; j < vec; ++j) {
        const C v = load(&x[j]);
        s.exp_sum += math::exp(v - shift);
        if constexpr (with_below_max) s.below_max += shift - v;
      }
      if constexpr (with_below_max) count += static_cast<C>(vec);
    });
    const C max = team.max(s.max);
    s.exp_sum *= math::exp(s.max - shift_of(max));
    if constexpr (with_below_max) s.below_max += count * (shift_of(max) - shift_of(s.max));
    s.max = max;
  }
  s.exp_sum = team.sum(s.exp_sum);
  if constexpr (with_below_max) s.below_max = team.sum(s.below_max);
  return s;
}

template <bool log, class T, int vec, int width, int per>
__global__ void __launch_bounds__(Team<width>::threads)
    softmax_rows(const T* __restrict__ x, T* __restrict__ y, int64_t rows, int64_t n, bool keep) {
  using C = compute_t<T>;
  const Team<width> team;
  const int64_t r = int64_t{blockIdx.x} * team.rows + team.row;
  Row<T, vec, width, per> row(x + r * n, r < rows ? n : 0, team.member, row_cache<T>(n, 0, keep));
  const RowSums<C> s = row_sums<false, C>(row, team);
  const C factor = C(1) / s.exp_sum, log_total = math::log(s.exp_sum);
  T* to = y + r * n;
  row.each([&](int, auto column, const auto& in) {
    C out[vec];
#pragma unroll
    for (int j = 0; j < vec; ++j) {
      const C v = load(&in[j]) - s.max;
      out[j] = log ? v - log_total : math::exp(v) * factor;
    }
    put_unit<vec>(to, column, out);
  });
}

// dx = y (g - Σ g y), or for logarithms y: dx = g - exp(y) Σ g.
template <bool log, class T, int vec, int width, int per>
__global__ void __launch_bounds__(Team<width>::threads)
    softmax_gradient_rows(const T* __restrict__ y, const T* __restrict__ grad, T* __restrict__ dx,
                          int64_t rows, int64_t n, bool keep) {
  using C = compute_t<T>;
  using R = Row<T, vec, width, per>;
  const Team<width> team;
  const int64_t r = int64_t{blockIdx.x} * team.rows + team.row;
  const int64_t columns = r < rows ? n : 0;
  // The first pass over logarithms needs the gradient alone, the second reads y once.
  R g(grad + r * n, columns, team.member, row_cache<T>(n, 0, keep));
  R p(y + r * n, columns, team.member, log ? nullptr : row_cache<T>(n, 1, keep));
  C sum = 0;
  if constexpr (log) {
    g.each([&](int, auto, const auto& gradient) {
#pragma unroll
      for (int j = 0; j < vec; ++j) sum += load(&gradient[j]);
    });
  } else {
    R::each_pair(g, p, [&](int, auto, const auto& gradient, const auto& probability) {
#pragma unroll
      for (int j = 0; j < vec; ++j) sum += load(&gradient[j]) * load(&probability[j]);
    });
  }
  sum = team.sum(sum);
  T* to = dx + r * n;
  R::each_pair(g, p, [&](int, auto column, const auto& gradient, const auto& result) {
    C out[vec];
#pragma unroll
    for (int j = 0; j < vec; ++j) {
      const C d = load(&gradient[j]), v = load(&result[j]);
      out[j] = log ? d - math::exp(v) * sum : v * (d - sum);
    }
    put_unit<vec>(to, column, out);
  });
}

/// Whether target t of row r names one of v classes; one that does not is noted.
__device__ bool names_class(int64_t t, int64_t r, int64_t v, const char* op, IndexFault* fault) {
  if (t >= 0 && t < v) return true;
  if (atomicCAS(&fault->noted, 0, 1) == 0) {
    fault->op = op;
    fault->index = t;
    fault->place = r;
    fault->extent = v;
  }
  return false;
}

// loss = log Σ exp(x - max) + (1-s) (max - x_target) + s mean(max - x): no term grows with a common
// offset of the logits. A term whose factor is 0 is left out, since its other factor may be
// infinite.
template <class T, int vec, int width, int per>
__global__ void __launch_bounds__(Team<width>::threads)
    cross_entropy_rows(const T* __restrict__ logits, const int64_t* __restrict__ target,
                       int64_t rows, int64_t v, compute_t<T> smoothing, int64_t ignore,
                       compute_t<T>* __restrict__ loss, Pair<compute_t<T>>* __restrict__ statistics,
                       const char* op, IndexFault* fault) {
  using C = compute_t<T>;
  const Team<width> team;
  const int64_t r = int64_t{blockIdx.x} * team.rows + team.row;
  const T* x = logits + r * v;
  Row<T, vec, width, per> row(x, r < rows ? v : 0, team.member);
  const RowSums<C> s = row_sums<true, C>(row, team);
  if (r >= rows || team.member != 0) return;
  const int64_t t = target[r];
  C value = 0;
  if (t != ignore) {
    if (names_class(t, r, v, op, fault)) {
      value = math::log(s.exp_sum);
      if (smoothing != C(1)) value += (C(1) - smoothing) * (s.max - load(x + t));
      if (smoothing != C(0)) value += smoothing * (s.below_max / static_cast<C>(v));
    } else {
      value = std::numeric_limits<C>::quiet_NaN();
    }
  }
  loss[r] = value;
  statistics[r] = {s.max, s.exp_sum};
}

// dlogits = g (softmax - target distribution). Softmax comes from the maximum and the sum apart: as
// one rounded log-sum-exp they would put an error of |max|/2^24 on every logarithm.
template <class T, int vec, int width, int per>
__global__ void __launch_bounds__(Team<width>::threads)
    cross_entropy_gradient_rows(const T* __restrict__ logits, const int64_t* __restrict__ target,
                                const Pair<compute_t<T>>* __restrict__ statistics,
                                const compute_t<T>* __restrict__ grad, int64_t rows, int64_t v,
                                compute_t<T> smoothing, int64_t ignore, T* __restrict__ dlogits,
                                const char* op, IndexFault* fault) {
  using C = compute_t<T>;
  using R = Row<T, vec, width, per>;
  const Team<width> team;
  const int64_t r = int64_t{blockIdx.x} * team.rows + team.row;
  const bool inside = r < rows;
  const int64_t t = inside ? target[r] : ignore;
  const int64_t columns = t != ignore ? v : 0;  // nothing of an ignored row is read
  R row(logits + r * v, columns, team.member);
  T* to = dlogits + r * v;
  if (columns == 0) {
    const C zeros[vec] = {};
    each_column<R>(inside ? v : 0, team.member,
                   [&](int, auto column) { put_unit<vec>(to, column, zeros); });
    return;
  }
  bool named = t >= 0 && t < v;
  if (!named && team.member == 0) named = names_class(t, r, v, op, fault);
  const C g = named ? grad[r] : std::numeric_limits<C>::quiet_NaN();
  const Pair<C> kept = statistics[r];
  const C max = kept.v[0], share = C(1) / kept.v[1];
  const C everywhere = smoothing / static_cast<C>(v);
  row.each([&](int, auto column, const auto& x) {
    C out[vec];
#pragma unroll
    for (int j = 0; j < vec; ++j) {
      const C on_target = column + j == t ? C(1) - smoothing : C(0);
      out[j] = g * (math::exp(load(&x[j]) - max) * share - everywhere - on_target);
    }
    put_unit<vec>(to, column, out);
  });
}

constexpr const char* kCrossEntropy = "cross_entropy";

template <int width>
LaunchShape shape_of(int64_t rows, const TeamMemory& memory = {}) {
  const size_t scratch = width > kWarp ? kTeamScratchBytes : 0;
  return {blocks_for(rows, Team<width>::rows), Team<width>::threads,
          std::max(memory.bytes, scratch)};
}

template <bool log>
void forward(const char* op, const Tensor& x, const Tensor& y) {
  dispatch_floating(x.dtype(), op, [&]<class T>() {
    const int64_t rows = x.size(0), n = x.size(1);
    const T* from = x.data<T>();
    T* to = y.data<T>();
    if (n == 0) return;
    dispatch_rows<T>(n, rows_aligned<T>(n, {from, to}), [&]<int vec, int width, int per>() {
      const TeamMemory memory = team_memory(width > kWarp, n * int64_t{sizeof(T)}, 1);
      launch(softmax_rows<log, T, vec, width, per>, shape_of<width>(rows, memory), from, to, rows,
             n, memory.keep);
    });
  });
}

template <bool log>
void backward(const char* op, const Tensor& y, const Tensor& grad, const Tensor& dx) {
  dispatch_floating(y.dtype(), op, [&]<class T>() {
    const int64_t rows = y.size(0), n = y.size(1);
    const T *result = y.data<T>(), *g = grad.data<T>();
    T* to = dx.data<T>();
    if (n == 0) return;
    dispatch_rows<T>(n, rows_aligned<T>(n, {result, g, to}), [&]<int vec, int width, int per>() {
      const TeamMemory memory = team_memory(width > kWarp, n * int64_t{sizeof(T)}, log ? 1 : 2);
      launch(softmax_gradient_rows<log, T, vec, width, per>, shape_of<width>(rows, memory), result,
             g, to, rows, n, memory.keep);
    });
  });
}

}  // namespace

void softmax_forward(In x, Out y) {
  forward<false>("softmax_forward", x, y);
}
void softmax_backward(In y, In grad, Out dx) {
  backward<false>("softmax_backward", y, grad, dx);
}
void log_softmax_forward(In x, Out y) {
  forward<true>("log_softmax_forward", x, y);
}
void log_softmax_backward(In y, In grad, Out dx) {
  backward<true>("log_softmax_backward", y, grad, dx);
}

void cross_entropy_forward(In logits, In target, double smoothing, int64_t ignore, Out loss,
                           Out statistics) {
  dispatch_floating(logits->dtype(), "cross_entropy_forward", [&]<class T>() {
    const int64_t rows = logits->size(0), v = logits->size(1);
    using C = compute_t<T>;
    const T* x = logits->data<T>();
    auto* kept = reinterpret_cast<Pair<C>*>(statistics->data<C>());
    dispatch_rows<T>(v, rows_aligned<T>(v, {x}), [&]<int vec, int width, int per>() {
      launch(cross_entropy_rows<T, vec, width, per>, shape_of<width>(rows), x,
             target->data<int64_t>(), rows, v, static_cast<C>(smoothing), ignore, loss->data<C>(),
             kept, kCrossEntropy, index_fault());
    });
  });
}

void cross_entropy_backward(const CrossEntropyBackward& call) {
  dispatch_floating(call.logits->dtype(), "cross_entropy_backward", [&]<class T>() {
    const int64_t rows = call.logits->size(0), v = call.logits->size(1);
    const T* x = call.logits->data<T>();
    T* to = call.dlogits->data<T>();
    if (v == 0) return;
    dispatch_rows<T>(v, rows_aligned<T>(v, {x, to}), [&]<int vec, int width, int per>() {
      using C = compute_t<T>;
      launch(cross_entropy_gradient_rows<T, vec, width, per>, shape_of<width>(rows), x,
             call.target->data<int64_t>(),
             reinterpret_cast<const Pair<C>*>(call.statistics->data<C>()), call.grad->data<C>(),
             rows, v, static_cast<C>(call.smoothing), call.ignore, to, kCrossEntropy,
             index_fault());
    });
  });
}

}  // namespace macgrad::cuda
