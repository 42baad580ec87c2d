// Random tensors from Philox (core/generator.h): number i of a draw depends on the key and i alone,
// so the cut into chunks and threads does not matter. Chunks of numbers are made in the L1 cache,
// four a Philox block, and then turned into the values asked for.
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include <cmath>
#include <numbers>
#include <type_traits>

#include "macgrad/core/cpu/parallel.h"
#include "macgrad/core/kernels/random.h"
#include "macgrad/core/vector_math.h"

namespace macgrad::cpu {
namespace {

constexpr int64_t kChunk = 1024;  // numbers made at a time, a multiple of 4

#if defined(__AVX2__)
// Philox on four blocks at a time, each word in the low half of a 64-bit lane: the one form in
// which AVX2 has the widening multiplication without shuffles (several times faster than what g++
// makes of the plain loop). High halves hold left-overs, which the multiplication does not read.
class Philox4Blocks {
 public:
  explicit Philox4Blocks(const DrawKey& key) : key_(key) {
    auto k0 = static_cast<uint32_t>(key.seed);
    auto k1 = static_cast<uint32_t>(key.seed >> 32);
    for (int round = 0; round < 10; ++round) {
      k0_[round] = all(k0);
      k1_[round] = all(k1);
      k0 += 0x9E3779B9u;
      k1 += 0xBB67AE85u;
    }
  }

  /// 16 numbers, from block `first` on.
  void fill(uint32_t first, uint32_t* out) const {
    __m256i c0 = _mm256_add_epi64(all(first), _mm256_setr_epi64x(0, 1, 2, 3));
    __m256i c1 = all(key_.step), c2 = all(key_.draw), c3 = all(key_.stream);
#pragma GCC unroll 10
    for (int round = 0; round < 10; ++round) {
      const __m256i p0 = _mm256_mul_epu32(c0, all(0xD2511F53u));
      const __m256i p1 = _mm256_mul_epu32(c2, all(0xCD9E8D57u));
      c0 = _mm256_xor_si256(_mm256_srli_epi64(p1, 32), _mm256_xor_si256(c1, k0_[round]));
      c2 = _mm256_xor_si256(_mm256_srli_epi64(p0, 32), _mm256_xor_si256(c3, k1_[round]));
      c1 = p1;
      c3 = p0;
    }
    const __m256i low = _mm256_blend_epi32(c0, _mm256_slli_epi64(c1, 32), 0xAA);
    const __m256i high = _mm256_blend_epi32(c2, _mm256_slli_epi64(c3, 32), 0xAA);
    const __m256i even = _mm256_unpacklo_epi64(low, high);
    const __m256i odd = _mm256_unpackhi_epi64(low, high);
    auto* to = reinterpret_cast<__m256i*>(out);
    _mm256_storeu_si256(to, _mm256_permute2x128_si256(even, odd, 0x20));
    _mm256_storeu_si256(to + 1, _mm256_permute2x128_si256(even, odd, 0x31));
  }

 private:
  static __m256i all(uint32_t word) {
    return _mm256_set1_epi64x(word);
  }

