// preSBN of ppSBN (Macformer, arXiv 2408.11656, Algorithm 1; settled form in nn/README.md):
// z = (x - mean)/sqrt(var + eps), y = z/|z| for each row. Statistics come from all valid positions
// of the batch for each head and channel, are given, or come from the row itself. Block moments are
// merged as in Chan, Golub & LeVeque 1979.
//
// Shape letters: B batch, H heads, T positions, d head dimension.
#include <cmath>
#include <vector>

#include "macgrad/core/cpu/row_moments.h"
#include "macgrad/core/cpu/sbn_blocks.h"
#include "macgrad/core/vector_math.h"

namespace macgrad::cpu {
namespace {

using namespace sbn;

constexpr double kSmallestNorm = 1e-12;  // rows of z up to this L2 norm become 0

/// A tensor (B, H, T, d) as rows (b·T + t, h).
template <class T>
class Heads {
 public:
  explicit Heads(const Tensor& x)
      : data_(x.data<T>()), length_(x.size(2)), b_(x.stride(0)), h_(x.stride(1)), t_(x.stride(2)) {}
  T* row(int64_t position, int64_t h) const {
    return data_ + position / length_ * b_ + h * h_ + position % length_ * t_;
  }

 private:
  T* data_;
  int64_t length_, b_, h_, t_;
};

/// Which rows there are, and how they are cut into tasks of (head, block of positions).
struct Rows {
  Rows(const Tensor& x, const Tensor& valid)
      : heads(x.size(1)),
        positions(x.size(0) * x.size(2)),
        d(x.size(3)),
        blocks((positions + kRowBlock - 1) / kRowBlock),
        mask(valid.defined() ? valid.data<bool>() : nullptr) {}

  bool valid(int64_t position) const { return !mask || mask[position]; }

  int64_t count(int64_t block) const {
    int64_t n = 0;
    const int64_t end = std::min(positions, (block + 1) * kRowBlock);
    for (int64_t i = block * kRowBlock; i < end; ++i) n += valid(i);
    return n;
  }

  /// f(h, block, first position, end position), tasks over the threads.
  template <class F>
  void for_blocks(F&& f) const {
    if (d == 0) return;
    parallel_blocks(heads * blocks, task_grain(d), [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        const int64_t block = task / heads;
        f(task % heads, block, block * kRowBlock, std::min(positions, (block + 1) * kRowBlock));
      }
    });
  }

