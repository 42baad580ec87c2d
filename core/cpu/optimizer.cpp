// Optimizer kernels over lists of tensors: Adam (Kingma & Ba 2015), AdamW (Loshchilov & Hutter
// 2019), and the sum of squares for gradient clipping. All tensors of a list are cut into one list
// of blocks for the threads, because a model has many small parameters.
#include <cmath>
#include <vector>

#include "core/cpu/parallel.h"
#include "core/kernels.h"

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

template <class T>
void adam_block(T* p, const T* g, T* m, T* v, int64_t n, const AdamArgs& args) {
  using C = compute_t<T>;
  const double correction1 = 1.0 - std::pow(args.beta1, static_cast<double>(args.step));
  const double correction2 = 1.0 - std::pow(args.beta2, static_cast<double>(args.step));
  const C keep1 = static_cast<C>(args.beta1), take1 = static_cast<C>(1.0 - args.beta1);
  const C keep2 = static_cast<C>(args.beta2), take2 = static_cast<C>(1.0 - args.beta2);
  const C shrink = static_cast<C>(args.decoupled ? 1.0 - args.lr * args.weight_decay : 1.0);
  const C decay = static_cast<C>(args.decoupled ? 0.0 : args.weight_decay);
  const C grad_scale = static_cast<C>(args.grad_scale);
  const C rate = static_cast<C>(args.lr / correction1);
  const C root = static_cast<C>(1.0 / std::sqrt(correction2));
  const C eps = static_cast<C>(args.eps);
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const C old = static_cast<C>(p[i]);
    const C grad = static_cast<C>(g[i]) * grad_scale + decay * old;
    const C first = keep1 * static_cast<C>(m[i]) + take1 * grad;
    const C second = keep2 * static_cast<C>(v[i]) + take2 * grad * grad;
    m[i] = static_cast<T>(first);
    v[i] = static_cast<T>(second);
    p[i] = static_cast<T>(old * shrink - rate * first / (math::sqrt(second) * root + eps));
  }
}

}  // namespace

void adam(InOutList params, InList grads, InOutList first, InOutList second, const AdamArgs& args) {
  const std::vector<Block> blocks = blocks_of(params.list);
  // Pointers are taken outside the threads: data<T>() throws on a mixture of dtypes.
  std::vector<void (*)(void*, const void*, void*, void*, const Block&, const AdamArgs&)> run;
  for (size_t i = 0; i < params.list.size(); ++i) {
    dispatch_floating(params.list[i].dtype(), "adam", [&]<class T>() {
      require(grads.list[i].dtype() == dtype_of<T>() && first.list[i].dtype() == dtype_of<T>() &&
                  second.list[i].dtype() == dtype_of<T>(),
              "[adam] parameter {} is {}, its gradient {}, its moments {} and {}; they must agree",
              i, name(dtype_of<T>()), name(grads.list[i].dtype()), name(first.list[i].dtype()),
              name(second.list[i].dtype()));
      run.push_back([](void* p, const void* g, void* m, void* v, const Block& b,
                       const AdamArgs& a) {
        adam_block(static_cast<T*>(p) + b.begin, static_cast<const T*>(g) + b.begin,
                   static_cast<T*>(m) + b.begin, static_cast<T*>(v) + b.begin, b.end - b.begin, a);
      });
    });
  }
  parallel_blocks(static_cast<int64_t>(blocks.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) {
      const Block& b = blocks[static_cast<size_t>(k)];
      run[b.tensor](params.list[b.tensor].raw(), grads.list[b.tensor].raw(),
                    first.list[b.tensor].raw(), second.list[b.tensor].raw(), b, args);
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
