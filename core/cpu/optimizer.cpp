// Optimizer kernels over lists of tensors: Adam (Kingma & Ba 2015), AdamW (Loshchilov & Hutter
// 2019), SGD with momentum, and the sum of squares for gradient clipping. All tensors of a list are
// cut into one list of blocks for the threads, because a model has many small parameters.
#include <cmath>
#include <type_traits>
#include <vector>

#include "macgrad/core/cpu/parallel.h"
#include "macgrad/core/kernels/optimizer.h"
#include "macgrad/core/optimizer_lists.h"
#include "macgrad/core/vector_math.h"

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
  const C limit = static_cast<C>(args.clip_value);
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const C old = static_cast<C>(master[i]);
    const C grad = clipped(static_cast<C>(g[i]) * grad_scale, limit) + decay * old;
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

// As adam_block; `m` is nullptr without momentum.
template <class P, class W>
void sgd_block(P* p, W* master, const P* g, W* m, int64_t n, const SgdArgs& args) {
  using C = compute_t<W>;
  const C momentum = static_cast<C>(args.momentum), decay = static_cast<C>(args.weight_decay);
  const C grad_scale = static_cast<C>(args.grad_scale), limit = static_cast<C>(args.clip_value);
  const C lr = static_cast<C>(args.lr), lower = static_cast<C>(args.lower_bound);
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const C old = static_cast<C>(master[i]);
    C move = clipped(static_cast<C>(g[i]) * grad_scale, limit) + decay * old;
    if (m) {
      move += momentum * static_cast<C>(m[i]);
      m[i] = static_cast<W>(move);
    }
    C next = old - lr * move;
    next = next < lower ? lower : next;  // NaN stays NaN
    if constexpr (!std::is_same_v<P, W>) p[i] = static_cast<P>(next);
    master[i] = static_cast<W>(next);
  }
}

// run<P, W>(block, parameters, masters) over the blocks of all parameters.
template <class Run>
void for_blocks(const char* op, InOutList params, InOutList masters, const Run& run) {
  const std::vector<Block> blocks = blocks_of(params.list);
  parallel_blocks(static_cast<int64_t>(blocks.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) {
      const Block& b = blocks[static_cast<size_t>(k)];
      const Tensor& param = params.list[b.tensor];
      if (!masters.list.empty()) {
        run(b, param.data<bfloat16>() + b.begin, masters.list[b.tensor].data<float>() + b.begin);
      } else {
        dispatch_floating(param.dtype(), op, [&]<class T>() {
          T* const p = param.data<T>() + b.begin;
          run(b, p, p);
        });
      }
    }
  });
}

}  // namespace

void adam(InOutList params, InOutList masters, InList grads, InOutList first, InOutList second,
          const AdamArgs& args) {
  check_optimizer_lists("adam", params, masters, grads, {first, second});
  for_blocks("adam", params, masters, [&]<class P, class W>(const Block& b, P* p, W* master) {
    const size_t i = b.tensor;
    adam_block(p, master, static_cast<const P*>(grads.list[i].data<P>()) + b.begin,
               first.list[i].data<W>() + b.begin, second.list[i].data<W>() + b.begin,
               b.end - b.begin, args);
  });
}

void sgd(InOutList params, InOutList masters, InList grads, InOutList moments,
         const SgdArgs& args) {
  check_optimizer_lists("sgd", params, masters, grads, {moments});
  for_blocks("sgd", params, masters, [&]<class P, class W>(const Block& b, P* p, W* master) {
    const size_t i = b.tensor;
    W* const m = moments.list.empty() ? nullptr : moments.list[i].data<W>() + b.begin;
    sgd_block(p, master, static_cast<const P*>(grads.list[i].data<P>()) + b.begin, m,
              b.end - b.begin, args);
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
