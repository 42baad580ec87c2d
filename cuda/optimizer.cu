// Adam (Kingma & Ba 2015), AdamW (Loshchilov & Hutter 2019), SGD and the sum of squares over all
// tensors of a list in one launch a dtype (tensor_table.cuh; lists of more than some hundred
// tensors take another launch). Sums go in float64 in a fixed order: over the threads of a block,
// then over the blocks. Traffic of Adam: 4 reads and 3 writes an element, 16 bytes at a time; of a
// bfloat16 parameter with a float32 master 14 bytes read and as many written.
#include <array>
#include <limits>
#include <type_traits>
#include <vector>

#include "macgrad/core/kernels/optimizer.h"
#include "macgrad/core/optimizer_lists.h"
#include "macgrad/core/vector_math.h"
#include "macgrad/cuda/device_code.cuh"
#include "macgrad/cuda/launch.h"
#include "macgrad/cuda/pack.cuh"
#include "macgrad/cuda/step_values.h"
#include "macgrad/cuda/tensor_table.cuh"

namespace macgrad::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kAdamPacks = 2;  // packs of 16 bytes a thread has in flight, of each operand
constexpr int kSquarePacks = 4;
constexpr int kTotalThreads = 512;

template <class T>
constexpr int64_t adam_chunk = int64_t{kThreads} * kAdamPacks* kPacked<T>;
template <class T>
constexpr int64_t square_chunk = int64_t{kThreads} * kSquarePacks* kPacked<T>;

// kParam is there where it is not the master itself.
enum AdamOperand { kMaster, kGrad, kFirst, kSecond, kParam, kSgdParam = kSecond };
template <class P, class W>
constexpr int adam_operands = std::is_same_v<P, W> ? kParam : kParam + 1;

// What every element needs, from AdamArgs and the step.
template <class C>
struct AdamRates {
  C keep1, take1, keep2, take2, shrink, decay, grad_scale, limit, rate, root, eps, lower;
  int skip;
};

// Always on the device, so that eager and replayed steps give the same bits.
template <class C>
__device__ AdamRates<C> adam_rates(const AdamArgs& args, const StepValues* live) {
  double lr = args.lr, grad_scale = args.grad_scale, beta1 = args.beta1;
  auto step = static_cast<double>(args.step);
  int skip = 0;
  if (live) {
    lr *= live->lr;
    grad_scale *= live->grad_scale;
    beta1 = live->momentum;
    step = static_cast<double>(live->update);
    skip = live->skip != 0;
  }
  const double correction1 = 1.0 - math::pow(beta1, step);
  const double correction2 = 1.0 - math::pow(args.beta2, step);
  return {static_cast<C>(beta1),
          static_cast<C>(1.0 - beta1),
          static_cast<C>(args.beta2),
          static_cast<C>(1.0 - args.beta2),
          static_cast<C>(args.decoupled ? 1.0 - lr * args.weight_decay : 1.0),
          static_cast<C>(args.decoupled ? 0.0 : args.weight_decay),
          static_cast<C>(grad_scale),
          static_cast<C>(args.clip_value),
          static_cast<C>(lr / correction1),
          static_cast<C>(1.0 / math::sqrt(correction2)),
          static_cast<C>(args.eps),
          static_cast<C>(args.lower_bound),
          skip};
}

// Returns the new master, in the type of the arithmetic. Each fused product is spelled out: the
// packed and the plain path give the same bits.
template <class P, class W>
__device__ inline compute_t<W> adam_element(W& master, P g, W& m, W& v,
                                            const AdamRates<compute_t<W>>& a) {
  using C = compute_t<W>;
  const C old = static_cast<C>(master);
  const C grad = math::fma(a.decay, old, clipped(static_cast<C>(g) * a.grad_scale, a.limit));
  const C first = math::fma(a.keep1, static_cast<C>(m), a.take1 * grad);
  const C second = math::fma(a.keep2, static_cast<C>(v), a.take2 * grad * grad);
  m = static_cast<W>(first);
  v = static_cast<W>(second);
  const C divisor = math::fma(math::sqrt(second), a.root, a.eps);
  C next = math::fma(old, a.shrink, -(a.rate * first / divisor));
  next = next < a.lower ? a.lower : next;  // NaN stays NaN
  master = static_cast<W>(next);
  return next;
}

