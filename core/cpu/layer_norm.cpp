// Layer norm over the last dimension (Ba, Kiros & Hinton 2016): y = (x - mean)·rstd·weight + bias
// with the biased variance, taken in two passes while the row is in the cache (row_moments.h).
// Gradients of weight and bias are summed over fixed blocks of rows and the blocks in order, so
// that they do not depend on the number of threads. mean and rstd are kept in the type of the
// arithmetic: rounded to bfloat16 they would put an error of |mean|/256 on every centred value of
// the backward pass.
//
// Shape letters: R rows, N columns.
#include <vector>

#include "macgrad/core/cpu/parallel.h"
#include "macgrad/core/cpu/row_moments.h"
#include "macgrad/core/kernels/rows.h"
#include "macgrad/core/vector_math.h"

namespace macgrad::cpu {
namespace {

constexpr int64_t kRowBlock = 128;  // rows whose gradients of weight and bias are summed together

}  // namespace

void layer_norm_forward(const LayerNormForward& call) {
  dispatch_floating(call.x->dtype(), "layer_norm_forward", [&]<class T>() {
    using C = compute_t<T>;
    const int64_t rows = call.x->size(0), n = call.x->size(1);
    if (n == 0) {
      call.mean->fill(0);
      call.rstd->fill(0);
      return;
    }
    const T* inputs = call.x->data<T>();
    const T* w = call.weight->data<T>();
    const T* b = call.bias->data<T>();
    T* results = call.y->data<T>();
    C* means = call.mean->data<C>();
    C* rstds = call.rstd->data<C>();
    const int64_t grain = std::max<int64_t>(1, kElementGrain / std::max<int64_t>(1, n));
    parallel_blocks(rows, grain, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const T* from = inputs + row * n;
        T* to = results + row * n;
        const RowMoments<C> m = row_moments<C>(from, n);
        const C variance = m.squares / static_cast<C>(n) + static_cast<C>(call.eps);
        const C rstd_of_row = variance == C(0) ? C(0) : C(1) / math::sqrt(variance);
        means[2 * row] = m.mean;
        means[2 * row + 1] = m.correction;
        rstds[row] = rstd_of_row;
        // What rounding took from the mean is in the shift.
        const C centre = m.mean, scale = rstd_of_row, shift = -m.correction * rstd_of_row;
#pragma omp simd
        for (int64_t i = 0; i < n; ++i) {
          const C h = (static_cast<C>(from[i]) - centre) * scale + shift;
          to[i] = static_cast<T>(h * static_cast<C>(w[i]) + static_cast<C>(b[i]));
        }
      }
    });
  });
}

// With h = (x - mean)·rstd and a = g·weight: dx = rstd (a - mean(a) - h mean(a h)),
// dweight = Σ g h, dbias = Σ g.
void layer_norm_backward(const LayerNormBackward& call) {
  dispatch_floating(call.x->dtype(), "layer_norm_backward", [&]<class T>() {
    using C = compute_t<T>;
    const int64_t rows = call.x->size(0), n = call.x->size(1);
    const int64_t blocks = (rows + kRowBlock - 1) / kRowBlock;
    const T* inputs = call.x->data<T>();
    const T* w = call.weight->data<T>();
    const C* means = call.mean->data<C>();
    const C* rstds = call.rstd->data<C>();
    const T* gradients = call.grad->data<T>();
    T* results = call.dx->data<T>();
    // (blocks, 2, N): Σ g h and Σ g of each block.
    std::vector<C> partial(static_cast<size_t>(blocks * 2 * n));
    parallel_blocks(rows, kRowBlock, [&](int64_t begin, int64_t end) {
      C* dw = partial.data() + begin / kRowBlock * 2 * n;
      C* db = dw + n;
      for (int64_t row = begin; row < end; ++row) {
        const T* from = inputs + row * n;
        const T* g = gradients + row * n;
        T* to = results + row * n;
        const C m = means[2 * row], r = rstds[row], shift = -means[2 * row + 1] * r;
        C sum = 0, dot = 0;
#pragma omp simd reduction(+ : sum, dot)
        for (int64_t i = 0; i < n; ++i) {
          const C gi = static_cast<C>(g[i]);
          const C h = (static_cast<C>(from[i]) - m) * r + shift;
          const C a = gi * static_cast<C>(w[i]);
          sum += a;
          dot += a * h;
          dw[i] += gi * h;
          db[i] += gi;
        }
        sum /= static_cast<C>(n);
        dot /= static_cast<C>(n);
        const C common = r * (sum + shift * dot), along = r * dot;
#pragma omp simd
        for (int64_t i = 0; i < n; ++i) {
          const C a = static_cast<C>(g[i]) * static_cast<C>(w[i]);
          to[i] = static_cast<T>(r * a - (static_cast<C>(from[i]) - m) * r * along - common);
        }
      }
    });
    parallel_blocks(n, 256, [&](int64_t begin, int64_t end) {
      std::vector<double> totals(static_cast<size_t>(2 * (end - begin)));
      double* dw = totals.data();
      double* db = dw + (end - begin);
      for (int64_t block = 0; block < blocks; ++block) {
        const C* p = partial.data() + block * 2 * n;
        for (int64_t i = begin; i < end; ++i) {
          dw[i - begin] += static_cast<double>(p[i]);
          db[i - begin] += static_cast<double>(p[n + i]);
        }
      }
      for (int64_t i = begin; i < end; ++i) {
        call.dweight->data<T>()[i] = static_cast<T>(static_cast<C>(dw[i - begin]));
        call.dbias->data<T>()[i] = static_cast<T>(static_cast<C>(db[i - begin]));
      }
    });
  });
}

}  // namespace macgrad::cpu
