// Softmax, log-softmax and cross entropy over rows. A row is read once where it can be: the maximum
// and the sum of exponentials run together over blocks that stay in the L1 cache (Milakov &
// Gimelshein 2018). A row of only -inf gives NaN; masks belong to the attention kernels.
//
// Shape letters: R rows, N columns, V vocabulary.
#include <limits>
#include <type_traits>
#include <vector>

#include "macgrad/core/cpu/parallel.h"
#include "macgrad/core/kernels/rows.h"
#include "macgrad/core/vector_math.h"

namespace macgrad::cpu {
namespace {

constexpr int64_t kBlock = 2048;

int64_t rows_per_block(int64_t columns) {
  return std::max<int64_t>(1, kElementGrain / std::max<int64_t>(1, columns));
}

template <class C>
constexpr C kLowest = -std::numeric_limits<C>::infinity();

// NaN is passed over here and comes back through the exponentials.
template <class C, class T>
C maximum(const T* x, int64_t n) {
  C m = kLowest<C>;
#pragma omp simd reduction(max : m)
  for (int64_t i = 0; i < n; ++i) {
    const C v = static_cast<C>(x[i]);
    m = v > m ? v : m;
  }
  return m;
}

// exp of a block is taken against 0 while everything seen is -inf, because -inf - -inf is NaN.
template <class C>
C shift_of(C max) {
  return max == kLowest<C> ? C(0) : max;
}

template <class C>
struct RowSums {
  C max = kLowest<C>;
  C exp_sum = 0;    // sum of exp(x - max)
  C below_max = 0;  // sum of max - x, where asked for
};

template <bool with_below_max, class C, class T>
RowSums<C> row_sums(const T* x, int64_t n) {
  RowSums<C> r;
  for (int64_t start = 0; start < n; start += kBlock) {
    const T* block = x + start;
    const int64_t length = std::min(kBlock, n - start);
    const C max = std::max(r.max, maximum<C>(block, length));
    const C shift = shift_of(max);
    C sum = 0, below = 0;
#pragma omp simd reduction(+ : sum, below)
    for (int64_t i = 0; i < length; ++i) {
      const C difference = static_cast<C>(block[i]) - shift;
      sum += math::exp(difference);
      if constexpr (with_below_max) below -= difference;
    }
    r.exp_sum = r.exp_sum * math::exp(r.max - shift) + sum;
    if constexpr (with_below_max)
      r.below_max += below + static_cast<C>(start) * (shift - shift_of(r.max));
    r.max = max;
  }
  return r;
}

// The exponentials go to e (y itself unless y is bfloat16), each block against the largest value so
// far, whose place in the row is remembered in `maxima`; the second pass brings all to one shift.
template <class T, class C>
void softmax_row(const T* x, T* y, int64_t n, C* e, C* maxima) {
  C max = kLowest<C>;
  C total = 0;
  for (int64_t start = 0, b = 0; start < n; start += kBlock, ++b) {
    const int64_t length = std::min(kBlock, n - start);
    const T* block = x + start;
    C* out = e + start;
    const C before = max;
    max = std::max(max, maximum<C>(block, length));
    maxima[b] = max;
    const C shift = shift_of(max);
    C sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < length; ++i) {
      const C v = math::exp(static_cast<C>(block[i]) - shift);
      out[i] = v;
      sum += v;
    }
    total = total * math::exp(before - shift) + sum;
  }
  for (int64_t start = 0, b = 0; start < n; start += kBlock, ++b) {
    const int64_t length = std::min(kBlock, n - start);
    const C factor = math::exp(maxima[b] - max) / total;
    const C* in = e + start;
    T* out = y + start;
#pragma omp simd
    for (int64_t i = 0; i < length; ++i) out[i] = static_cast<T>(in[i] * factor);
  }
}

void check_targets(In target, int64_t vocabulary, int64_t ignore) {
  const int64_t* t = target->data<int64_t>();
  for (int64_t row = 0; row < target->numel(); ++row) {
    require((t[row] >= 0 && t[row] < vocabulary) || t[row] == ignore,
            "[cross_entropy] target {} of row {} is not in [0, {}) and is not the ignored index {}",
            t[row], row, vocabulary, ignore);
  }
}

}  // namespace

void softmax_forward(In x, Out y) {
  dispatch_floating(x->dtype(), "softmax_forward", [&]<class T>() {
    using C = compute_t<T>;
    constexpr bool direct = std::is_same_v<T, C>;
    const int64_t rows = x->size(0), n = x->size(1);
    const T* from = x->data<T>();
    T* to = y->data<T>();
    parallel_blocks(rows, rows_per_block(n), [&](int64_t begin, int64_t end) {
      std::vector<C> maxima(static_cast<size_t>((n + kBlock - 1) / kBlock));
      std::vector<C> wide(direct ? size_t{0} : static_cast<size_t>(n));
      for (int64_t row = begin; row < end; ++row) {
        C* e;
        if constexpr (direct) {
          e = to + row * n;
        } else {
          e = wide.data();
        }
        softmax_row(from + row * n, to + row * n, n, e, maxima.data());
      }
    });
  });
}