// Masters and moments are stored as W, gradients and (rounded masters) parameters as P.
template <class P, class W, int bytes>
__global__ void __launch_bounds__(kThreads)
    adam_chunks(const MACGRAD_GRID_CONSTANT TensorTable<adam_operands<P, W>, bytes> table,
                AdamArgs args, const StepValues* live) {
  using C = compute_t<W>;
  constexpr bool rounds = !std::is_same_v<P, W>;
  constexpr int lanes = kPacked<W>;
  constexpr int64_t chunk = adam_chunk<W>;
  using Pack = Packed<W, lanes>;
  using NarrowPack = Packed<P, lanes>;
  auto* shared = shared_memory<AdamRates<C>>();
  const int entry = table.find(blockIdx.x);
  const int64_t begin = (blockIdx.x - table.first[entry]) * chunk;
  const int64_t n = std::min(chunk, table.size[entry] - begin);
  W* const w = static_cast<W*>(table.at[kMaster][entry]) + begin;
  const P* const g = static_cast<const P*>(table.at[kGrad][entry]) + begin;
  W* const m = static_cast<W*>(table.at[kFirst][entry]) + begin;
  W* const v = static_cast<W*>(table.at[kSecond][entry]) + begin;
  P* p = nullptr;
  if constexpr (rounds) p = static_cast<P*>(table.at[kParam][entry]) + begin;
  const bool packed = n == chunk && aligned_for(w, sizeof(Pack)) &&
                      aligned_for(g, sizeof(NarrowPack)) && aligned_for(m, sizeof(Pack)) &&
                      aligned_for(v, sizeof(Pack)) && aligned_for(p, sizeof(NarrowPack));
  // Loads are on their way while one thread works out the rates.
  Pack ws[kAdamPacks], ms[kAdamPacks], vs[kAdamPacks];
  NarrowPack gs[kAdamPacks];
  const auto thread = static_cast<int>(threadIdx.x);
  if (packed) {
#pragma unroll
    for (int i = 0; i < kAdamPacks; ++i) {
      const int at = thread + i * kThreads;
      ws[i] = reinterpret_cast<const Pack*>(w)[at];
      gs[i] = reinterpret_cast<const NarrowPack*>(g)[at];
      ms[i] = reinterpret_cast<const Pack*>(m)[at];
      vs[i] = reinterpret_cast<const Pack*>(v)[at];
    }
  }
  if (thread == 0) *shared = adam_rates<C>(args, live);
  __syncthreads();
  const AdamRates<C> rates = *shared;
  if (rates.skip) return;
  if (packed) {
#pragma unroll
    for (int i = 0; i < kAdamPacks; ++i) {
      const int at = thread + i * kThreads;
      NarrowPack rounded;
#pragma unroll
      for (int j = 0; j < lanes; ++j)
        rounded.v[j] =
            static_cast<P>(adam_element(ws[i].v[j], gs[i].v[j], ms[i].v[j], vs[i].v[j], rates));
      reinterpret_cast<Pack*>(w)[at] = ws[i];
      reinterpret_cast<Pack*>(m)[at] = ms[i];
      reinterpret_cast<Pack*>(v)[at] = vs[i];
      if constexpr (rounds) reinterpret_cast<NarrowPack*>(p)[at] = rounded;
    }
  } else {
    for (int64_t i = thread; i < n; i += kThreads) {
      const C next = adam_element(w[i], g[i], m[i], v[i], rates);
      if constexpr (rounds) p[i] = static_cast<P>(next);
    }
  }
}

