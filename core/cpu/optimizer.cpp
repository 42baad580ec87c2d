// Optimizer kernels over lists of tensors: Adam (Kingma & Ba 2015), AdamW (Loshchilov & Hutter
// 2019), and the sum of squares for gradient clipping. All tensors of a list are cut into one list
// of blocks for the threads, because a model has many small parameters.
#include <cmath>
#include <type_traits>
#include <vector>

#include "macgrad/core/adam_lists.h"
#include "macgrad/core/cpu/parallel.h"
#include "macgrad/core/kernels.h"

namespace macgrad::cpu {
namespace {

struct Block {
  size_t tensor;
  int64_t begin, end;
};

std::vector<Block> blocks_of(std::span<const Tensor> tensors) {
  std::vector<Block> blocks;
  for (size_t i = 0; i < tensors.size(); ++i) {
    const int64_t n = tensors[i].numel();
    for (int64_t begin = 0; begin < n; begin += kElementGrain) {
      blocks.push_back({i, begin, std::min(n, begin + kElementGrain)});
    }
  }
  return blocks;
}

// Stored as W: master and moments. `p` is the master rounded to P, or where the parameter is its
// own master, the master itself.
template <class P, class W>
void adam_block(P* p, W* master, const P* g, W* m, W* v, int64_t n, const AdamArgs& args) {
  using C = compute_t<W>;
  const double correction1 = 1.0 - std::pow(args.beta1, static_cast<double>(args.step));
  const double correction2 = 1.0 - std::pow(args.beta2, static_cast<double>(args.step));
  const C keep1 = static_cast<C>(args.beta1), take1 = static_cast<C>(1.0 - args.beta1);
  const C keep2 = static_cast<C>(args.beta2), take2 = static_cast<C>(1.0 - args.beta2);
  const C shrink = static_cast<C>(args.decoupled ? 1.0 - args.lr * args.weight_decay : 1.0);
  const C decay = static_cast<C>(args.decoupled ? 0.0 : args.weight_decay);
  const C grad_scale = static_cast<C>(args.grad_scale);
  const C rate = static_cast<C>(args.lr / correction1);
  const C root = static_cast<C>(1.0 / std::sqrt(correction2));
  const C eps = static_cast<C>(args.eps), lower = static_cast<C>(args.lower_bound);
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const C old = static_cast<C>(master[i]);
    const C grad = static_cast<C>(g[i]) * grad_scale + decay * old;
    const C first = keep1 * static_cast<C>(m[i]) + take1 * grad;
    const C second = keep2 * static_cast<C>(v[i]) + take2 * grad * grad;
    C next = old * shrink - rate * first / (math::sqrt(second) * root + eps);
    next = next < lower ? lower : next;  // NaN stays NaN
    m[i] = static_cast<W>(first);
    v[i] = static_cast<W>(second);
    if constexpr (!std::is_same_v<P, W>) p[i] = static_cast<P>(next);
    master[i] = static_cast<W>(next);
  }
}

}  // namespace

void adam(InOutList params, InOutList masters, InList grads, InOutList first, InOutList second,
          const AdamArgs& args) {
  check_adam_lists(params, masters, grads, first, second);
  const std::vector<Block> blocks = blocks_of(params.list);
  const std::span<const Tensor> kept = masters.list.empty() ? params.list : masters.list;
  const auto run = [&]<class P, class W>(const Block& b) {
    const size_t i = b.tensor;
    const P* g = grads.list[i].data<P>();
    adam_block(params.list[i].data<P>() + b.begin, kept[i].data<W>() + b.begin, g + b.begin,
               first.list[i].data<W>() + b.begin, second.list[i].data<W>() + b.begin,
               b.end - b.begin, args);
  };
  parallel_blocks(static_cast<int64_t>(blocks.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) {
      const Block& b = blocks[static_cast<size_t>(k)];
      if (!masters.list.empty()) {
        run.template operator()<bfloat16, float>(b);
      } else {
        dispatch_floating(params.list[b.tensor].dtype(), "adam",
                          [&]<class T>() { run.template operator()<T, T>(b); });
      }
    }
  });
}

void sum_of_squares(InList tensors, Out total) {
  const std::vector<Block> blocks = blocks_of(tensors.list);
  for (const Tensor& t : tensors.list) {
    require(is_floating(t.dtype()), "[sum_of_squares] needs floating tensors, got {}",
            name(t.dtype()));
  }
  std::vector<double> partial(blocks.size());
  parallel_blocks(static_cast<int64_t>(blocks.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) {
      const Block& b = blocks[static_cast<size_t>(k)];
      const Tensor& t = tensors.list[b.tensor];
      dispatch_floating(t.dtype(), "sum_of_squares", [&]<class T>() {
        const T* x = t.data<T>() + b.begin;
        const int64_t n = b.end - b.begin;
        double sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t i = 0; i < n; ++i) {
          const double value = static_cast<double>(static_cast<compute_t<T>>(x[i]));
          sum += value * value;
        }
        partial[static_cast<size_t>(k)] = sum;
      });
    }
  });
  double sum = 0;
  for (double p : partial) sum += p;
  total->data<double>()[0] = sum;
}

}  // namespace macgrad::cpu
