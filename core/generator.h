// Random numbers as pure functions: Philox4x32-10 (Salmon et al. 2011) of (seed, stream, step,
// draw, element). The same key gives the same integers on every device and at any thread count, and
// a draw can be replayed by keeping its key (dropout masks, feature draws).
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "macgrad/core/host_device.h"

namespace macgrad {

/// Step of a key whose true step a captured CUDA step reads from device memory
/// (cuda/step_values.h). No training step has this number.
inline constexpr uint32_t kLiveStep = 0xffffffffu;

/// Names one draw: all random numbers of one tensor at one step.
struct DrawKey {
  uint64_t seed = 0;
  uint32_t stream = 0;  // who draws: data order, dropout, features, initialisation, …
  uint32_t draw = 0;    // counts the draws within a step
  uint32_t step = 0;    // training step (read from device memory by captured CUDA steps)
  friend bool operator==(const DrawKey&, const DrawKey&) = default;
};

struct Philox4 {
  uint32_t v[4];
};

/// Philox4x32-10: four 32-bit numbers from a 128-bit counter and a 64-bit key.
MACGRAD_HD inline Philox4 philox4x32_10(Philox4 c, uint32_t k0, uint32_t k1) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{0xD2511F53u} * c.v[0];
    const uint64_t p1 = uint64_t{0xCD9E8D57u} * c.v[2];
    c = Philox4{{static_cast<uint32_t>(p1 >> 32) ^ c.v[1] ^ k0, static_cast<uint32_t>(p1),
                 static_cast<uint32_t>(p0 >> 32) ^ c.v[3] ^ k1, static_cast<uint32_t>(p0)}};
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return c;
}

/// Numbers 4·block … 4·block+3 of a draw.
MACGRAD_HD inline Philox4 random_block(const DrawKey& key, uint32_t block) {
  return philox4x32_10(Philox4{{block, key.step, key.draw, key.stream}},
                       static_cast<uint32_t>(key.seed), static_cast<uint32_t>(key.seed >> 32));
}

/// Number `element` of a draw.
MACGRAD_HD inline uint32_t random_bits(const DrawKey& key, uint64_t element) {
  return random_block(key, static_cast<uint32_t>(element >> 2)).v[element & 3];
}

/// Uniform in [0, 1) with 24 bits: exact in float32.
MACGRAD_HD inline float uniform_from_bits(uint32_t bits) {
  return static_cast<float>(bits >> 8) * 0x1p-24f;
}
/// Uniform in [0, 1) with 53 bits, from two numbers.
MACGRAD_HD inline double uniform_from_bits(uint32_t high, uint32_t low) {
  return static_cast<double>(((static_cast<uint64_t>(high) << 32) | low) >> 11) * 0x1p-53;
}

/// Issues draw keys. Stateless apart from a few integers, so copying it saves its state.
class Generator {
 public:
  /// stream < 2^16.
  explicit Generator(uint64_t seed = 0, uint32_t stream = 0) : seed_(seed), stream_(stream) {}

  /// Starts `step`, or one of its micro-batches (below 2^16); draws are counted from 0 again.
  void begin_step(uint32_t step, uint32_t micro_batch = 0) {
    step_ = step;
    micro_batch_ = micro_batch;
    next_draw_ = 0;
  }
  /// Key of the next draw: of the micro-batch's stream, which is the generator's for micro-batch 0.
  DrawKey draw() { return {seed_, stream_ | micro_batch_ << 16, next_draw_++, step_}; }

  uint64_t seed() const { return seed_; }
  uint32_t stream() const { return stream_; }
  uint32_t step() const { return step_; }

 private:
  uint64_t seed_;
  uint32_t stream_;
  uint32_t step_ = 0;
  uint32_t micro_batch_ = 0;
  uint32_t next_draw_ = 0;
};

namespace detail {
[[noreturn]] void throw_live_key();
}  // namespace detail

/// Reads the numbers of one draw one after the other, from number `first` on.
class DrawReader {
 public:
  /// On the host the key must not be live: an Error.
  MACGRAD_HD explicit DrawReader(const DrawKey& key, uint64_t first = 0) : key_(key), next_(first) {
#ifndef __CUDA_ARCH__
    if (key.step == kLiveStep) detail::throw_live_key();
#endif
  }
  MACGRAD_HD uint32_t bits() {
    return random_bits(key_, next_++);
  }
  /// Uniform in [0, 1), 53 bits.
  MACGRAD_HD double uniform() {
    const uint32_t high = bits();
    return uniform_from_bits(high, bits());
  }
  /// -1 or +1.
  MACGRAD_HD double sign() {
    return (bits() >> 31) ? 1.0 : -1.0;
  }
  /// Uniform integer in [0, n), without modulo bias.
  MACGRAD_HD uint64_t below(uint64_t n) {
    // Rejects the incomplete last interval of 2^64.
    const uint64_t largest = ~uint64_t{0};
    const uint64_t limit = largest - largest % n;
    while (true) {
      const uint64_t high = bits();
      const uint64_t value = (high << 32) | bits();
      if (value < limit) return value % n;
    }
  }
  /// A random order of 0 … n-1 (Fisher-Yates).
  template <class Integer>
  MACGRAD_HD void permutation(Integer* order, int64_t n) {
    for (int64_t i = 0; i < n; ++i) order[i] = static_cast<Integer>(i);
    for (int64_t i = n - 1; i > 0; --i) {
      const auto j = static_cast<int64_t>(below(static_cast<uint64_t>(i) + 1));
      const Integer one = order[i];
      order[i] = order[j];
      order[j] = one;
    }
  }
  std::vector<int64_t> permutation(int64_t n) {
    std::vector<int64_t> order(static_cast<size_t>(n));
    permutation(order.data(), n);
    return order;
  }

 private:
  DrawKey key_;
  uint64_t next_;
};

}  // namespace macgrad
