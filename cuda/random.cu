// Random tensors from Philox (core/generator.h), the bits of core/cpu/random.cpp: a thread makes
// one block of four numbers and the two or four elements that follow from it. In a captured step
// the step number comes from device memory (step_values.h).
#include <cmath>
#include <numbers>

#include "macgrad/core/kernels/random.h"
#include "macgrad/core/vector_math.h"
#include "macgrad/cuda/device_code.cuh"
#include "macgrad/cuda/launch.h"
#include "macgrad/cuda/pack.cuh"
#include "macgrad/cuda/step_values.h"

namespace macgrad::cuda {
namespace {

constexpr int kThreads = 256;

// y[first … first + count) from out, in one store where the pack is whole and aligned.
template <int lanes, class T>
__device__ inline void put(T* y, int64_t first, int64_t n, const Packed<T, lanes>& out) {
  if (first + lanes <= n && aligned_for(y, sizeof(out))) {
    *reinterpret_cast<Packed<T, lanes>*>(y + first) = out;
  } else {
#pragma unroll
    for (int j = 0; j < lanes; ++j)
      if (first + j < n) y[first + j] = out.v[j];
  }
}

template <class T>
struct Uniform {
  static constexpr int kElements = 4;
  __device__ void operator()(const Philox4& r, T* out) const {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float u = uniform_from_bits(r.v[j]);
      // bfloat16 is cut, not rounded, so that 1 does not occur.
      if constexpr (std::is_same_v<T, bfloat16>) {
        out[j] = bfloat16(bit_copy<float>(bit_copy<uint32_t>(u) & 0xffff0000u));
      } else {
        out[j] = u;
      }
    }
  }
};
template <>
struct Uniform<double> {
  static constexpr int kElements = 2;
  __device__ void operator()(const Philox4& r, double* out) const {
    out[0] = uniform_from_bits(r.v[0], r.v[1]);
    out[1] = uniform_from_bits(r.v[2], r.v[3]);
  }
};

// Sine and cosine of 2πu.
__device__ inline void sine_and_cosine(double u, double& sine, double& cosine) {
#if defined(__CUDA_ARCH__)
  sincospi(2.0 * u, &sine, &cosine);  // no reduction of large angles, hence no local memory
#else
  sine = std::sin(2.0 * std::numbers::pi * u);
  cosine = std::cos(2.0 * std::numbers::pi * u);
#endif
}

// Box-Muller in float64 for every dtype, as on the CPU.
template <class T>
struct Normal {
  static constexpr int kElements = 2;
  __device__ void operator()(const Philox4& r, T* out) const {
    // 1 - u lies in (0, 1].
    const double radius = math::sqrt(-2.0 * math::log(1.0 - uniform_from_bits(r.v[0], r.v[1])));
    double sine, cosine;
    sine_and_cosine(uniform_from_bits(r.v[2], r.v[3]), sine, cosine);
    out[0] = static_cast<T>(static_cast<compute_t<T>>(radius * cosine));
    out[1] = static_cast<T>(static_cast<compute_t<T>>(radius * sine));
  }
};

template <class T>
struct Sign {
  static constexpr int kElements = 4;
  __device__ void operator()(const Philox4& r, T* out) const {
#pragma unroll
    for (int j = 0; j < 4; ++j) out[j] = static_cast<T>((r.v[j] >> 31) ? 1.0f : -1.0f);
  }
};

template <class T, class Make>
__global__ void fill_random(T* y, int64_t n, DrawKey key, const StepValues* live, Make make) {
  constexpr int lanes = Make::kElements;
  key = resolved(key, live);
  for (int64_t i = thread_index(); i * lanes < n; i += thread_count()) {
    Packed<T, lanes> out;
    make(random_block(key, static_cast<uint32_t>(i)), out.v);
    put<lanes>(y, i * lanes, n, out);
  }
}

template <template <class> class Make>
void random(const char* op, const Tensor& y, const DrawKey& key) {
  dispatch_floating(y.dtype(), op, [&]<class T>() {
    launch(fill_random<T, Make<T>>,
           {blocks_strided(y.numel(), kThreads * Make<T>::kElements), kThreads}, y.data<T>(),
           y.numel(), key, live_for(key), Make<T>{});
  });
}

template <class T>
__global__ void drop(const T* x, T* y, int64_t n, uint32_t threshold, compute_t<T> scale,
                     DrawKey key, const StepValues* live) {
  using C = compute_t<T>;
  using Four = Packed<T, 4>;
  // Four doubles are two loads of 16 bytes.
  const bool whole = aligned_for(x, sizeof(Four)) && aligned_for(y, sizeof(Four));
  key = resolved(key, live);
  for (int64_t i = thread_index(); i * 4 < n; i += thread_count()) {
    const int64_t first = i * 4;
    const bool packed = whole && first + 4 <= n;
    Four in{};
    if (packed) {
      in = *reinterpret_cast<const Four*>(x + first);
    } else {
      for (int j = 0; j < 4; ++j)
        if (first + j < n) in.v[j] = x[first + j];
    }
    const Philox4 r = random_block(key, static_cast<uint32_t>(i));
    Four out;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const C kept = static_cast<C>(in.v[j]) * scale;
      out.v[j] = static_cast<T>((r.v[j] >> 8) >= threshold ? kept : C(0));
    }
    put<4>(y, first, n, out);
  }
}

}  // namespace

void random_uniform(Out y, DrawKey key) {
  random<Uniform>("random_uniform", y, key);
}
void random_normal(Out y, DrawKey key) {
  random<Normal>("random_normal", y, key);
}
void random_signs(Out y, DrawKey key) {
  random<Sign>("random_signs", y, key);
}

void dropout(In x, Out y, double p, DrawKey key) {
  dispatch_floating(x->dtype(), "dropout", [&]<class T>() {
    // u >= p compares 24-bit integers: bits/2^24 >= p.
    const auto threshold = static_cast<uint32_t>(std::ceil(p * 0x1p24));
    const auto scale = static_cast<compute_t<T>>(1.0 / (1.0 - p));
    launch(drop<T>, {blocks_strided(x->numel(), kThreads * 4), kThreads}, x->data<T>(),
           y->data<T>(), x->numel(), threshold, scale, key, live_for(key));
  });
}

}  // namespace macgrad::cuda
