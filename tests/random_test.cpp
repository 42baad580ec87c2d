// Philox against published vectors; random tensors against the definition number by number, at any
// thread count; and the distributions.
#include <doctest/doctest.h>
#include <omp.h>

#include <cmath>
#include <numbers>

#include "macgrad/core/generator.h"
#include "macgrad/core/kernels/random.h"

namespace macgrad {
namespace {

const DrawKey kKey{0x0123456789abcdefull, 3, 5, 7};

// Runs f at several thread counts; every call must return the same doubles.
template <class F>
std::vector<double> same_at_any_thread_count(F&& f) {
  const int before = omp_get_max_threads();
  omp_set_num_threads(1);
  const std::vector<double> first = f();
  for (int threads : {2, 3, 8, 16}) {
    omp_set_num_threads(threads);
    CAPTURE(threads);
    CHECK(f() == first);
  }
  omp_set_num_threads(before);
  return first;
}

struct Moments {
  double mean = 0, variance = 0, skewness = 0, kurtosis = 0;
};
Moments moments(const std::vector<double>& x) {
  const auto n = static_cast<double>(x.size());
  Moments m;
  for (double v : x) m.mean += v / n;
  for (double v : x) {
    const double d = v - m.mean;
    m.variance += d * d / n;
    m.skewness += d * d * d / n;
    m.kurtosis += d * d * d * d / n;
  }
  m.skewness /= std::pow(m.variance, 1.5);
  m.kurtosis /= m.variance * m.variance;
  return m;
}

constexpr int64_t kOdd = 100003;

}  // namespace

TEST_CASE("Philox4x32-10 gives the published numbers") {
  const auto check = [](Philox4 counter, uint32_t k0, uint32_t k1, Philox4 expected) {
    const Philox4 r = philox4x32_10(counter, k0, k1);
    for (int i = 0; i < 4; ++i) CHECK(r.v[i] == expected.v[i]);
  };
  check({{0, 0, 0, 0}}, 0, 0, {{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}});
  check({{~0u, ~0u, ~0u, ~0u}}, ~0u, ~0u, {{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}});
  check({{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}}, 0xa4093822, 0x299f31d0,
        {{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}});
}

TEST_CASE("random tensors follow the definition, number by number") {
  for (int64_t n : {0, 1, 2, 3, 4, 5, 63, 1024, 1025, 16384, 16387}) {
    CAPTURE(n);
    for (DType dtype : {DType::float32, DType::float64, DType::bfloat16}) {
      CAPTURE(name(dtype));
      const Tensor y = Tensor::empty({n}, dtype);
      kernels::random_signs(y, kKey);
      std::vector<double> values = y.to_vector<double>();
      bool same = true;
      for (int64_t i = 0; i < n; ++i) {
        const double sign = (random_bits(kKey, static_cast<uint64_t>(i)) >> 31) ? 1.0 : -1.0;
        same = same && values[static_cast<size_t>(i)] == sign;
      }
      CHECK(same);

      kernels::random_uniform(y, kKey);
      values = y.to_vector<double>();
      same = true;
      for (int64_t i = 0; i < n; ++i) {
        const auto e = static_cast<uint64_t>(i);
        const double value = values[static_cast<size_t>(i)];
        const double exact =
            dtype == DType::float64
                ? uniform_from_bits(random_bits(kKey, 2 * e), random_bits(kKey, 2 * e + 1))
                : static_cast<double>(uniform_from_bits(random_bits(kKey, e)));
        same = same && value < 1.0 &&
               (dtype == DType::bfloat16 ? value <= exact && value >= exact * (1 - 0x1p-7)
                                         : value == exact);
      }
      CHECK(same);

      kernels::random_normal(y, kKey);
      values = y.to_vector<double>();
      const double precision = dtype == DType::float64   ? 1e-14
                               : dtype == DType::float32 ? 0x1p-24
                                                         : 0x1p-8;
      double worst = 0;
      for (int64_t i = 0; i < n; ++i) {
        const Philox4 r = random_block(kKey, static_cast<uint32_t>(i / 2));
        const double radius = std::sqrt(-2 * std::log(1 - uniform_from_bits(r.v[0], r.v[1])));
        const double angle = 2 * std::numbers::pi * uniform_from_bits(r.v[2], r.v[3]);
        const double exact = radius * (i % 2 == 0 ? std::cos(angle) : std::sin(angle));
        worst = std::max(
            worst, std::abs(values[static_cast<size_t>(i)] - exact) / (std::abs(exact) + 1e-3));
      }
      CHECK(worst <= precision * 1.01);
    }
  }
}

TEST_CASE("random tensors do not depend on the number of threads") {
  for (DType dtype : {DType::float32, DType::float64}) {
    const Tensor y = Tensor::empty({kOdd}, dtype);
    const Tensor x = Tensor::full({kOdd}, 3.0, dtype);
    const auto run = [&](auto&& fill) {
      return same_at_any_thread_count([&] {
        fill();
        return y.to_vector<double>();
      });
    };
    run([&] { kernels::random_uniform(y, kKey); });
    run([&] { kernels::random_normal(y, kKey); });
    run([&] { kernels::random_signs(y, kKey); });
    run([&] { kernels::dropout(x, y, 0.3, kKey); });
  }
}

TEST_CASE("the distributions are what they are called") {
  const int64_t n = 1 << 20;
  const Tensor y = Tensor::empty({n});
  kernels::random_uniform(y, kKey);
  Moments m = moments(y.to_vector<double>());
  CHECK(std::abs(m.mean - 0.5) < 0.0015);
  CHECK(std::abs(m.variance - 1.0 / 12) < 0.0005);
  CHECK(std::abs(m.kurtosis - 1.8) < 0.01);

  kernels::random_normal(y, kKey);
  std::vector<double> values = y.to_vector<double>();
  m = moments(values);
  CHECK(std::abs(m.mean) < 0.005);
  CHECK(std::abs(m.variance - 1) < 0.007);
  CHECK(std::abs(m.skewness) < 0.012);
  CHECK(std::abs(m.kurtosis - 3) < 0.024);
  double pair_product = 0;
  for (size_t i = 0; i < values.size(); i += 2) pair_product += values[i] * values[i + 1];
  CHECK(std::abs(pair_product / static_cast<double>(n / 2)) < 0.007);

  kernels::random_signs(y, kKey);
  CHECK(std::abs(moments(y.to_vector<double>()).mean) < 0.005);

  // Another draw, step or stream is another sequence.
  const Tensor other = Tensor::empty({n});
  for (DrawKey key : {DrawKey{kKey.seed + 1, 3, 5, 7}, DrawKey{kKey.seed, 4, 5, 7},
                      DrawKey{kKey.seed, 3, 6, 7}, DrawKey{kKey.seed, 3, 5, 8}}) {
    kernels::random_signs(other, key);
    const std::vector<float> a = y.to_vector<float>(), b = other.to_vector<float>();
    double agreement = 0;
    for (size_t i = 0; i < a.size(); ++i) agreement += a[i] * b[i];
    CHECK(std::abs(agreement / static_cast<double>(n)) < 0.005);
  }
}

TEST_CASE("Tensor::rand and Tensor::randn take their key from a generator or a seed") {
  const Shape shape{7, 5};
  for (const DType dtype : {DType::float32, DType::float64, DType::bfloat16}) {
    CAPTURE(name(dtype));
    Generator generator(11, 3), same_keys(11, 3);
    generator.begin_step(2);
    same_keys.begin_step(2);
    const Tensor expected = Tensor::empty(shape, dtype);
    for (int draw = 0; draw < 2; ++draw) {  // each call advances the generator by one draw
      kernels::random_uniform(expected, same_keys.draw());
      CHECK(max_abs_difference(Tensor::rand(shape, generator, dtype), expected) == 0.0);
      kernels::random_normal(expected, same_keys.draw());
      CHECK(max_abs_difference(Tensor::randn(shape, generator, dtype), expected) == 0.0);
    }
    CHECK(generator.draw() == same_keys.draw());

    kernels::random_normal(expected, {4, 0, 0, 0});
    const Tensor seeded = Tensor::randn(shape, 4, dtype);
    CHECK(seeded.dtype() == dtype);
    CHECK(max_abs_difference(seeded, expected) == 0.0);
    CHECK(max_abs_difference(seeded, Tensor::randn(shape, 5, dtype)) > 0.0);
    kernels::random_uniform(expected, {4, 0, 0, 0});
    CHECK(max_abs_difference(Tensor::rand(shape, 4, dtype), expected) == 0.0);
  }
  CHECK_THROWS_WITH_AS(Tensor::rand(shape, 1, DType::int64), doctest::Contains("random_uniform"),
                       Error);
  CHECK_THROWS_WITH_AS(Tensor::randn(shape, 1, DType::boolean), doctest::Contains("random_normal"),
                       Error);
}

TEST_CASE("dropout keeps what its uniforms say, scaled, and lets no dropped NaN through") {
  const int64_t n = kOdd;
  const Tensor x = Tensor::empty({n}, DType::float64);
  kernels::random_normal(x, {1, 1, 1, 1});
  const Tensor y = Tensor::empty({n}, DType::float64);
  for (double p : {0.0, 0.1, 0.5, 0.99, 1.0}) {
    CAPTURE(p);
    kernels::dropout(x, y, p, kKey);
    const std::vector<double> in = x.to_vector<double>(), out = y.to_vector<double>();
    bool same = true;
    int64_t kept = 0;
    for (int64_t i = 0; i < n; ++i) {
      const auto k = static_cast<size_t>(i);
      const bool keep =
          static_cast<double>(uniform_from_bits(random_bits(kKey, static_cast<uint64_t>(i)))) >= p;
      same = same && (keep ? std::abs(out[k] - in[k] / (1 - p)) <= 1e-14 * std::abs(out[k])
                           : out[k] == 0.0);
      kept += keep;
    }
    CHECK(same);
    CHECK(std::abs(static_cast<double>(kept) / static_cast<double>(n) - (1 - p)) < 0.006);
  }
  const Tensor nan = Tensor::full({n}, std::nan(""), DType::float64);
  kernels::dropout(nan, y, 1.0, kKey);
  CHECK(all_finite(y));

  // One mask for every dtype.
  const Tensor ones64 = Tensor::full({n}, 1.0, DType::float64);
  const Tensor ones16 = Tensor::full({n}, 1.0, DType::bfloat16);
  const Tensor y16 = Tensor::empty({n}, DType::bfloat16);
  kernels::dropout(ones64, y, 0.5, kKey);
  kernels::dropout(ones16, y16, 0.5, kKey);
  CHECK(max_abs_difference(y, y16.to(DType::float64)) == 0);
}

}  // namespace macgrad