  DrawKey key_;
  __m256i k0_[10], k1_[10];
};
#endif

/// Numbers 4·first … 4·(first + blocks) - 1 of a draw.
void fill_bits(const DrawKey& key, int64_t first, int64_t blocks, uint32_t* out) {
  int64_t i = 0;
#if defined(__AVX2__)
  const Philox4Blocks philox(key);
  for (; i + 4 <= blocks; i += 4) philox.fill(static_cast<uint32_t>(first + i), out + 4 * i);
#endif
  for (; i < blocks; ++i) {
    const Philox4 r = random_block(key, static_cast<uint32_t>(first + i));
    for (int k = 0; k < 4; ++k) out[4 * i + k] = r.v[k];
  }
}

/// Calls use(begin, end, bits) on chunks of the elements [0, n), each made from `numbers` numbers;
/// bits holds those of the chunk, in order.
template <int64_t numbers, class F>
void for_chunks(int64_t n, const DrawKey& key, F&& use) {
  constexpr int64_t elements = kChunk / numbers;
  parallel_blocks(n, kElementGrain, [&](int64_t from, int64_t to) {
    alignas(64) uint32_t bits[kChunk];
    for (int64_t begin = from; begin < to; begin += elements) {
      const int64_t end = std::min(to, begin + elements);
      fill_bits(key, begin * numbers / 4, ((end - begin) * numbers + 3) / 4, bits);
      use(begin, end, bits);
    }
  });
}

/// uniform_from_bits(high, low) by way of signed conversions, which alone have vector instructions
/// before AVX-512; every step is exact.
double unit53(uint32_t high, uint32_t low) {
  const double upper = static_cast<double>(static_cast<int32_t>(high ^ 0x80000000u)) + 0x1p31;
  return upper * 0x1p-32 + static_cast<double>(static_cast<int32_t>(low >> 11)) * 0x1p-53;
}

/// A uniform number of 24 bits as T. bfloat16 is cut, not rounded, so that 1 does not occur.
template <class T>
T uniform_as(uint32_t bits) {
  const float u = uniform_from_bits(bits);
  if constexpr (std::is_same_v<T, bfloat16>) {
    return bfloat16(bit_copy<float>(bit_copy<uint32_t>(u) & 0xffff0000u));
  } else {
    return u;
  }
}

}  // namespace

void random_uniform(Out y, DrawKey key) {
  dispatch_floating(y->dtype(), "random_uniform", [&]<class T>() {
    T* out = y->data<T>();
    if constexpr (std::is_same_v<T, double>) {
      for_chunks<2>(y->numel(), key, [&](int64_t begin, int64_t end, const uint32_t* bits) {
#pragma omp simd
        for (int64_t i = begin; i < end; ++i) {
          out[i] = unit53(bits[2 * (i - begin)], bits[2 * (i - begin) + 1]);
        }
      });
    } else {
      for_chunks<1>(y->numel(), key, [&](int64_t begin, int64_t end, const uint32_t* bits) {
#pragma omp simd
        for (int64_t i = begin; i < end; ++i) out[i] = uniform_as<T>(bits[i - begin]);
      });
    }
  });
}

// In float64 for every dtype: a float32 draw is the rounded float64 draw, and its tails are as
// long.
void random_normal(Out y, DrawKey key) {
  dispatch_floating(y->dtype(), "random_normal", [&]<class T>() {
    T* out = y->data<T>();
    for_chunks<2>(y->numel(), key, [&](int64_t begin, int64_t end, const uint32_t* bits) {
      constexpr int64_t pairs = kChunk / 4;
      double radius[pairs], angle[pairs], values[2 * pairs];
      const int64_t n = (end - begin + 1) / 2;
#pragma omp simd
      for (int64_t i = 0; i < n; ++i) {
        // 1 - u lies in (0, 1].
        const double u = 1.0 - unit53(bits[4 * i], bits[4 * i + 1]);
        radius[i] = math::sqrt(-2.0 * math::log(u));
        angle[i] = 2.0 * std::numbers::pi * unit53(bits[4 * i + 2], bits[4 * i + 3]);
      }
      // Two loops, or the compiler merges sine and cosine into a scalar sincos.
#pragma omp simd
      for (int64_t i = 0; i < n; ++i) values[2 * i] = radius[i] * math::cos(angle[i]);
#pragma omp simd
      for (int64_t i = 0; i < n; ++i) values[2 * i + 1] = radius[i] * math::sin(angle[i]);
#pragma omp simd
      for (int64_t i = begin; i < end; ++i) {
        out[i] = static_cast<T>(static_cast<compute_t<T>>(values[i - begin]));
      }
    });
  });
}

void random_signs(Out y, DrawKey key) {
  dispatch_floating(y->dtype(), "random_signs", [&]<class T>() {
    T* out = y->data<T>();
    for_chunks<1>(y->numel(), key, [&](int64_t begin, int64_t end, const uint32_t* bits) {
#pragma omp simd
      for (int64_t i = begin; i < end; ++i) {
        out[i] = static_cast<T>((bits[i - begin] >> 31) ? 1.0f : -1.0f);
      }
    });
  });
}

// A uniform of 24 bits an element for every dtype, so that a mask does not depend on it. Dropped
// elements are selected away: a NaN there does not survive.
void dropout(In x, Out y, double p, DrawKey key) {
  dispatch_floating(x->dtype(), "dropout", [&]<class T>() {
    using C = compute_t<T>;
    const T* in = x->data<T>();
    T* out = y->data<T>();
    // u >= p compares 24-bit integers: bits/2^24 >= p.
    const auto threshold = static_cast<uint32_t>(std::ceil(p * 0x1p24));
    const C scale = static_cast<C>(1.0 / (1.0 - p));
    for_chunks<1>(x->numel(), key, [&](int64_t begin, int64_t end, const uint32_t* bits) {
#pragma omp simd
      for (int64_t i = begin; i < end; ++i) {
        const C kept = static_cast<C>(in[i]) * scale;
        out[i] = static_cast<T>((bits[i - begin] >> 8) >= threshold ? kept : C(0));
      }
    });
  });
}

}  // namespace macgrad::cpu
