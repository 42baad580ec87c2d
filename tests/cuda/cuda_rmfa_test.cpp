// RMFA on the CUDA backend against the CPU's kernels: shapes around the tiles' edges, draws of all
// sorts (chunks of features that are full, partial, of high degree, empty), masks, strides, causal
// lengths, floors, statistics; the same bits in any order of the threads; roundings of the tensor
// cores and bfloat16 against float64; recorded calls that follow the draws put into their memory.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "macgrad/autograd/attention.h"
#include "macgrad/autograd/fused.h"
#include "macgrad/core/kernels/rmfa.h"
#include "macgrad/core/step_graph.h"
#include "macgrad/cuda/math_mode.h"
#include "macgrad/tests/cuda/device.h"
#include "macgrad/tests/cuda/orders.h"
#include "macgrad/tests/cuda/rounding.h"
#include "macgrad/tests/op_cases.h"
#include "macgrad/tests/padding.h"

namespace macgrad::testing {
namespace {

struct Case {
  int64_t B = 1, H = 1, T = 1, S = 1, d = 5, dv = 7;
  RmfaArgs args;
  bool per_head = false, key_mask = false, query_mask = false, blind = false, strided = false;
};

RmfaArgs draw_of(std::vector<int64_t> levels, double linear = 0.0, double floor = 0.0) {
  RmfaArgs args;
  args.levels = std::move(levels);
  args.constant = 1.0;
  args.linear = linear;
  args.floor = floor;
  return args;
}

// What degrees of the paper give 128 features: half of them, then a quarter…, by level.
const std::vector<int64_t> kGeometric = {128, 64, 32, 16, 8, 4, 2, 1};

constexpr double kExact = 2e-5;

struct Operands {
  Tensor q, k, v, key_valid, query_valid, omega, weight, grad;
};

Tensor scaled(const Tensor& t, double factor) {
  std::vector<double> values = t.to_vector<double>();
  for (double& x : values) x *= factor;
  return Tensor::from_values(values, t.shape(), t.dtype());
}

// (B, H, n, c), or a view of heads laid out inside rows with room around them.
Tensor tokens(const Case& c, int64_t n, int64_t columns, uint32_t draw, double factor) {
  if (!c.strided) return scaled(exact_values({c.B, c.H, n, columns}, draw, DType::float64), factor);
  return scaled(exact_values({c.B, n + 1, c.H, columns + 3}, draw, DType::float64), factor)
      .slice(1, 1, n + 1)
      .slice(3, 1, columns + 1)
      .transpose(1, 2);
}

Operands make_operands(const Case& c) {
  Operands x;
  int64_t P = 0;
  for (int64_t l : c.args.levels) P += l;
  const int64_t M = c.args.levels.empty() ? 0 : c.args.levels[0];
  const double narrow = 0.5 / std::sqrt(static_cast<double>(c.d));
  x.q = tokens(c, c.T, c.d, 1, narrow);
  x.k = tokens(c, c.S, c.d, 2, narrow);
  x.v = tokens(c, c.S, c.dv, 3, 1.0);
  x.grad = tokens(c, c.T, c.dv, 4, 1.0);
  x.omega = exact_signs(c.per_head ? Shape{c.H, c.d, P} : Shape{c.d, P}, 5, DType::float64);
  x.weight = scaled(exact_values({M}, 6, DType::float64), M > 0 ? 1.0 / std::sqrt(M) : 1.0);
  if (c.key_mask) x.key_valid = random_mask({c.B, c.S}, 7);
  if (c.query_mask) x.query_valid = random_mask({c.B, c.T}, 8);
  if (c.blind) x.key_valid.slice(0, 0, 1).fill(0.0);
  fill_hidden_rows(x.k, x.key_valid);
  fill_hidden_rows(x.v, x.key_valid);
  fill_hidden_rows(x.q, x.query_valid);
  fill_hidden_rows(x.grad, x.query_valid);
  return x;
}

// The same values in another type; strides stay those of a copy or, for float64, its own.
Operands converted(const Operands& x, DType dtype) {
  const auto to = [&](const Tensor& t) { return t.to(dtype); };
  return {to(x.q),       to(x.k),     to(x.v),      x.key_valid,
          x.query_valid, to(x.omega), to(x.weight), to(x.grad)};
}

// In another type and device with the layout of `t`.
Tensor placed(const Tensor& t, DType dtype) {
  if (!t.defined()) return t;
  if (t.numel() == 0) return Tensor::empty(t.shape(), dtype, kGpu);
  const auto items = static_cast<int64_t>(t.storage()->bytes() / item_size(t.dtype()));
  const Tensor flat = t.as_strided({items}, {1}, 0);
  return (t.dtype() == DType::boolean ? flat : flat.to(dtype))
      .to(kGpu)
      .as_strided(t.shape(), t.strides(), t.offset());
}

struct Results {
  Tensor out, den, stats, dq, dk, dv;
};

// `cancelling` off tells the backward pass that the output was 0: its two terms then stand alone.
Results run(const Operands& x, const RmfaArgs& args, bool backward, bool cancelling = true) {
  const DType dtype = x.q.dtype();
  const Device device = x.q.device();
  const auto heads = [&](const Tensor& t, int64_t columns) {
    return Tensor::full({t.size(0), t.size(2), t.size(1), columns},
                        std::numeric_limits<double>::quiet_NaN(), dtype, device)
        .transpose(1, 2);
  };
  Results r;
  r.out = heads(x.q, x.v.size(3));
  r.den = Tensor::empty({x.q.size(0), x.q.size(1), x.q.size(2)}, compute_dtype(dtype), device);
  r.stats = Tensor::empty({4}, DType::float64, device);
  const RmfaOperands in{.q = x.q,
                        .k = x.k,
                        .v = x.v,
                        .key_valid = x.key_valid,
                        .query_valid = x.query_valid,
                        .omega = x.omega,
                        .weight = x.weight,
                        .args = args};
  kernels::rmfa_forward({.in = in, .out = r.out, .den = r.den, .stats = r.stats});
  if (backward) {
    r.dq = heads(x.q, x.q.size(3));
    r.dk = heads(x.k, x.k.size(3));
    r.dv = heads(x.v, x.v.size(3));
    if (!cancelling) r.out.fill(0.0);
    kernels::rmfa_backward(
        {.in = in, .out = r.out, .den = r.den, .grad = x.grad, .dq = r.dq, .dk = r.dk, .dv = r.dv});
  }
  return r;
}

Operands on_device(const Operands& x, DType dtype) {
  return {placed(x.q, dtype),         placed(x.k, dtype),           placed(x.v, dtype),
          placed(x.key_valid, dtype), placed(x.query_valid, dtype), placed(x.omega, dtype),
          placed(x.weight, dtype),    placed(x.grad, dtype)};
}

// The card against the CPU in float64 from the values that the card sees.
void check_case(const Case& c, double tolerance, DType dtype = DType::float32,
                bool backward = true) {
  CAPTURE(c.T);
  CAPTURE(c.S);
  CAPTURE(c.d);
  CAPTURE(c.dv);
  CAPTURE(c.args.causal);
  CAPTURE(c.args.levels.size());
  CAPTURE(c.args.linear);
  CAPTURE(c.strided);
  const Operands x = make_operands(c);
  const Results expected = run(converted(converted(x, dtype), DType::float64), c.args, backward);
  const Results got = run(on_device(x, dtype), c.args, backward);
  const auto largest = [](const Tensor& a) {
    double most = 1e-2;
    for (const double value : a.to_vector<double>()) most = std::max(most, std::abs(value));
    return most;
  };
  const auto error = [&](const Tensor& a, const Tensor& b) {
    const auto is = a.to(kCpu).to_vector<double>(), should = b.to_vector<double>();
    double worst = 0;
    for (size_t i = 0; i < should.size(); ++i) {
      const double d = std::abs(is[i] - should[i]);
      worst = std::isnan(d) ? INFINITY : std::max(worst, d);
      if (std::isinf(worst)) break;
    }
    return worst;
  };
  const auto near = [&](const Tensor& a, const Tensor& b) { return error(a, b) / largest(b); };
  CHECK(near(got.out, expected.out) <= tolerance);
  CHECK(near(got.den, expected.den) <= tolerance);
  const auto stats = got.stats.to(kCpu).to_vector<double>();
  const auto wanted = expected.stats.to_vector<double>();
  if (dtype == DType::float32 && tolerance < 1e-4) CHECK(stats[1] == wanted[1]);
  CHECK(stats[0] == wanted[0]);
  CHECK(stats[2] == wanted[2]);
  CHECK((stats[3] == wanted[3] || std::abs(stats[3] - wanted[3]) <= tolerance * 4));
  if (!backward) return;
  // Where few keys are seen, the gradient is the small difference of what comes through numerator
  // and denominator: what rounds are those.
  const Results terms = run(converted(converted(x, dtype), DType::float64), c.args, true, false);
  const int64_t features = c.args.levels.empty() ? 0 : c.args.levels[0];
  const double rounding = rounding_tolerance(DType::float32, c.S + c.dv + features);
  const auto agree = [&](Tensor Results::*member) {
    return error(got.*member, expected.*member) <=
           tolerance * largest(expected.*member) + rounding * largest(terms.*member);
  };
  CHECK(agree(&Results::dq));
  CHECK(agree(&Results::dk));
  CHECK(agree(&Results::dv));
}

std::vector<Case> cases(bool causal) {
  std::vector<Case> all;
  const auto add = [&](Case c) {
    c.args.causal = causal;
    all.push_back(c);
  };
  Case c;
  c.args = draw_of({1});
  add(c);
  c = {};
  c.T = 70, c.S = 130, c.d = 16, c.dv = 7;
  c.args = draw_of({70, 30, 12, 5, 1}, 0.0, 1e-3);
  add(c);
  c = {};
  c.B = 2, c.H = 2, c.T = 20, c.S = 66, c.d = 5, c.dv = 64;
  c.args = draw_of({9, 4, 4}, 0.7);
  c.key_mask = c.query_mask = c.per_head = c.strided = true;
  add(c);
  c.T = 66, c.S = 20, c.blind = true, c.strided = false;
  c.args.floor = 0.9;
  add(c);
  c = {};
  c.T = 67, c.S = 67, c.d = 64, c.dv = 65;
  c.args = draw_of({}, 0.4);
  add(c);
  c = {};
  c.T = 3, c.S = 5, c.d = 70, c.dv = 8;
  c.args = draw_of({70, 2}, 0.3);
  add(c);
  c = {};
  c.T = 5, c.S = 9;
  c.args = draw_of({});
  add(c);
  c = {};
  c.T = 66, c.S = 70, c.d = 64, c.dv = 64;
  c.args = draw_of(kGeometric, 0.0, 1e-3);
  add(c);
  c = {};
  c.T = 9, c.S = 12, c.d = 4, c.dv = 12;
  c.args = draw_of(std::vector<int64_t>(40, 3), 0.5);
  add(c);
  return all;
}

TEST_CASE("cuda rmfa: the CPU's results, not causal") {
  for (const Case& c : cases(false)) check_case(c, kExact);
}

TEST_CASE("cuda rmfa: the CPU's results, causal") {
  for (const Case& c : cases(true)) check_case(c, kExact);
  Case c;
  c.T = 200, c.S = 230, c.d = 4, c.dv = 3, c.key_mask = true;
  c.args = draw_of({3, 1}, 0.0, 1e-3);
  c.args.causal = true;
  check_case(c, kExact);
}

TEST_CASE("cuda rmfa: empty tensors and sequences of many ranges") {
  for (const bool causal : {false, true}) {
    Case c;
    c.args = draw_of({4, 2}, 0.0, 1e-3);
    c.args.causal = causal;
    c.T = 0, c.S = 3;
    check_case(c, kExact);
    c.T = 3, c.S = 0;
    check_case(c, kExact);
    c.B = 0, c.S = 3;
    check_case(c, kExact);
  }
}

TEST_CASE("cuda rmfa: sizes about the tiles, masks and floors in turn") {
  const std::vector<std::vector<int64_t>> draws = {
      {7}, {70}, {33, 20, 9, 2, 1}, {64, 64}, {1, 1, 1, 1, 1, 1}, {}};
  uint32_t i = 0;
  for (const int64_t T : {1, 2, 63, 64, 65}) {
    for (const int64_t S : {1, 5, 64, 127, 130}) {
      for (const bool causal : {false, true}) {
        ++i;
        Case c;
        c.B = 1 + i / 3 % 2, c.H = 1 + i / 2 % 2;
        c.T = T, c.S = S, c.d = i % 3 == 0 ? 5 : 16, c.dv = i % 5 == 0 ? 64 : 7;
        c.args = draw_of(draws[i / 2 % draws.size()], i % 4 < 2 ? 0.6 : 0.0, i % 7 < 3 ? 0.5 : 0.0);
        c.args.causal = causal;
        c.key_mask = i % 3 < 2, c.query_mask = i % 5 < 2, c.blind = c.key_mask && i % 11 == 0;
        c.per_head = i % 2 == 0, c.strided = i % 7 < 4;
        check_case(c, kExact);
      }
    }
  }
}

TEST_CASE("cuda rmfa: the same bits in any order of the threads") {
  Case c;
  c.H = 2, c.T = 70, c.S = 80, c.d = 6, c.dv = 5, c.key_mask = true;
  c.args = draw_of({20, 9, 3}, 0.5, 1e-3);
  for (const DType dtype : {DType::float32, DType::bfloat16}) {
    for (const bool causal : {false, true}) {
      c.args.causal = causal;
      const Operands x = on_device(make_operands(c), dtype);
      same_in_any_order([&] {
        const Results r = run(x, c.args, true);
        std::vector<double> all;
        for (const Tensor& t : {r.out, r.den, r.stats, r.dq, r.dk, r.dv}) {
          const auto values = t.to(kCpu).to_vector<double>();
          all.insert(all.end(), values.begin(), values.end());
        }
        return Tensor::from_values(all, {static_cast<int64_t>(all.size())}, DType::float64);
      });
    }
  }
}

TEST_CASE("cuda rmfa: bfloat16, and float32 on tensor cores, to their rounding") {
  Case c;
  c.T = 30, c.S = 70, c.d = 16, c.dv = 16;
  c.args = draw_of({20, 8, 2}, 0.5, 1e-3);
  for (const bool causal : {false, true}) {
    c.args.causal = causal;
    check_case(c, 2e-2, DType::bfloat16);
    cuda::set_math_mode(cuda::MathMode::tf32);
    check_case(c, 2e-3);
    cuda::set_math_mode(cuda::MathMode::bf16);
    check_case(c, 2e-2);
    cuda::set_math_mode(cuda::MathMode::exact);
  }
}

// A draw in memory for larger ones: NaN beyond, and the layout beside it.
struct Place {
  Tensor omega, weight, layout;

