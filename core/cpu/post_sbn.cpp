// postSBN of ppSBN (Macformer, arXiv 2408.11656, Algorithm 1; settled form in nn/README.md):
// y = s·(s² + eps²)^((beta-1)/2) with s = gamma·x, a signed power whose slope at 0 stays finite.
// The gradients of gamma and beta are sums over all rows, taken by blocks (sbn_blocks.h).
//
// Shape letters: d head dimension, R rows.
#include <vector>

#include "macgrad/core/cpu/sbn_blocks.h"
#include "macgrad/core/vector_math.h"

namespace macgrad::cpu {
namespace {

using namespace sbn;

/// A tensor (…, d) as rows; leading dimensions with any strides.
template <class T>
class LeadingRows {
 public:
  explicit LeadingRows(const Tensor& x) : data_(x.data<T>()) {
    for (int i = 0; i + 1 < x.rank(); ++i) {
      if (x.size(i) == 1) continue;
      if (!extents_.empty() && strides_.back() == x.stride(i) * x.size(i)) {
        extents_.back() *= x.size(i);
        strides_.back() = x.stride(i);
      } else {
        extents_.push_back(x.size(i));
        strides_.push_back(x.stride(i));
      }
    }
  }
  T* row(int64_t index) const {
    int64_t offset = 0;
    for (size_t i = extents_.size(); i-- > 1;) {
      offset += index % extents_[i] * strides_[i];
      index /= extents_[i];
    }
    if (!extents_.empty()) offset += index * strides_[0];
    return data_ + offset;
  }

 private:
  T* data_;
  std::vector<int64_t> extents_, strides_;
};

/// gamma or beta of every channel, whether given as one or as d values.
template <class C>
std::vector<C> per_channel(const Tensor& t, int64_t d) {
  std::vector<C> values = values_of<C>(t);
  if (values.size() == 1) values.assign(static_cast<size_t>(d), C(values[0]));
  return values;
}

}  // namespace

void post_sbn_forward(In x, In gamma, In beta, double eps, Out y) {
  dispatch_floating(x->dtype(), "post_sbn_forward", [&]<class T>() {
    using C = compute_t<T>;
    const int64_t d = x->size(-1);
    if (x->numel() == 0) return;
    const std::vector<C> gammas = per_channel<C>(gamma, d), betas = per_channel<C>(beta, d);
    const C* g = gammas.data();
    const C* b = betas.data();
    const C small = static_cast<C>(eps * eps);
    const LeadingRows<T> from(x), to(y);
    const int64_t rows = x->numel() / d;
    parallel_blocks(rows, kRowBlock * task_grain(d), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const T* in = from.row(i);
        T* out = to.row(i);
#pragma omp simd
        for (int64_t c = 0; c < d; ++c) {
          const C s = g[c] * static_cast<C>(in[c]);
          const C half_log = C(0.5) * math::log(s * s + small);
          out[c] = static_cast<T>(s * math::exp((b[c] - C(1)) * half_log));
        }
      }
    });
  });
}

// With u = s² + eps², p = u^((beta-1)/2): dy/ds = p (1 + (beta-1) s²/u), dy/dbeta = y log(u)/2.
void post_sbn_backward(const PostSbnBackward& call) {
  dispatch_floating(call.x->dtype(), "post_sbn_backward", [&]<class T>() {
    using C = compute_t<T>;
    const int64_t d = call.x->size(-1);
    const std::vector<C> gammas = per_channel<C>(call.gamma, d),
                         betas = per_channel<C>(call.beta, d);
    const C* g = gammas.data();
    const C* b = betas.data();
    const C small = static_cast<C>(call.eps * call.eps);
    const LeadingRows<T> from(call.x), gradient(call.grad), to(call.dx);
    const int64_t rows = d > 0 ? call.x->numel() / d : 0;
    const int64_t blocks = (rows + kRowBlock - 1) / kRowBlock;
    // (blocks, 2, d): gradients of gamma and of beta.
    std::vector<C> partial(static_cast<size_t>(blocks * 2 * d));
    parallel_blocks(blocks, task_grain(d), [&](int64_t first, int64_t last) {
      for (int64_t block = first; block < last; ++block) {
        C* dg = partial.data() + block * 2 * d;
        C* db = dg + d;
        const int64_t end = std::min(rows, (block + 1) * kRowBlock);
        for (int64_t i = block * kRowBlock; i < end; ++i) {
          const T* in = from.row(i);
          const T* go = gradient.row(i);
          T* out = to.row(i);
#pragma omp simd
          for (int64_t c = 0; c < d; ++c) {
            const C v = static_cast<C>(in[c]);
            const C o = static_cast<C>(go[c]);
            const C s = g[c] * v;
            const C u = s * s + small;
            const C half_log = C(0.5) * math::log(u);
            const C p = math::exp((b[c] - C(1)) * half_log);
            const C ds = o * p * (C(1) + (b[c] - C(1)) * s * s / u);
            out[c] = static_cast<T>(ds * g[c]);
            dg[c] += ds * v;
            db[c] += o * s * p * half_log;
          }
        }
      }
    });
    std::vector<double> dg(static_cast<size_t>(d)), db(static_cast<size_t>(d));
    merge(partial.data(), blocks, d, dg, db);
    const auto finish = [](std::vector<double>& sums, const Tensor& out) {
      if (out.numel() == 1 && sums.size() != 1) {
        double total = 0;
        for (double v : sums) total += v;
        sums.assign(1, total);
      }
      store(sums, out);
    };
    finish(dg, call.dgamma);
    finish(db, call.dbeta);
  });
}

}  // namespace macgrad::cpu