template <class P, class W>
constexpr int sgd_operands = std::is_same_v<P, W> ? kSgdParam : kSgdParam + 1;

// As adam_chunks, with one moment, or none where its address is null. The kernel waits for memory
// alone, so elements are loaded one by one: neighbouring threads read neighbouring elements.
template <class P, class W, int bytes>
__global__ void __launch_bounds__(kThreads)
    sgd_chunks(const MACGRAD_GRID_CONSTANT TensorTable<sgd_operands<P, W>, bytes> table,
               SgdArgs args, const StepValues* live) {
  using C = compute_t<W>;
  constexpr bool rounds = !std::is_same_v<P, W>;
  if (live) {
    if (live->skip) return;
    args.lr *= live->lr;
    args.grad_scale *= live->grad_scale;
    args.momentum = live->momentum;
  }
  const C momentum = static_cast<C>(args.momentum), decay = static_cast<C>(args.weight_decay);
  const C grad_scale = static_cast<C>(args.grad_scale), limit = static_cast<C>(args.clip_value);
  const C lr = static_cast<C>(args.lr), lower = static_cast<C>(args.lower_bound);
  const int entry = table.find(blockIdx.x);
  const int64_t begin = (blockIdx.x - table.first[entry]) * adam_chunk<W>;
  const int64_t end = std::min(begin + adam_chunk<W>, table.size[entry]);
  W* const w = static_cast<W*>(table.at[kMaster][entry]);
  const P* const g = static_cast<const P*>(table.at[kGrad][entry]);
  W* const m = static_cast<W*>(table.at[kFirst][entry]);
  for (int64_t i = begin + static_cast<int64_t>(threadIdx.x); i < end; i += kThreads) {
    const C old = static_cast<C>(w[i]);
    C move = math::fma(decay, old, clipped(static_cast<C>(g[i]) * grad_scale, limit));
    if (m) {
      move = math::fma(momentum, static_cast<C>(m[i]), move);
      m[i] = static_cast<W>(move);
    }
    C next = math::fma(-lr, move, old);
    next = next < lower ? lower : next;  // NaN stays NaN
    w[i] = static_cast<W>(next);
    if constexpr (rounds) static_cast<P*>(table.at[kSgdParam][entry])[i] = static_cast<P>(next);
  }
}

