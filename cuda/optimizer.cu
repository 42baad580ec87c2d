// Adam (Kingma & Ba 2015), AdamW (Loshchilov & Hutter 2019) and the sum of squares over all tensors
// of a list in one launch a dtype (tensor_table.cuh; lists of more than some hundred tensors take
// another launch). Sums go in float64 in a fixed order: over the threads of a block, then over the
// blocks. Traffic of Adam: 4 reads and 3 writes an element, 16 bytes at a time.
#include <array>
#include <vector>

#include "cuda/backend.h"
#include "cuda/device_code.cuh"
#include "cuda/launch.h"
#include "cuda/pack.cuh"
#include "cuda/step_values.h"
#include "cuda/tensor_table.cuh"

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

enum AdamOperand { kParam, kGrad, kFirst, kSecond, kAdamOperands };

// What every element needs, from AdamArgs and the step.
template <class C>
struct AdamRates {
  C keep1, take1, keep2, take2, shrink, decay, grad_scale, rate, root, eps;
  int skip;
};

// Always on the device, so that eager and replayed steps give the same bits.
template <class C>
__device__ AdamRates<C> adam_rates(const AdamArgs& args, const StepValues* live) {
  double lr = args.lr, grad_scale = args.grad_scale;
  auto step = static_cast<double>(args.step);
  int skip = 0;
  if (live) {
    lr *= live->lr;
    grad_scale *= live->grad_scale;
    step = static_cast<double>(live->adam_step);
    skip = live->skip != 0;
  }
  const double correction1 = 1.0 - math::pow(args.beta1, step);
  const double correction2 = 1.0 - math::pow(args.beta2, step);
  return {static_cast<C>(args.beta1),
          static_cast<C>(1.0 - args.beta1),
          static_cast<C>(args.beta2),
          static_cast<C>(1.0 - args.beta2),
          static_cast<C>(args.decoupled ? 1.0 - lr * args.weight_decay : 1.0),
          static_cast<C>(args.decoupled ? 0.0 : args.weight_decay),
          static_cast<C>(grad_scale),
          static_cast<C>(lr / correction1),
          static_cast<C>(1.0 / math::sqrt(correction2)),
          static_cast<C>(args.eps),
          skip};
}

template <class T>
__device__ inline void adam_element(T& p, T g, T& m, T& v, const AdamRates<compute_t<T>>& a) {
  using C = compute_t<T>;
  const C old = static_cast<C>(p);
  const C grad = static_cast<C>(g) * a.grad_scale + a.decay * old;
  const C first = a.keep1 * static_cast<C>(m) + a.take1 * grad;
  const C second = a.keep2 * static_cast<C>(v) + a.take2 * grad * grad;
  m = static_cast<T>(first);
  v = static_cast<T>(second);
  p = static_cast<T>(old * a.shrink - a.rate * first / (math::sqrt(second) * a.root + a.eps));
}

template <class T, int bytes>
__global__ void adam_chunks(const MACGRAD_GRID_CONSTANT TensorTable<kAdamOperands, bytes> table,
                            AdamArgs args, const StepValues* live) {
  using C = compute_t<T>;
  constexpr int lanes = kPacked<T>;
  constexpr int64_t chunk = adam_chunk<T>;
  using Pack = Packed<T, lanes>;
  auto* shared = shared_memory<AdamRates<C>>();
  const int entry = table.find(blockIdx.x);
  const int64_t begin = (blockIdx.x - table.first[entry]) * chunk;
  const int64_t n = std::min(chunk, table.size[entry] - begin);
  T* const p = static_cast<T*>(table.at[kParam][entry]) + begin;
  const T* const g = static_cast<const T*>(table.at[kGrad][entry]) + begin;
  T* const m = static_cast<T*>(table.at[kFirst][entry]) + begin;
  T* const v = static_cast<T*>(table.at[kSecond][entry]) + begin;
  const bool packed = n == chunk && aligned_for(p, 16) && aligned_for(g, 16) &&
                      aligned_for(m, 16) && aligned_for(v, 16);
  // Loads are on their way while one thread works out the rates.
  Pack ps[kAdamPacks], gs[kAdamPacks], ms[kAdamPacks], vs[kAdamPacks];
  const auto thread = static_cast<int>(threadIdx.x);
  if (packed) {
#pragma unroll
    for (int i = 0; i < kAdamPacks; ++i) {
      const int at = thread + i * kThreads;
      ps[i] = reinterpret_cast<const Pack*>(p)[at];
      gs[i] = reinterpret_cast<const Pack*>(g)[at];
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
#pragma unroll
      for (int j = 0; j < lanes; ++j)
        adam_element(ps[i].v[j], gs[i].v[j], ms[i].v[j], vs[i].v[j], rates);
      reinterpret_cast<Pack*>(p)[at] = ps[i];
      reinterpret_cast<Pack*>(m)[at] = ms[i];
      reinterpret_cast<Pack*>(v)[at] = vs[i];
    }
  } else {
    for (int64_t i = thread; i < n; i += kThreads) adam_element(p[i], g[i], m[i], v[i], rates);
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

__global__ void clip_step(const double* total, double clip_norm, StepValues* live) {
  const double norm = math::sqrt(*total) * live->grad_scale;
  live->gradient_norm = norm;
  live->skip = norm - norm != 0.0;  // infinite or NaN
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

template <class T>
void adam_of(InOutList params, InList grads, InOutList first, InOutList second,
             const AdamArgs& args) {
  std::vector<Entry<kAdamOperands>> entries;
  for (size_t i = 0; i < params.list.size(); ++i) {
    const int64_t n = params.list[i].numel();
    if (n == 0 || params.list[i].dtype() != dtype_of<T>()) continue;
    entries.push_back(
        {{params.list[i].raw(), grads.list[i].raw(), first.list[i].raw(), second.list[i].raw()},
         n});
  }
  const StepValues* live = args.step == kLiveAdamStep ? live_step_values() : nullptr;
  for_tables<kAdamOperands>(
      entries, adam_chunk<T>,
      [&]<int bytes>(const TensorTable<kAdamOperands, bytes>& table, uint32_t blocks) {
        launch(adam_chunks<T, bytes>, {blocks, kThreads, sizeof(AdamRates<compute_t<T>>)}, table,
               args, live);
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

void adam(InOutList params, InList grads, InOutList first, InOutList second, const AdamArgs& args) {
  for (size_t i = 0; i < params.list.size(); ++i) {
    const DType dtype = params.list[i].dtype();
    dispatch_floating(dtype, "adam", [&]<class T>() {
      require(grads.list[i].dtype() == dtype && first.list[i].dtype() == dtype &&
                  second.list[i].dtype() == dtype,
              "[adam] parameter {} is {}, its gradient {}, its moments {} and {}; they must agree",
              i, name(dtype), name(grads.list[i].dtype()), name(first.list[i].dtype()),
              name(second.list[i].dtype()));
    });
  }
  adam_of<float>(params, grads, first, second, args);
  adam_of<double>(params, grads, first, second, args);
  adam_of<bfloat16>(params, grads, first, second, args);
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

void clip_live_gradients(const Tensor& total, double clip_norm) {
  launch(clip_step, {1, 1}, total.data<double>(), clip_norm,
         const_cast<StepValues*>(live_step_values()));
}

}  // namespace macgrad::cuda