  Place(const Case& c, int64_t width, int64_t features, DType dtype)
      : omega(Tensor::empty(c.per_head ? Shape{c.H, c.d, width} : Shape{c.d, width}, dtype, kGpu)),
        weight(Tensor::empty({features}, dtype, kGpu)),
        layout(Tensor::empty({kRmfaLayout}, DType::float64, kGpu)) {}

  void put(const Operands& x, const RmfaArgs& args) const {
    const double nothing = std::numeric_limits<double>::quiet_NaN();
    omega.fill(nothing);
    weight.fill(nothing);
    omega.slice(omega.rank() - 1, 0, x.omega.size(-1)).copy_from(x.omega);
    weight.slice(0, 0, x.weight.size(0)).copy_from(x.weight);
    std::vector<double> values{args.constant, args.linear, 1.0};
    values.insert(values.end(), args.levels.begin(), args.levels.end());
    values.resize(kRmfaLayout, 0.0);
    layout.copy_from(Tensor::from_vector(values));
  }
};

TEST_CASE("cuda rmfa: a recorded call follows the draw, whatever its layout") {
  const std::vector<std::vector<int64_t>> draws = {
      {33, 20, 9, 2, 1}, {70, 60, 60, 60, 10}, {}, {1}, std::vector<int64_t>(40, 6), {70, 1}};
  constexpr int64_t width = 260, features = 70;  // the second draw's: nothing to spare
  uint32_t i = 0;
  for (const DType dtype : {DType::float32, DType::bfloat16}) {
    for (const bool causal : {false, true}) {
      for (const double linear : {0.0, 0.5}) {
        Case c;
        c.B = 1 + i % 2, c.H = 2, c.T = 66, c.S = 70, c.d = 6, c.dv = 5;
        c.key_mask = i % 3 == 0, c.per_head = ++i % 2 == 0;
        c.args.floor = 1e-3;
        const Place place(c, width, features, dtype);
        const auto draw = [&](const std::vector<int64_t>& levels, double shift) {
          Case one = c;
          one.args = draw_of(levels, linear > 0 ? linear + shift : 0.0, 1e-3);
          one.args.constant += shift;
          one.args.causal = causal;
          return one;
        };
        const Case first = draw(draws[0], 0.0);
        Operands x = on_device(make_operands(first), dtype);
        place.put(x, first.args);
        x.omega = place.omega, x.weight = place.weight;
        RmfaArgs args = first.args;
        args.layout = place.layout;
        run(x, args, true);
        Results replayed;
        const StepGraph graph(kGpu, [&] { replayed = run(x, args, true); });
        double shift = 0.0;
        for (const auto& levels : draws) {
          CAPTURE(levels.size());
          CAPTURE(causal);
          CAPTURE(linear);
          const Case now = draw(levels, shift += 0.125);
          const Operands exact = make_operands(now);
          place.put(on_device(exact, dtype), now.args);
          graph.replay({});
          args = now.args;
          args.layout = place.layout;
          const Results eager = run(x, args, true);
          // The cut of an exact draw may differ, and with it the order of the sums.
          const Results wanted =
              run(converted(converted(exact, dtype), DType::float64), now.args, true);
          for (Tensor Results::*member : {&Results::out, &Results::den, &Results::stats,
                                          &Results::dq, &Results::dk, &Results::dv}) {
            CHECK(same_bits(replayed.*member, eager.*member));
            if (member == &Results::stats) continue;
            CHECK(difference((eager.*member).to(kCpu), wanted.*member) <=
                  (dtype == DType::float32 ? 1e-4 : 0.2));
          }
        }
      }
    }
  }
}

TEST_CASE("rmfa: the composite cannot be recorded for draws to come, and says so") {
  Case c;
  c.d = 4;
  c.args = draw_of({4, 1});
  const Operands x = on_device(make_operands(c), DType::float32);
  RmfaArgs args = c.args;
  const Unfused composites;
  const auto call = [&] {
    return rmfa(Variable(x.q), Variable(x.k), Variable(x.v), {}, x.omega, x.weight, args).value();
  };
  const Tensor alone = call();
  args.layout = Tensor::zeros({kRmfaLayout}, DType::float64, kGpu);
  CHECK(same_bits(call(), alone));
  CHECK_FALSE(StepGraph::recording());
  CHECK_THROWS_WITH_AS(StepGraph(kGpu,
                                 [&] {
                                   CHECK(StepGraph::recording());
                                   call();
                                 }),
                       doctest::Contains("[rmfa] the composite"), Error);
  CHECK_FALSE(StepGraph::recording());
  args.layout = Tensor();
  const StepGraph fixed(kGpu, [&] { call(); });
}

TEST_CASE("cuda rmfa: what the kernel refuses goes to the composite") {
  Case c;
  c.args = draw_of({4});
  const auto supports = [&](DType dtype, int64_t d) {
    c.d = d;
    const Operands x = on_device(make_operands(c), dtype);
    return kernels::rmfa_forward.supports(kGpu, {.q = x.q,
                                                 .k = x.k,
                                                 .v = x.v,
                                                 .key_valid = x.key_valid,
                                                 .query_valid = x.query_valid,
                                                 .omega = x.omega,
                                                 .weight = x.weight,
                                                 .args = c.args});
  };
  CHECK(supports(DType::float32, 128).ok);
  CHECK(supports(DType::bfloat16, 5).ok);
  CHECK_FALSE(supports(DType::float64, 5).ok);
  CHECK_FALSE(supports(DType::float32, 129).ok);
}

}  // namespace
}  // namespace macgrad::testing