template <class T, int bytes>
__global__ void square_chunks(const MACGRAD_GRID_CONSTANT TensorTable<1, bytes> table,
                              double* partial) {
  constexpr int lanes = kPacked<T>;
  constexpr int64_t chunk = square_chunk<T>;
  using Pack = Packed<T, lanes>;
  auto* shared = shared_memory<double>();
  const int entry = table.find(blockIdx.x);
  const int64_t begin = (blockIdx.x - table.first[entry]) * chunk;
  const int64_t n = std::min(chunk, table.size[entry] - begin);
  const T* const x = static_cast<const T*>(table.at[0][entry]) + begin;
  const int64_t packs = aligned_for(x, 16) ? n / lanes : 0;
  double sum = 0;
#pragma unroll
  for (int i = 0; i < kSquarePacks; ++i) {
    const int64_t at = static_cast<int64_t>(threadIdx.x) + i * kThreads;
    if (at < packs) {
      const Pack in = reinterpret_cast<const Pack*>(x)[at];
#pragma unroll
      for (int j = 0; j < lanes; ++j) {
        const auto value = static_cast<double>(load(&in.v[j]));
        sum += value * value;
      }
    }
  }
  for (int64_t i = packs * lanes + static_cast<int64_t>(threadIdx.x); i < n; i += kThreads) {
    const auto value = static_cast<double>(load(x + i));
    sum += value * value;
  }
  sum = block_sum<kThreads>(sum, shared);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

__global__ void add_partials(const double* partial, int64_t n, double* total) {
  double sum = 0;
#pragma unroll 4
  for (int64_t i = threadIdx.x; i < n; i += kTotalThreads) sum += partial[i];
  sum = block_sum<kTotalThreads>(sum, shared_memory<double>());
  if (threadIdx.x == 0) *total = sum;
}

// Not x - x: fused with a product that makes x, it leaves the product's rounding error.
__device__ inline bool is_finite(double x) {
  return math::fabs(x) <= std::numeric_limits<double>::max();
}

template <class T>
__global__ void clip_step(const double* total, double clip_norm, const T* loss, StepValues* live) {
  double norm = math::sqrt(*total) * live->grad_scale;
  if (loss && !is_finite(static_cast<double>(load(loss))))
    norm = std::numeric_limits<double>::quiet_NaN();
  live->gradient_norm = norm;
  live->skip = !is_finite(norm);
  if (clip_norm > 0.0 && norm > clip_norm) live->grad_scale *= clip_norm / norm;
}

// Calls run(table, blocks) on tables that cover the tensors of one dtype: the small kind where it
// is large enough, because arguments cost a little time.
template <int operands, class Entries, class Run>
void for_tables(const Entries& entries, int64_t chunk, Run&& run) {
  const auto fill = [&]<int bytes>() {
    using Table = TensorTable<operands, bytes>;
    for (size_t begin = 0; begin < entries.size(); begin += Table::kCapacity) {
      Table table{};
      uint32_t blocks = 0;
      const size_t end = std::min<size_t>(entries.size(), begin + Table::kCapacity);
      for (size_t i = begin; i < end; ++i)
        blocks = add_entry(table, entries[i].at, entries[i].size, chunk, blocks);
      run(table, blocks);
    }
  };
  if (entries.size() <= TensorTable<operands, kSmallTable>::kCapacity || !large_tables()) {
    fill.template operator()<kSmallTable>();
  } else {
    fill.template operator()<kLargeTable>();
  }
}

template <int operands>
struct Entry {
  void* at[operands];
  int64_t size;
};

// The parameters of dtype P that have elements; fill(e, i) sets the operands of parameter i.
template <class P, int operands, class Fill>
std::vector<Entry<operands>> entries_of(InOutList params, Fill&& fill) {
  std::vector<Entry<operands>> entries;
  for (size_t i = 0; i < params.list.size(); ++i) {
    const int64_t n = params.list[i].numel();
    if (n == 0 || params.list[i].dtype() != dtype_of<P>()) continue;
    Entry<operands> e{{}, n};
    fill(e, i);
    entries.push_back(e);
  }
  return entries;
}

template <class P, class W>
void adam_of(InOutList params, InOutList masters, InList grads, InOutList first, InOutList second,
             const AdamArgs& args) {
  constexpr int operands = adam_operands<P, W>;
  const auto entries = entries_of<P, operands>(params, [&](Entry<operands>& e, size_t i) {
    e.at[kMaster] = masters.list[i].raw();
    e.at[kGrad] = grads.list[i].raw();
    e.at[kFirst] = first.list[i].raw();
    e.at[kSecond] = second.list[i].raw();
    if constexpr (operands > kParam) e.at[kParam] = params.list[i].raw();
  });
  const StepValues* live = args.step == kLiveUpdate ? live_step_values() : nullptr;
  for_tables<operands>(entries, adam_chunk<W>,
                       [&]<int bytes>(const TensorTable<operands, bytes>& table, uint32_t blocks) {
                         launch(adam_chunks<P, W, bytes>,
                                {blocks, kThreads, sizeof(AdamRates<compute_t<W>>)}, table, args,
                                live);
                       });
}

template <class P, class W>
void sgd_of(InOutList params, InOutList masters, InList grads, InOutList moments,
            const SgdArgs& args) {
  constexpr int operands = sgd_operands<P, W>;
  const auto entries = entries_of<P, operands>(params, [&](Entry<operands>& e, size_t i) {
    e.at[kMaster] = masters.list[i].raw();
    e.at[kGrad] = grads.list[i].raw();
    e.at[kFirst] = moments.list.empty() ? nullptr : moments.list[i].raw();
    if constexpr (operands > kSgdParam) e.at[kSgdParam] = params.list[i].raw();
  });
  const StepValues* live = args.step == kLiveUpdate ? live_step_values() : nullptr;
  for_tables<operands>(entries, adam_chunk<W>,
                       [&]<int bytes>(const TensorTable<operands, bytes>& table, uint32_t blocks) {
                         launch(sgd_chunks<P, W, bytes>, {blocks, kThreads}, table, args, live);
                       });
}

template <class T>
std::vector<Entry<1>> entries_of(std::span<const Tensor> tensors) {
  std::vector<Entry<1>> entries;
  for (const Tensor& t : tensors)
    if (t.numel() > 0 && t.dtype() == dtype_of<T>()) entries.push_back({{t.raw()}, t.numel()});
  return entries;
}

template <class T>
void square_of(std::span<const Tensor> tensors, double*& partial) {
  for_tables<1>(entries_of<T>(tensors), square_chunk<T>,
                [&]<int bytes>(const TensorTable<1, bytes>& table, uint32_t blocks) {
                  launch(square_chunks<T, bytes>,
                         {blocks, kThreads, sizeof(double) * kThreads / kWarp}, table, partial);
                  partial += blocks;
                });
}

}  // namespace