  int64_t heads, positions, d, blocks;
  const bool* mask;
};

/// Mean and biased variance (H, d) over valid positions; without any, 0 and 1.
template <class T, class C>
void batch_moments(const Heads<T>& x, const Rows& rows, std::vector<C>& mean, std::vector<C>& var) {
  const int64_t d = rows.d;
  // (H, blocks, 2, d): mean and sum of squared differences of each block.
  std::vector<C> partial(static_cast<size_t>(rows.heads * rows.blocks * 2 * d));
  rows.for_blocks([&](int64_t h, int64_t block, int64_t begin, int64_t end) {
    C* m = partial.data() + (h * rows.blocks + block) * 2 * d;
    C* squares = m + d;
    const int64_t n = rows.count(block);
    if (n == 0) return;
    // Differences from the first row: the mean of equal values is exact.
    while (!rows.valid(begin)) ++begin;
    const T* first = x.row(begin, h);
    for (int64_t i = begin; i < end; ++i) {
      if (!rows.valid(i)) continue;
      const T* row = x.row(i, h);
#pragma omp simd
      for (int64_t c = 0; c < d; ++c) m[c] += static_cast<C>(row[c]) - static_cast<C>(first[c]);
    }
    for (int64_t c = 0; c < d; ++c) m[c] = static_cast<C>(first[c]) + m[c] / static_cast<C>(n);
    for (int64_t i = begin; i < end; ++i) {
      if (!rows.valid(i)) continue;
      const T* row = x.row(i, h);
#pragma omp simd
      for (int64_t c = 0; c < d; ++c) {
        const C difference = static_cast<C>(row[c]) - m[c];
        squares[c] += difference * difference;
      }
    }
  });
  parallel_tasks(rows.heads, [&](int64_t h) {
    std::vector<double> m(static_cast<size_t>(d)), squares(static_cast<size_t>(d));
    double total = 0;
    for (int64_t block = 0; block < rows.blocks; ++block) {
      const double n = static_cast<double>(rows.count(block));
      if (n == 0) continue;
      const double share = n / (total + n);
      const C* p = partial.data() + (h * rows.blocks + block) * 2 * d;
      for (int64_t c = 0; c < d; ++c) {
        const auto k = static_cast<size_t>(c);
        const double delta = static_cast<double>(p[c]) - m[k];
        m[k] += delta * share;
        squares[k] += static_cast<double>(p[d + c]) + delta * delta * total * share;
      }
      total += n;
    }
    for (int64_t c = 0; c < d; ++c) {
      const auto k = static_cast<size_t>(c);
      mean[static_cast<size_t>(h * d) + k] = static_cast<C>(m[k]);
      var[static_cast<size_t>(h * d) + k] = total > 0 ? static_cast<C>(squares[k] / total) : C(1);
    }
  });
}

/// running = (1 - momentum)·running + momentum·now. Both products are rounded before they are
/// added: the compiler may not fuse them.
template <class C>
void follow(const Tensor& running, const std::vector<C>& now, double momentum) {
  if (!running.defined()) return;
  const C keep = static_cast<C>(1.0 - momentum), take = static_cast<C>(momentum);
  std::vector<C> values = values_of<C>(running);
  for (size_t i = 0; i < values.size(); ++i)
    values[i] = math::fma(values[i], keep, C(0)) + math::fma(now[i], take, C(0));
  store(values, running);
}

/// (H, d) factors of preSBN: z = (x - mean)·scale; the scale is 0 where var and eps are.
template <class C>
struct Standard {
  std::vector<C> mean, scale;
  void set_scale(const std::vector<C>& var, double eps) {
    for (C v : var) {
      const C variance = v + static_cast<C>(eps);
      scale.push_back(variance == C(0) ? C(0) : C(1) / std::sqrt(variance));
    }
  }
};

/// z of one row, and 1/|z|, or 0 where y is 0. Without mean and scale (`row` mode) z is the centred
/// row itself: y = z/|z| takes a factor of the whole row out again.
template <class T, class C>
C standardise(const T* x, const C* mean, const C* scale, C eps, int64_t d, C* z) {
  C squares = 0, smallest = static_cast<C>(kSmallestNorm);
  if (mean) {
#pragma omp simd reduction(+ : squares)
    for (int64_t c = 0; c < d; ++c) {
      z[c] = (static_cast<C>(x[c]) - mean[c]) * scale[c];
      squares += z[c] * z[c];
    }
  } else {
    const C centre = row_mean<C>(x, d);
    C rest = 0;
#pragma omp simd reduction(+ : rest)
    for (int64_t c = 0; c < d; ++c) {
      z[c] = static_cast<C>(x[c]) - centre;
      rest += z[c];
    }
    rest /= static_cast<C>(d);  // what rounding took from the centre
#pragma omp simd reduction(+ : squares)
    for (int64_t c = 0; c < d; ++c) {
      z[c] -= rest;
      squares += z[c] * z[c];
    }
    smallest *= std::sqrt(squares / static_cast<C>(d) + eps);
  }
  const C length = std::sqrt(squares);
  // Written so that a NaN row stays NaN.
  return length <= smallest ? C(0) : C(1) / length;
}

/// Gradient at z of y = z/|z| with y's gradient g: dz = (g - y (y·g))/|z|, 0 for a zero row.
template <class T, class C>
void unnormalise(const C* z, C inverse, const T* g, int64_t d, C* dz) {
  if (inverse == C(0)) {
    std::fill(dz, dz + d, C(0));
    return;
  }
  C dot = 0;
#pragma omp simd reduction(+ : dot)
  for (int64_t c = 0; c < d; ++c) dot += z[c] * static_cast<C>(g[c]);
  dot = dot * inverse * inverse;  // inverse² may leave the range
#pragma omp simd
  for (int64_t c = 0; c < d; ++c) dz[c] = (static_cast<C>(g[c]) - z[c] * dot) * inverse;
}

}  // namespace

void pre_sbn_forward(const PreSbnForward& call) {
  dispatch_floating(call.x->dtype(), "pre_sbn_forward", [&]<class T>() {
    using C = compute_t<T>;
    const Rows rows(call.x, call.valid);
    const Heads<T> from(call.x), to(call.y);
    const int64_t d = rows.d;
    Standard<C> standard;
    if (call.statistics == SbnStatistics::batch) {
      std::vector<C> variance(static_cast<size_t>(rows.heads * d));
      standard.mean.resize(variance.size());
      batch_moments(from, rows, standard.mean, variance);
      store(standard.mean, call.mean);
      store(variance, call.var);
      follow(call.running_mean, standard.mean, call.momentum);
      follow(call.running_var, variance, call.momentum);
      standard.set_scale(variance, call.eps);
    } else if (call.statistics == SbnStatistics::fixed) {
      standard.mean = values_of<C>(call.mean);
      standard.set_scale(values_of<C>(call.var), call.eps);
    }
    const bool by_row = call.statistics == SbnStatistics::row;
    rows.for_blocks([&](int64_t h, int64_t, int64_t begin, int64_t end) {
      std::vector<C> z(static_cast<size_t>(d));
      const C* m = by_row ? nullptr : standard.mean.data() + h * d;
      const C* scale = by_row ? nullptr : standard.scale.data() + h * d;
      for (int64_t i = begin; i < end; ++i) {
        T* out = to.row(i, h);
        C inverse = 0;
        if (rows.valid(i)) {
          inverse = standardise(from.row(i, h), m, scale, static_cast<C>(call.eps), d, z.data());
        } else {
          std::fill(z.begin(), z.end(), C(0));
        }
        const C* values = z.data();
#pragma omp simd
        for (int64_t c = 0; c < d; ++c) out[c] = static_cast<T>(values[c] * inverse);
      }
    });
  });
}

