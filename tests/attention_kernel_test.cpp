// The CPU softmax attention kernels against a naive double-precision evaluation, with every mask,
// layout and width; plus dropout replay, padding that holds NaN, extreme logits and thread counts.
// B batch, H heads, T queries, S keys, d and dv widths.
#include <doctest/doctest.h>
#include <omp.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "macgrad/core/kernels/attention.h"

namespace macgrad {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kInf = std::numeric_limits<double>::infinity();

struct Case {
  int64_t B = 2, H = 2, T = 5, S = 7, d = 4, dv = 3;
  bool causal = false;
  bool masks = false;
  double dropout = 0;
  double logits = 1;     // standard deviation of q·k times scale, about
  bool strided = false;  // (B, T, H, d) in memory, with room between rows
};

struct Inputs {
  Tensor q, k, v, grad, key_valid, query_valid;
  SoftmaxAttentionArgs args;
};
struct Results {
  Tensor out, statistics, dq, dk, dv;
};

Tensor allocate(const Case& c, int64_t n, int64_t width, DType dtype) {
  if (!c.strided) return Tensor::empty({c.B, c.H, n, width}, dtype);
  return Tensor::full({c.B, n, c.H, width + 3}, kNan, dtype).slice(3, 1, width + 1).transpose(1, 2);
}

template <class T>
Inputs make_inputs(const Case& c, uint32_t seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<double> normal;
  Inputs in;
  if (c.masks) {
    in.key_valid = Tensor::empty({c.B, c.S}, DType::boolean);
    in.query_valid = Tensor::empty({c.B, c.T}, DType::boolean);
    // Holes in every entry but the last, which is all padding.
    for (int64_t b = 0; b < c.B; ++b) {
      for (int64_t j = 0; j < c.S; ++j) {
        in.key_valid.data<bool>()[b * c.S + j] = b + 1 < c.B && generator() % 4 != 0;
      }
      for (int64_t i = 0; i < c.T; ++i) {
        in.query_valid.data<bool>()[b * c.T + i] = generator() % 4 != 0;
      }
    }
  }
  const auto random = [&](int64_t n, int64_t width, const Tensor& valid, double deviation) {
    const Tensor t = allocate(c, n, width, dtype_of<T>());
    for (int64_t b = 0; b < c.B; ++b) {
      for (int64_t i = 0; i < n; ++i) {
        const bool ok = !valid.defined() || valid.data<bool>()[b * n + i];
        for (int64_t h = 0; h < c.H; ++h) {
          T* row = t.data<T>() + b * t.stride(0) + h * t.stride(1) + i * t.stride(2);
          for (int64_t x = 0; x < width; ++x) {
            row[x] = static_cast<T>(ok ? deviation * normal(generator) : kNan);
          }
        }
      }
    }
    return t;
  };
  in.q = random(c.T, c.d, in.query_valid, c.logits);
  in.k = random(c.S, c.d, in.key_valid, 1);
  in.v = random(c.S, c.dv, in.key_valid, 1);
  in.grad = random(c.T, c.dv, in.query_valid, 1);
  in.args.scale = 1 / std::sqrt(static_cast<double>(c.d));
  in.args.causal = c.causal;
  in.args.dropout = c.dropout;
  in.args.key = {.seed = 0x123456789abcdefull, .stream = 3, .draw = 5, .step = 7};
  return in;
}

template <class T>
Results run(const Case& c, const Inputs& in) {
  const DType dtype = dtype_of<T>();
  Results r;
  r.out = allocate(c, c.T, c.dv, dtype);
  r.statistics = Tensor::empty({c.B, c.H, c.T, 2}, dtype);
  r.dq = allocate(c, c.T, c.d, dtype);
  r.dk = allocate(c, c.S, c.d, dtype);
  r.dv = allocate(c, c.S, c.dv, dtype);
  for (const Tensor* t : {&r.out, &r.statistics, &r.dq, &r.dk, &r.dv}) t->fill(kNan);
  kernels::softmax_attention_forward({.in = {.q = in.q,
                                             .k = in.k,
                                             .v = in.v,
                                             .key_valid = in.key_valid,
                                             .query_valid = in.query_valid,
                                             .args = in.args},
                                      .out = r.out,
                                      .statistics = r.statistics});
  kernels::softmax_attention_backward({.in = {.q = in.q,
                                              .k = in.k,
                                              .v = in.v,
                                              .key_valid = in.key_valid,
                                              .query_valid = in.query_valid,
                                              .args = in.args},
                                       .out = r.out,
                                       .statistics = r.statistics,
                                       .grad = in.grad,
                                       .dq = r.dq,
                                       .dk = r.dk,
                                       .dv = r.dv});
  return r;
}

struct Reference {
  std::vector<double> out, statistics, dq, dk, dv;
};

Reference naive(const Case& c, const Inputs& in) {
  const std::vector<double> q = in.q.to_vector<double>(), k = in.k.to_vector<double>();
  const std::vector<double> v = in.v.to_vector<double>(), grad = in.grad.to_vector<double>();
  Reference r;
  r.out.assign(static_cast<size_t>(c.B * c.H * c.T * c.dv), 0);
  for (int64_t i = 0; i < c.B * c.H * c.T; ++i)
    r.statistics.insert(r.statistics.end(), {-kInf, 0.0});
  r.dq.assign(q.size(), 0);
  r.dk.assign(k.size(), 0);
  r.dv.assign(v.size(), 0);
  const auto valid = [](const Tensor& mask, int64_t at) {
    return !mask.defined() || mask.data<bool>()[at];
  };
  for (int64_t head = 0; head < c.B * c.H; ++head) {
    const int64_t b = head / c.H;
    for (int64_t i = 0; i < c.T; ++i) {
      if (!valid(in.query_valid, b * c.T + i)) continue;
      const double* qi = q.data() + (head * c.T + i) * c.d;
      const double* gi = grad.data() + (head * c.T + i) * c.dv;
      double* oi = r.out.data() + (head * c.T + i) * c.dv;
      std::vector<int64_t> keys;
      std::vector<double> p;
      double largest = -kInf;
      for (int64_t j = 0; j < c.S; ++j) {
        if (!valid(in.key_valid, b * c.S + j) || (c.causal && j > i + c.S - c.T)) continue;
        double score = 0;
        for (int64_t x = 0; x < c.d; ++x) score += qi[x] * k[(head * c.S + j) * c.d + x];
        keys.push_back(j);
        p.push_back(score * in.args.scale);
        largest = std::max(largest, p.back());
      }
      if (keys.empty()) continue;
      double sum = 0;
      for (double score : p) sum += std::exp(score - largest);
      r.statistics[2 * (head * c.T + i)] = largest / in.args.scale;
      r.statistics[2 * (head * c.T + i) + 1] = sum;
      std::vector<double> keep(keys.size(), 1), dp(keys.size(), 0);
      double delta = 0;
      for (size_t n = 0; n < keys.size(); ++n) {
        const int64_t j = keys[n];
        p[n] = std::exp(p[n] - largest) / sum;
        if (c.dropout > 0) {
          const uint64_t element = (head * c.T + i) * c.S + j;
          const bool kept = uniform_from_bits(random_bits(in.args.key, element)) >= c.dropout;
          keep[n] = kept ? 1 / (1 - c.dropout) : 0;
        }
        for (int64_t x = 0; x < c.dv; ++x) {
          const double value = v[(head * c.S + j) * c.dv + x];
          oi[x] += keep[n] * p[n] * value;
          dp[n] += keep[n] * gi[x] * value;
          r.dv[(head * c.S + j) * c.dv + x] += keep[n] * p[n] * gi[x];
        }
        delta += p[n] * dp[n];
      }
      for (size_t n = 0; n < keys.size(); ++n) {
        const double ds = in.args.scale * p[n] * (dp[n] - delta);
        const int64_t kj = (head * c.S + keys[n]) * c.d;
        for (int64_t x = 0; x < c.d; ++x) {
          r.dq[(head * c.T + i) * c.d + x] += ds * k[kj + x];
          r.dk[kj + x] += ds * qi[x];
        }
      }
    }
  }
  return r;
}

// Largest difference, relative to the largest expected element (at least 1); -inf equals -inf.
double difference(const Tensor& got, const std::vector<double>& expected) {
  const std::vector<double> values = got.to_vector<double>();
  REQUIRE(values.size() == expected.size());
  double largest = 1, worst = 0;
  for (size_t i = 0; i < values.size(); ++i) {
    if (values[i] == expected[i]) continue;
    if (!std::isfinite(values[i])) return kInf;
    largest = std::max(largest, std::abs(expected[i]));
    worst = std::max(worst, std::abs(values[i] - expected[i]));
  }
  return worst / largest;
}

template <class T>
void check(const Case& c, double tolerance, uint32_t seed) {
  const std::string text =
      fmt::format("T {} S {} d {} dv {} causal {} masks {} dropout {} strided {} {}", c.T, c.S, c.d,
                  c.dv, c.causal, c.masks, c.dropout, c.strided, name(dtype_of<T>()));
  CAPTURE(text);
  const Inputs in = make_inputs<T>(c, seed);
  const Reference expected = naive(c, in);
  const Results got = run<T>(c, in);
  CHECK(difference(got.out, expected.out) <= tolerance);
  CHECK(difference(got.statistics, expected.statistics) <= tolerance);
  CHECK(difference(got.dq, expected.dq) <= tolerance);
  CHECK(difference(got.dk, expected.dk) <= tolerance);
  CHECK(difference(got.dv, expected.dv) <= tolerance);
}

bool same_bits(const Tensor& a, const Tensor& b) {
  const std::vector<float> x = a.to_vector<float>(), y = b.to_vector<float>();
  return x.size() == y.size() && std::memcmp(x.data(), y.data(), x.size() * sizeof(float)) == 0;
}

TEST_CASE("attention kernel equals the naive formulas at every length") {
  uint32_t seed = 1;
  for (int64_t t : {1, 2, 63, 64, 65, 130, 300}) {
    for (int64_t s : {1, 2, 63, 64, 65, 130, 300}) {
      for (bool causal : {false, true}) {
        Case c{.B = 2, .H = 1, .T = t, .S = s, .d = 8, .dv = 5, .causal = causal};
        c.masks = seed % 2 == 0;
        c.strided = seed % 3 == 0;
        check<double>(c, 1e-12, seed);
        check<float>(c, 3e-6, seed);
        seed += 1;
      }
    }
  }
}

TEST_CASE("attention kernel handles any width") {
  uint32_t seed = 100;
  for (int64_t d : {1, 3, 6, 8, 16, 17, 24, 64, 100}) {
    for (int64_t dv : {1, 7, 8, 31, 64}) {
      const Case c{.T = 27,
                   .S = 33,
                   .d = d,
                   .dv = dv,
                   .causal = seed % 2 == 0,
                   .masks = seed % 3 == 0,
                   .strided = seed % 5 == 0};
      check<double>(c, 1e-12, seed);
      check<float>(c, 3e-6, seed);
      seed += 1;
    }
  }
}

TEST_CASE("attention kernel replays dropout from its draw") {
  uint32_t seed = 200;
  for (int64_t s : {1, 3, 4, 61, 131, 300}) {
    for (bool masks : {false, true}) {
      for (bool causal : {false, true}) {
        const Case c{
            .T = 70, .S = s, .d = 8, .dv = 8, .causal = causal, .masks = masks, .dropout = 0.3};
        check<double>(c, 1e-12, seed);
        check<float>(c, 3e-6, seed);
        seed += 1;
      }
    }
  }
}

TEST_CASE("attention kernel gives zeros where no key is visible") {
  // Causal with T > S: the first T - S queries see nothing.
  const Case c{.T = 9, .S = 4, .causal = true};
  const Results r = run<float>(c, make_inputs<float>(c, 1));
  for (int64_t i = 0; i < c.T - c.S; ++i) {
    CHECK(r.statistics.at({0, 0, i, 0}) == -kInf);
    CHECK(r.statistics.at({0, 0, i, 1}) == 0);
    CHECK(r.out.at({1, 1, i, 2}) == 0);
    CHECK(r.dq.at({1, 1, i, 2}) == 0);
  }
  CHECK(std::isfinite(r.statistics.at({0, 0, c.T - c.S, 0})));
  // Without keys at all.
  const Case none{.T = 3, .S = 0};
  const Results empty = run<double>(none, make_inputs<double>(none, 1));
  CHECK(max_abs_difference(empty.out, Tensor::zeros(empty.out.shape(), DType::float64)) == 0);
  CHECK(max_abs_difference(empty.dq, Tensor::zeros(empty.dq.shape(), DType::float64)) == 0);
}

TEST_CASE("attention kernel does not see padding") {
  // The same rows with and without padding behind them.
  const Case longer{.B = 1, .H = 2, .T = 200, .S = 310, .d = 16, .dv = 16};
  const int64_t t = 150, s = 197;
  Inputs in = make_inputs<float>(longer, 9);
  in.key_valid = Tensor::empty({1, longer.S}, DType::boolean);
  in.query_valid = Tensor::empty({1, longer.T}, DType::boolean);
  for (int64_t j = 0; j < longer.S; ++j) in.key_valid.data<bool>()[j] = j < s;
  for (int64_t i = 0; i < longer.T; ++i) in.query_valid.data<bool>()[i] = i < t;
  const Results padded = run<float>(longer, in);
  Case c = longer;
  c.T = t;
  c.S = s;
  const Inputs alone{in.q.slice(2, 0, t),
                     in.k.slice(2, 0, s),
                     in.v.slice(2, 0, s),
                     in.grad.slice(2, 0, t),
                     {},
                     {},
                     in.args};
  const Results r = run<float>(c, alone);
  CHECK(same_bits(padded.out.slice(2, 0, t), r.out));
  CHECK(same_bits(padded.dq.slice(2, 0, t), r.dq));
  CHECK(same_bits(padded.dk.slice(2, 0, s), r.dk));
  CHECK(same_bits(padded.dv.slice(2, 0, s), r.dv));
}

TEST_CASE("attention kernel stays finite and exact at logits of ten thousand") {
  for (bool causal : {false, true}) {
    const Case c{.T = 40, .S = 230, .d = 16, .dv = 8, .causal = causal, .logits = 1e4};
    // At such logits softmax picks one key; ties and near-ties are what rounding may change.
    check<double>(c, 1e-9, 11);
    const Results r = run<float>(c, make_inputs<float>(c, 11));
    for (const Tensor* t : {&r.out, &r.statistics, &r.dq, &r.dk, &r.dv}) CHECK(all_finite(*t));
  }
}

TEST_CASE("attention kernel gives the same bits at any number of threads") {
  const int before = omp_get_max_threads();
  for (int64_t heads : {1, 3, 8}) {  // few heads split the backward pass, many do not
    for (bool masks : {false, true}) {
      const Case c{.B = masks ? 2 : 1,
                   .H = heads,
                   .T = 420,
                   .S = 390,
                   .d = 16,
                   .dv = 12,
                   .causal = heads == 3,
                   .masks = masks,
                   .dropout = 0.1};
      const Inputs in = make_inputs<float>(c, 13);
      omp_set_num_threads(1);
      const Results one = run<float>(c, in);
      for (int threads : {2, 3, 8, 16}) {
        CAPTURE(threads);
        omp_set_num_threads(threads);
        const Results many = run<float>(c, in);
        CHECK(same_bits(one.out, many.out));
        CHECK(same_bits(one.statistics, many.statistics));
        CHECK(same_bits(one.dq, many.dq));
        CHECK(same_bits(one.dk, many.dk));
        CHECK(same_bits(one.dv, many.dv));
      }
    }
  }
  omp_set_num_threads(before);
}

TEST_CASE("attention kernel runs inside a parallel region") {
  const Case c{.T = 130, .S = 140, .d = 8, .dv = 8};
  const Inputs in = make_inputs<float>(c, 17);
  const Results alone = run<float>(c, in);
  std::vector<Results> nested(3);
#pragma omp parallel for num_threads(3)
  for (int i = 0; i < 3; ++i) nested[static_cast<size_t>(i)] = run<float>(c, in);
  for (const Results& r : nested) {
    CHECK(same_bits(alone.out, r.out));
    CHECK(same_bits(alone.dk, r.dk));
  }
}

TEST_CASE("attention kernel refuses bfloat16 with a reason") {
  const Tensor x = Tensor::zeros({1, 1, 2, 4}, DType::bfloat16);
  const Tensor statistics = Tensor::zeros({1, 1, 2, 2});
  const Support support =
      kernels::softmax_attention_forward.supports(kCpu, {.q = x,
                                                         .k = x,
                                                         .v = x,
                                                         .key_valid = Tensor(),
                                                         .query_valid = Tensor(),
                                                         .args = SoftmaxAttentionArgs{}});
  CHECK_FALSE(support.ok);
  CHECK(support.reason.find("bfloat16") != std::string::npos);
}

}  // namespace
}  // namespace macgrad