void adam(InOutList params, InOutList masters, InList grads, InOutList first, InOutList second,
          const AdamArgs& args) {
  check_optimizer_lists("adam", params, masters, grads, {first, second});
  if (!masters.list.empty())
    return adam_of<bfloat16, float>(params, masters, grads, first, second, args);
  adam_of<float, float>(params, params, grads, first, second, args);
  adam_of<double, double>(params, params, grads, first, second, args);
  adam_of<bfloat16, bfloat16>(params, params, grads, first, second, args);
}

void sgd(InOutList params, InOutList masters, InList grads, InOutList moments,
         const SgdArgs& args) {
  check_optimizer_lists("sgd", params, masters, grads, {moments});
  if (!masters.list.empty()) return sgd_of<bfloat16, float>(params, masters, grads, moments, args);
  sgd_of<float, float>(params, params, grads, moments, args);
  sgd_of<double, double>(params, params, grads, moments, args);
  sgd_of<bfloat16, bfloat16>(params, params, grads, moments, args);
}

void sum_of_squares(InList tensors, Out total) {
  int64_t blocks = 0;
  for (const Tensor& t : tensors.list) {
    require(is_floating(t.dtype()), "[sum_of_squares] needs floating tensors, got {}",
            name(t.dtype()));
    dispatch_floating(t.dtype(), "sum_of_squares", [&]<class T>() {
      blocks += (t.numel() + square_chunk<T> - 1) / square_chunk<T>;
    });
  }
  const Tensor partials = Tensor::empty({blocks}, DType::float64, total->device());
  double* next = partials.data<double>();
  square_of<float>(tensors.list, next);
  square_of<double>(tensors.list, next);
  square_of<bfloat16>(tensors.list, next);
  launch(add_partials, {1, kTotalThreads, sizeof(double) * kTotalThreads / kWarp},
         partials.data<double>(), blocks, total->data<double>());
}

void clip_live_gradients(const Tensor& total, double clip_norm, const Tensor& loss) {
  dispatch_floating(loss.defined() ? loss.dtype() : DType::float64, "clip", [&]<class T>() {
    launch(clip_step<T>, {1, 1}, total.data<double>(), clip_norm,
           loss.defined() ? static_cast<const T*>(loss.data<T>()) : nullptr,
           const_cast<StepValues*>(live_step_values()));
  });
}

}  // namespace macgrad::cuda