// dx = y (g - Σ g y).
void softmax_backward(In y, In grad, Out dx) {
  dispatch_floating(y->dtype(), "softmax_backward", [&]<class T>() {
    using C = compute_t<T>;
    const int64_t rows = y->size(0), n = y->size(1);
    const T* probabilities = y->data<T>();
    const T* gradients = grad->data<T>();
    T* results = dx->data<T>();
    parallel_blocks(rows, rows_per_block(n), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const T* p = probabilities + row * n;
        const T* g = gradients + row * n;
        T* out = results + row * n;
        C dot = 0;
#pragma omp simd reduction(+ : dot)
        for (int64_t i = 0; i < n; ++i) dot += static_cast<C>(p[i]) * static_cast<C>(g[i]);
#pragma omp simd
        for (int64_t i = 0; i < n; ++i) {
          out[i] = static_cast<T>(static_cast<C>(p[i]) * (static_cast<C>(g[i]) - dot));
        }
      }
    });
  });
}

void log_softmax_forward(In x, Out y) {
  dispatch_floating(x->dtype(), "log_softmax_forward", [&]<class T>() {
    using C = compute_t<T>;
    const int64_t rows = x->size(0), n = x->size(1);
    const T* inputs = x->data<T>();
    T* results = y->data<T>();
    parallel_blocks(rows, rows_per_block(n), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const T* from = inputs + row * n;
        T* to = results + row * n;
        const RowSums<C> r = row_sums<false, C>(from, n);
        const C max = r.max;
        const C log = math::log(r.exp_sum);
#pragma omp simd
        for (int64_t i = 0; i < n; ++i) to[i] = static_cast<T>(static_cast<C>(from[i]) - max - log);
      }
    });
  });
}

// dx = g - exp(y) Σ g.
void log_softmax_backward(In y, In grad, Out dx) {
  dispatch_floating(y->dtype(), "log_softmax_backward", [&]<class T>() {
    using C = compute_t<T>;
    const int64_t rows = y->size(0), n = y->size(1);
    const T* log_probabilities = y->data<T>();
    const T* gradients = grad->data<T>();
    T* results = dx->data<T>();
    parallel_blocks(rows, rows_per_block(n), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const T* log_p = log_probabilities + row * n;
        const T* g = gradients + row * n;
        T* out = results + row * n;
        C sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t i = 0; i < n; ++i) sum += static_cast<C>(g[i]);
#pragma omp simd
        for (int64_t i = 0; i < n; ++i) {
          out[i] = static_cast<T>(static_cast<C>(g[i]) - math::exp(static_cast<C>(log_p[i])) * sum);
        }
      }
    });
  });
}

// loss = log Σ exp(x - max) + (1-s) (max - x_target) + s mean(max - x): no term grows with a common
// offset of the logits. A term whose factor is 0 is left out, since its other factor may be
// infinite.
void cross_entropy_forward(In logits, In target, double smoothing, int64_t ignore, Out loss,
                           Out statistics) {
  check_targets(target, logits->size(1), ignore);
  dispatch_floating(logits->dtype(), "cross_entropy_forward", [&]<class T>() {
    using C = compute_t<T>;
    const int64_t rows = logits->size(0), v = logits->size(1);
    const C s = static_cast<C>(smoothing);
    const T* inputs = logits->data<T>();
    const int64_t* targets = target->data<int64_t>();
    C* losses = loss->data<C>();
    C* kept = statistics->data<C>();
    parallel_blocks(rows, rows_per_block(v), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const T* x = inputs + row * v;
        const int64_t t = targets[row];
        const RowSums<C> r = s != C(0) ? row_sums<true, C>(x, v) : row_sums<false, C>(x, v);
        C value = 0;
        if (t != ignore) {
          value = math::log(r.exp_sum);
          if (s != C(1)) value += (C(1) - s) * (r.max - static_cast<C>(x[t]));
          if (s != C(0)) value += s * (r.below_max / static_cast<C>(v));
        }
        losses[row] = value;
        kept[2 * row] = r.max;
        kept[2 * row + 1] = r.exp_sum;
      }
    });
  });
}

// dlogits = g (softmax - target distribution). Softmax comes from the maximum and the sum apart: as
// one rounded log-sum-exp they would put an error of |max|/2^24 on every logarithm.
void cross_entropy_backward(const CrossEntropyBackward& call) {
  check_targets(call.target, call.logits->size(1), call.ignore);
  dispatch_floating(call.logits->dtype(), "cross_entropy_backward", [&]<class T>() {
    using C = compute_t<T>;
    const int64_t rows = call.logits->size(0), v = call.logits->size(1);
    const C s = static_cast<C>(call.smoothing);
    const C everywhere = v > 0 ? s / static_cast<C>(v) : C(0);
    const T* inputs = call.logits->data<T>();
    const int64_t* targets = call.target->data<int64_t>();
    const C* kept = call.statistics->data<C>();
    const C* gradients = call.grad->data<C>();
    T* results = call.dlogits->data<T>();
    parallel_blocks(rows, rows_per_block(v), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const T* x = inputs + row * v;
        T* out = results + row * v;
        const int64_t t = targets[row];
        if (t == call.ignore) {
          std::fill(out, out + v, T(0));
          continue;
        }
        const C g = gradients[row], max = kept[2 * row];
        const C factor = g / kept[2 * row + 1], smooth = g * everywhere;
#pragma omp simd
        for (int64_t i = 0; i < v; ++i) {
          out[i] = static_cast<T>(math::exp(static_cast<C>(x[i]) - max) * factor - smooth);
        }
        const C p = math::exp(static_cast<C>(x[t]) - max) * factor;
        out[t] = static_cast<T>(p - smooth - g * (C(1) - s));
      }
    });
  });
}

}  // namespace macgrad::cpu
