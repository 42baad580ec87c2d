// Linear attention on given features on the CUDA backend against the CPU's kernel in float64, from
// the values that the card sees: shapes around the tiles' edges, features and log-features, key
// weights, masks, strides, causal lengths, floors, statistics; rows that are summed in log space;
// the same bits in any order of the threads; memory. Shape letters: B batch, H heads, T queries, S
// keys, M features, dv values.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>

#include "macgrad/core/compare_with_cpu.h"
#include "macgrad/core/kernels/elementwise.h"
#include "macgrad/core/kernels/linear_attention.h"
#include "macgrad/core/step_graph.h"
#include "macgrad/cuda/linear_attention_plan.h"
#include "macgrad/cuda/math_mode.h"
#include "macgrad/tests/cuda/device.h"
#include "macgrad/tests/cuda/orders.h"
#include "macgrad/tests/cuda/rounding.h"
#include "macgrad/tests/op_cases.h"
#include "macgrad/tests/padding.h"

namespace macgrad::testing {
namespace {

struct Case {
  int64_t B = 1, H = 1, T = 5, S = 5, M = 4, dv = 3;
  LinearAttentionArgs args;
  bool causal = false, weighted = false;
  bool key_mask = false, query_mask = false, blind = false, strided = false;
  double scale = 1.0;   // standard deviation of log-features
  double growth = 0.0;  // of ℓ per position
  bool nothing = false;  // ℓ, or else log φ, of whole blocks of keys and of every third one is -inf
};

struct Operands {
  Tensor q, k, v, l, key_valid, query_valid, grad;
};

Operands make_operands(const Case& c, DType dtype) {
  std::mt19937 random(static_cast<unsigned>(7 * c.T + c.S + c.M));
  std::normal_distribution<double> normal;
  // (B, H, n, columns), or a view of heads laid out inside rows with room around them.
  const auto tokens = [&](int64_t n, int64_t columns, double mean, double deviation) {
    const Shape shape =
        c.strided ? Shape{c.B, n + 1, c.H, columns + 3} : Shape{c.B, c.H, n, columns};
    std::vector<double> values(static_cast<size_t>(shape.numel()));
    for (double& x : values) x = mean + deviation * normal(random);
    const Tensor t = Tensor::from_values(values, shape, dtype);
    return c.strided ? t.slice(1, 1, n + 1).slice(3, 1, columns + 1).transpose(1, 2) : t;
  };
  // Plain features are mostly positive, so that few denominators are near 0.
  const double mean = c.args.log_features ? 0.0 : 1.5 * c.scale;
  const double deviation = c.args.log_features ? c.scale : 0.5 * c.scale;
  Operands x;
  x.q = tokens(c.T, c.M, mean, deviation);
  x.k = tokens(c.S, c.M, mean, deviation);
  x.v = tokens(c.S, c.dv, 0.0, 1.0);
  x.grad = tokens(c.T, c.dv, 0.0, 1.0);
  if (c.weighted) {
    std::vector<double> l(static_cast<size_t>(c.B * c.H * c.S));
    for (size_t i = 0; i < l.size(); ++i)
      l[i] = normal(random) + c.growth * static_cast<double>(i % static_cast<size_t>(c.S));
    x.l = Tensor::from_vector(l, {c.B, c.H, c.S});
  }
  if (c.nothing) {
    const double nothing = -std::numeric_limits<double>::infinity();
    for (int64_t s = 0; s < c.S; ++s) {
      if (c.weighted && (s < 64 || s % 3 == 1)) x.l.slice(2, s, s + 1).fill(nothing);
      // A query whose visible keys have no feature at all would be 0/0.
      if (!c.weighted && s % 3 == 1) x.k.slice(2, s, s + 1).fill(nothing);
      if (!c.weighted && s < 64) x.k.slice(2, s, s + 1).slice(3, 1, c.M).fill(nothing);
    }
  }
  if (c.key_mask) x.key_valid = random_mask({c.B, c.S}, 7);
  if (c.query_mask) x.query_valid = random_mask({c.B, c.T}, 8);
  if (c.blind) x.key_valid.slice(0, 0, 1).fill(0.0);
  for (const Tensor& t : {x.k, x.v}) fill_hidden_rows(t, x.key_valid);
  for (const Tensor& t : {x.q, x.grad}) fill_hidden_rows(t, x.query_valid);
  return x;
}

template <class F>
Operands each(const Operands& x, F&& f) {
  const auto g = [&](const Tensor& t) { return t.defined() ? f(t) : t; };
  return {g(x.q), g(x.k), g(x.v), g(x.l), g(x.key_valid), g(x.query_valid), g(x.grad)};
}
Operands on_device(const Operands& x) {
  return each(x, [](const Tensor& t) { return t.numel() == 0 ? t.to(kGpu) : on_gpu(t); });
}

struct Results {
  Tensor out, sums, stats, dq, dk, dv, dl;
};

Results run(const Operands& x, const Case& c) {
  const Device device = x.q.device();
  const auto like = [&](const Tensor& t) {
    return Tensor::full({t.size(0), t.size(2), t.size(1), t.size(3)},
                        std::numeric_limits<double>::quiet_NaN(), t.dtype(), device)
        .transpose(1, 2);
  };
  Results r{like(x.grad),
            Tensor::empty({c.B, c.H, c.T, 3}, DType::float64, device),
            Tensor::empty({4}, DType::float64, device),
            like(x.q),
            like(x.k),
            like(x.v),
            {}};
  if (c.weighted) r.dl = Tensor::empty({c.B, c.H, c.S}, DType::float64, device);
  const LinearAttentionOperands in{.phi_q = x.q,
                                   .phi_k = x.k,
                                   .v = x.v,
                                   .log_weight = x.l,
                                   .key_valid = x.key_valid,
                                   .query_valid = x.query_valid,
                                   .args = c.args,
                                   .causal = c.causal};
  kernels::linear_attention_forward({.in = in, .out = r.out, .sums = r.sums, .stats = r.stats});
  kernels::linear_attention_backward({.in = in,
                                      .out = r.out,
                                      .sums = r.sums,
                                      .grad = x.grad,
                                      .dphi_q = r.dq,
                                      .dphi_k = r.dk,
                                      .dv = r.dv,
                                      .dlog_weight = r.dl});
  return r;
}

// The card against the CPU in float64 from the values that the card sees; returns the rows that
// were summed in log space.
double check_case(const Case& c, DType dtype, double tolerance) {
  INFO(
      fmt::format("{} B {} H {} T {} S {} M {} dv {} log {} weighted {} causal {} constant {} "
                  "floor {} none {} masks {} {} {} strided {} scale {}",
                  name(dtype), c.B, c.H, c.T, c.S, c.M, c.dv, c.args.log_features, c.weighted,
                  c.causal, c.args.constant, c.args.floor, c.args.normaliser == Normaliser::none,
                  c.key_mask, c.query_mask, c.blind, c.strided, c.scale));
  const Operands x = make_operands(c, dtype);
  const Results expected =
      run(each(x, [](const Tensor& t) { return t.dtype() == DType::boolean ? t : wide(t); }), c);
  const Results got = run(on_device(x), c);
  const auto near = [&](const Tensor& a, const Tensor& b) {
    if (!b.defined()) return;
    const auto is = a.to(kCpu).to_vector<double>(), should = b.to_vector<double>();
    double largest = 1.0, worst = 0.0;
    for (const double value : should) largest = std::max(largest, std::abs(value));
    for (size_t i = 0; i < should.size(); ++i) {
      const double d = std::abs(is[i] - should[i]);
      worst = std::isnan(d) ? INFINITY : std::max(worst, d);
      if (std::isinf(worst)) break;
    }
    CHECK(worst / largest <= tolerance);
  };
  near(got.out, expected.out);
  near(got.dq, expected.dq);
  near(got.dk, expected.dk);
  near(got.dv, expected.dv);
  near(got.dl, expected.dl);
  near(got.sums, expected.sums);
  const auto stats = got.stats.to(kCpu).to_vector<double>();
  const auto wanted = expected.stats.to_vector<double>();
  for (size_t i = 0; i < 3; ++i) CHECK(stats[i] == wanted[i]);
  CHECK((stats[3] == wanted[3] || std::abs(stats[3] - wanted[3]) <= tolerance * 4));
  return stats[2];
}

void check_both(const Case& c, double tolerance = 3e-5) {
  check_case(c, DType::float32, tolerance);
  check_case(c, DType::float64, 1e-12);
}

// f(case) for features and log-features, full and causal, with and without key weights.
template <class F>
void for_each_form(F&& f) {
  for (const bool log : {false, true})
    for (const bool causal : {false, true})
      for (const bool weighted : {false, true}) {
        Case c;
        c.args.log_features = log;
        c.causal = causal;
        c.weighted = weighted;
        f(c);
      }
}

TEST_CASE("cuda linear attention: the CPU's results for widths and lengths about the tiles") {
  struct Sizes {
    int64_t T, S, M, dv;
  };
  const std::vector<Sizes> all = {{70, 130, 5, 7},  {130, 66, 5, 5}, {9, 70, 130, 66},
                                  {66, 66, 257, 3}, {1, 1, 1, 1},    {64, 128, 64, 64},
                                  {65, 3, 6, 130},  {3, 200, 65, 2}};
  size_t turn = 0;
  for_each_form([&](Case c) {
    for (int i = 0; i < 4; ++i) {
      const Sizes& s = all[turn++ % all.size()];
      c.T = s.T, c.S = s.S, c.M = s.M, c.dv = s.dv;
      c.args.constant = turn % 3 == 0 ? 0.5 : 0.0;
      c.strided = turn % 2 == 0;
      check_case(c, turn % 4 < 2 ? DType::float32 : DType::float64, turn % 4 < 2 ? 3e-5 : 1e-12);
    }
    ++turn;
  });
}

TEST_CASE("cuda linear attention: the CPU's results with masks and options") {
  for_each_form([](Case c) {
    c.B = 2, c.H = 2, c.T = 70, c.S = 67, c.M = 5;
    c.key_mask = c.query_mask = c.strided = true;
    c.args.constant = 0.75;
    check_both(c);
    c.B = 3, c.H = 1, c.T = 20, c.S = 70, c.blind = true, c.query_mask = false;
    if (!c.args.log_features) c.args.constant = 0.0, c.args.floor = 12.0;
    check_both(c);
    c.args.floor = 0.0;
    c.args.normaliser = Normaliser::none;
    c.args.factor = -0.25;
    c.B = 1, c.T = 66, c.S = 70, c.blind = false;
    check_both(c);
    c.M = 0, c.args.constant = 2.0;
    check_both(c);
  });
}

TEST_CASE("cuda linear attention: floored denominators in part") {
  for (const bool causal : {false, true}) {
    Case c;
    c.T = c.S = 140;
    c.causal = causal;
    c.weighted = true;
    c.args.floor = 9.5;
    check_both(c);
  }
}

TEST_CASE("cuda linear attention: rows times 40 and gates are summed in log space where needed") {
  for (const bool weighted : {false, true}) {
    Case c;
    c.H = 4, c.T = c.S = 140, c.M = 6;
    c.args.log_features = true;
    c.causal = true;
    c.weighted = weighted;
    c.scale = 40;
    c.args.constant = weighted ? 0.5 : 0.0;
    c.key_mask = weighted;
    // Logarithms of some hundreds have an ulp of 3e-5 in float32.
    CHECK(check_case(c, DType::float32, 2e-4) > 10);
    CHECK(check_case(c, DType::float64, 1e-11) > 10);
    c.causal = false;
    CHECK(check_case(c, DType::float32, 2e-4) == 0);
  }
  for (const bool log : {false, true})
    for (const double gate : {0.1, 0.5}) {
      Case c;
      c.T = c.S = 140;
      c.args.log_features = log;
      c.causal = c.weighted = true;
      c.growth = -std::log(gate);
      check_both(c);
    }
}

TEST_CASE("cuda linear attention: keys of weight 0 and features of value 0, whole blocks of them") {
  for_each_form([](Case c) {
    if (!c.weighted && !c.args.log_features) return;
    c.H = 2, c.T = c.S = 140;
    c.nothing = true;
    check_both(c);
  });
}

TEST_CASE("cuda linear attention: empty tensors") {
  for_each_form([](Case c) {
    c.T = 0, c.S = 3;
    check_both(c);
    c.T = 3, c.S = 0;
    check_both(c);
    c.B = 0, c.S = 3;
    check_both(c);
    c.B = 1, c.dv = 0;
    check_both(c);
  });
}

TEST_CASE("cuda linear attention: the same bits in any order of the threads") {
  for_each_form([](Case c) {
    c.H = 2, c.T = 70, c.S = 80, c.M = 66, c.key_mask = true;
    c.scale = c.args.log_features ? 20 : 1;
    const Operands x = on_device(make_operands(c, DType::float32));
    same_in_any_order([&] {
      const Results r = run(x, c);
      std::vector<double> all;
      for (const Tensor& t : {r.out, r.sums, r.stats, r.dq, r.dk, r.dv, r.dl}) {
        if (!t.defined()) continue;
        const auto values = t.to(kCpu).to_vector<double>();
        all.insert(all.end(), values.begin(), values.end());
      }
      return Tensor::from_values(all, {static_cast<int64_t>(all.size())}, DType::float64);
    });
  });
}

TEST_CASE("cuda linear attention: a captured call follows its operands") {
  for_each_form([](Case c) {
    c.T = 70, c.S = 80;
    Operands x = on_device(make_operands(c, DType::float32));
    run(x, c);  // memory that the capture reuses
    Results replayed;
    const StepGraph graph(kGpu, [&] { replayed = run(x, c); });
    for (const Tensor& t : {x.q, x.k, x.v, x.grad}) kernels::mul(t, t.contiguous(), t);
    graph.replay({});
    const Results eager = run(x, c);
    for (Tensor Results::*member : {&Results::out, &Results::sums, &Results::stats, &Results::dq,
                                    &Results::dk, &Results::dv, &Results::dl})
      if ((eager.*member).defined()) CHECK(same_bits(replayed.*member, eager.*member));
  });
}

TEST_CASE("cuda linear attention: float32 on tensor cores to its rounding") {
  for_each_form([](Case c) {
    c.T = 70, c.S = 80, c.M = 20, c.dv = 16;
    for (const auto& [mode, tolerance] :
         {std::pair{cuda::MathMode::tf32, 2e-3}, {cuda::MathMode::bf16, 2e-2}}) {
      cuda::set_math_mode(mode);
      check_case(c, DType::float32, tolerance);
    }
    cuda::set_math_mode(cuda::MathMode::exact);
  });
}

TEST_CASE("cuda linear attention: MACGRAD_CHECK=cpu compares it") {
  const CompareWithCpu tool;
  for_each_form([](Case c) {
    c.T = 70, c.S = 80, c.key_mask = true;
    for (const DType dtype : {DType::float32, DType::float64})
      run(on_device(make_operands(c, dtype)), c);
  });
  CHECK(tool.compared() >= 32);
  CHECK(tool.skipped().empty());
}

TEST_CASE("cuda linear attention: ranges hold every token once, and the CPU's causal blocks") {
  for (const int64_t T : {0, 1, 63, 64, 65, 200, 5000})
    for (const int64_t S : {0, 1, 64, 130, 200, 5000})
      for (const bool causal : {false, true}) {
        CAPTURE(T);
        CAPTURE(S);
        const cuda::linear::Map map{128, 128, 64, false};
        const cuda::linear::Cut cut(map, 8, T, S, causal);
        const auto covers = [](const cuda::linear::Ranges& ranges, int64_t tokens) {
          int64_t at = 0, begin, end;
          for (int i = 0; i < ranges.count(); ++i) {
            ranges.get(i, begin, end);
            if (begin < end) {
              CHECK(begin == at);
              at = end;
            }
          }
          CHECK(at == tokens);
        };
        covers(cut.queries, T);
        if (!causal || T > 0) covers(cut.keys, S);
        for (int i = 0; i < cut.blocks; ++i) {
          int64_t begin, end;
          cut.keys.get(cut.keys.splits + i, begin, end);
          const auto before = [&](int64_t t) { return std::clamp<int64_t>(t + S - T, 0, S); };
          CHECK(begin == before(64 * i));
          CHECK(end == before(std::min<int64_t>(64 * (i + 1), T)));
        }
      }
}

TEST_CASE("cuda linear attention: scratch memory grows with the operands") {
  const auto scratch = [](int64_t n, bool causal, bool backward) {
    const Tensor phi = Tensor::empty({1, 16, n, 128}), v = Tensor::empty({1, 16, n, 64}), none;
    const LinearAttentionArgs args{.log_features = true};
    const LinearAttentionOperands in{.phi_q = phi,
                                     .phi_k = phi,
                                     .v = v,
                                     .log_weight = none,
                                     .key_valid = none,
                                     .query_valid = none,
                                     .args = args,
                                     .causal = causal};
    return static_cast<double>(cuda::linear::scratch_bytes(in, backward)) /
           static_cast<double>(2 * phi.bytes() + v.bytes());
  };
  for (const int64_t n : {1000, 4000}) {
    CHECK(scratch(n, true, false) < 0.5);
    CHECK(scratch(n, true, true) < 0.9);
    CHECK(scratch(n, false, false) < 0.2);
    CHECK(scratch(n, false, true) < 0.4);
  }
}

TEST_CASE("cuda linear attention: other dtypes are not supported") {
  const Tensor x = Tensor::empty({1, 1, 4, 3}, DType::bfloat16, kGpu), none;
  const Support support = kernels::linear_attention_forward.supports(kGpu, {.phi_q = x,
                                                                            .phi_k = x,
                                                                            .v = x,
                                                                            .log_weight = none,
                                                                            .key_valid = none,
                                                                            .query_valid = none,
                                                                            .args = {},
                                                                            .causal = false});
  CHECK(support.reason == "the CUDA kernel takes float32 and float64, not bfloat16");
}

}  // namespace
}  // namespace macgrad::testing