// Over n valid positions (batch), with z the standardised x: dx = scale (dz - mean(dz) -
// z mean(dz z)); fixed statistics leave dx = scale dz; over the d channels of a row (row), with z
// the centred x: dx = dz - mean(dz), since dz is orthogonal to z.
void pre_sbn_backward(const PreSbnBackward& call) {
  dispatch_floating(call.x->dtype(), "pre_sbn_backward", [&]<class T>() {
    using C = compute_t<T>;
    const Rows rows(call.x, call.valid);
    const Heads<T> from(call.x), gradient(call.grad), to(call.dx);
    const int64_t d = rows.d;
    const bool by_row = call.statistics == SbnStatistics::row;
    const auto size = static_cast<size_t>(rows.heads * d);
    Standard<C> standard;
    // (H, d): mean(dz) and mean(dz z) over the batch; 0 unless statistics are the batch's.
    std::vector<C> mean_dz(size), mean_dz_z(size);
    if (!by_row) {
      standard.mean = values_of<C>(call.mean);
      standard.set_scale(values_of<C>(call.var), call.eps);
    }
    if (call.statistics == SbnStatistics::batch) {
      std::vector<C> partial(static_cast<size_t>(rows.blocks * 2) * size);
      rows.for_blocks([&](int64_t h, int64_t block, int64_t begin, int64_t end) {
        std::vector<C> buffer(static_cast<size_t>(2 * d));
        C* z = buffer.data();
        C* dz = z + d;
        C* sums = partial.data() + (h * rows.blocks + block) * 2 * d;
        C* dots = sums + d;
        for (int64_t i = begin; i < end; ++i) {
          if (!rows.valid(i)) continue;
          const C inverse =
              standardise(from.row(i, h), standard.mean.data() + h * d,
                          standard.scale.data() + h * d, static_cast<C>(call.eps), d, z);
          unnormalise(z, inverse, gradient.row(i, h), d, dz);
#pragma omp simd
          for (int64_t c = 0; c < d; ++c) {
            sums[c] += dz[c];
            dots[c] += dz[c] * z[c];
          }
        }
      });
      int64_t count = 0;
      for (int64_t block = 0; block < rows.blocks; ++block) count += rows.count(block);
      const double share = count > 0 ? 1.0 / static_cast<double>(count) : 0.0;
      parallel_tasks(rows.heads, [&](int64_t h) {
        std::vector<double> sums(static_cast<size_t>(d)), dots(static_cast<size_t>(d));
        merge(partial.data() + h * rows.blocks * 2 * d, rows.blocks, d, sums, dots);
        for (int64_t c = 0; c < d; ++c) {
          const auto k = static_cast<size_t>(c);
          mean_dz[static_cast<size_t>(h * d) + k] = static_cast<C>(sums[k] * share);
          mean_dz_z[static_cast<size_t>(h * d) + k] = static_cast<C>(dots[k] * share);
        }
      });
    }
    rows.for_blocks([&](int64_t h, int64_t, int64_t begin, int64_t end) {
      std::vector<C> buffer(static_cast<size_t>(2 * d));
      C* z = buffer.data();
      C* dz = z + d;
      const C* m = by_row ? nullptr : standard.mean.data() + h * d;
      const C* scale = by_row ? nullptr : standard.scale.data() + h * d;
      const C* a = mean_dz.data() + h * d;
      const C* b = mean_dz_z.data() + h * d;
      for (int64_t i = begin; i < end; ++i) {
        T* out = to.row(i, h);
        if (!rows.valid(i)) {
          std::fill(out, out + d, T(0));
          continue;
        }
        const C inverse = standardise(from.row(i, h), m, scale, static_cast<C>(call.eps), d, z);
        unnormalise(z, inverse, gradient.row(i, h), d, dz);
        if (by_row) {
          C sum = 0;
#pragma omp simd reduction(+ : sum)
          for (int64_t c = 0; c < d; ++c) sum += dz[c];
          sum /= static_cast<C>(d);
#pragma omp simd
          for (int64_t c = 0; c < d; ++c) out[c] = static_cast<T>(dz[c] - sum);
        } else {
#pragma omp simd
          for (int64_t c = 0; c < d; ++c) {
            out[c] = static_cast<T>(scale[c] * (dz[c] - a[c] - z[c] * b[c]));
          }
        }
      }
    });
  });
}

}  // namespace macgrad::cpu
