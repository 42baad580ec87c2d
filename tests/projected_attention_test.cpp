// The op projected_attention: linear_attention() on projected_features() over lengths, masks,
// strides and options, values, gradients and statistics; extreme magnitudes; what it keeps between
// its kernels; a projection matrix that is overwritten; errors. Shape letters:
// autograd/projected_attention.h.
#include "macgrad/autograd/projected_attention.h"

#include <doctest/doctest.h>

#include <cmath>
#include <limits>
#include <random>

#include "macgrad/autograd/engine.h"
#include "macgrad/autograd/fused.h"
#include "macgrad/autograd/ops.h"
#include "macgrad/core/allocator.h"
#include "macgrad/tests/errors.h"
#include "macgrad/tests/op_cases.h"
#include "macgrad/tests/padding.h"

namespace macgrad::testing {
namespace {

using Doubles = std::vector<double>;

struct Case {
  int64_t B = 2, H = 2, T = 5, S = 5, d = 4, dv = 3, m = 6;
  ProjectedAttentionArgs args;
  bool causal = false, weighted = false, per_head = false;
  bool masked = false;   // random keys and queries, with NaN there; batch 0 without a key
  bool strided = false;  // views of (B, n, H, columns)
  double size = 0.5;     // standard deviation of the rows

  std::string text() const {
    return fmt::format(
        "B {} H {} T {} S {} d {} dv {} m {} trigonometric {} causal {} weighted {} per head {} "
        "masked {} strided {} floor {}",
        B, H, T, S, d, dv, m, args.function == ProjectionFunction::trigonometric, causal, weighted,
        per_head, masked, strided, args.floor);
  }
};

struct Operands {
  Variable q, k, v, log_weight, grad;
  Tensor omega;
  AttentionMask mask;

  Variables inputs() const {
    return log_weight.defined() ? Variables{q, k, v, log_weight} : Variables{q, k, v};
  }
};

Operands make_operands(const Case& c, DType dtype) {
  std::mt19937 random(7);
  std::normal_distribution<double> normal;
  const auto draw = [&](int64_t n, double size) {
    Doubles x(static_cast<size_t>(n));
    for (double& e : x) e = size * normal(random);
    return x;
  };
  const auto valid = [&](int64_t n, bool none_in_first) {
    std::vector<uint8_t> all(static_cast<size_t>(c.B * n), 1);
    for (size_t i = 0; c.masked && i < all.size(); ++i)
      all[i] = random() % 4 != 0 && !(none_in_first && static_cast<int64_t>(i) < n);
    return all;
  };
  const auto key_valid = valid(c.S, true), query_valid = valid(c.T, false);
  const auto rows = [&](int64_t n, int64_t columns, double size,
                        const std::vector<uint8_t>* shown) {
    Doubles x = draw(c.B * c.H * n * columns, size);
    if (shown) fill_hidden_rows(x, *shown, c.B, c.H, n, columns);
    const Tensor plain = Tensor::from_values(x, Shape{c.B, c.H, n, columns}, dtype);
    return Variable(c.strided ? plain.transpose(1, 2).contiguous().transpose(1, 2) : plain, true);
  };
  Operands o;
  o.q = rows(c.T, c.d, c.size, &query_valid);
  o.k = rows(c.S, c.d, c.size, &key_valid);
  o.v = rows(c.S, c.dv, 1.0, &key_valid);
  o.grad = rows(c.T, c.dv, 1.0, nullptr);
  if (c.weighted)
    o.log_weight =
        Variable(Tensor::from_vector(draw(c.B * c.H * c.S, 1.0), Shape{c.B, c.H, c.S}), true);
  const int64_t heads = c.per_head ? c.H : 1;
  o.omega = Tensor::from_values(draw(heads * c.d * c.m, 1.0), Shape{heads, c.d, c.m}, dtype);
  if (!c.per_head) o.omega = o.omega.select(0, 0);
  o.mask.causal = c.causal;
  const auto bools = [&](const std::vector<uint8_t>& shown, int64_t n) {
    return Tensor::from_values(Doubles(shown.begin(), shown.end()), {c.B, n}, DType::boolean);
  };
  if (c.masked) {
    o.mask.key_valid = bools(key_valid, c.S);
    o.mask.query_valid = bools(query_valid, c.T);
  }
  return o;
}

struct Result {
  Tensors values;  // output and gradients of q, k, v and the log-weight
  DenominatorStatistics statistics;
};

Result finish(const Operands& o, const Variable& out, const Tensor& statistics) {
  Result r{{out.value()}, read_statistics(statistics)};
  REQUIRE(statistics.defined());  // the kernel ran
  for (const Variable& g : grad({out}, o.inputs(), {o.grad})) r.values.push_back(g.value());
  return r;
}

Result fused(const Case& c, DType dtype) {
  const Operands o = make_operands(c, dtype);
  Tensor statistics;
  const Variable out =
      projected_attention(o.q, o.k, o.v, o.log_weight, o.mask, o.omega, c.args, &statistics);
  return finish(o, out, statistics);
}

Result on_features(const Case& c, DType dtype) {
  const Operands o = make_operands(c, dtype);
  LinearAttentionArgs args;
  args.log_features = c.args.function == ProjectionFunction::exponential;
  args.floor = c.args.floor;
  const auto features = [&](const Variable& x, const Tensor& valid) {
    return projected_features(without_invalid(x, valid), o.omega, c.args);
  };
  Tensor statistics;
  const Variable out =
      linear_attention(features(o.q, o.mask.query_valid), features(o.k, o.mask.key_valid), o.v,
                       o.log_weight, o.mask, args, &statistics);
  return finish(o, out, statistics);
}

/// Largest difference over the largest magnitude of the reference (1 at least).
double error(const Tensor& x, const Tensor& reference) {
  const Doubles a = x.to_vector<double>(), b = reference.to_vector<double>();
  REQUIRE(a.size() == b.size());
  double size = 1.0, worst = 0.0;
  for (const double e : b) size = std::max(size, std::abs(e));
  for (size_t i = 0; i < a.size(); ++i) {
    const double difference = std::abs(a[i] - b[i]);
    if (!(difference <= worst)) worst = difference;
    if (std::isnan(difference)) return std::numeric_limits<double>::infinity();
  }
  return worst / size;
}

void check_case(const Case& c) {
  INFO(c.text());
  const Result reference = on_features(c, DType::float64), r = fused(c, DType::float64);
  const Result narrow = fused(c, DType::float32);
  for (size_t i = 0; i < reference.values.size(); ++i) {
    CAPTURE(i);
    CHECK(error(r.values[i], reference.values[i]) < 1e-12);
    CHECK(error(narrow.values[i], reference.values[i]) < 3e-5);
  }
  CHECK(r.statistics.rows == reference.statistics.rows);
  CHECK(r.statistics.floored == reference.statistics.floored);
  CHECK(r.statistics.recomputed == reference.statistics.recomputed);
  if (reference.statistics.rows > 0)
    CHECK(r.statistics.smallest_ratio ==
          doctest::Approx(reference.statistics.smallest_ratio).epsilon(1e-11));
}

constexpr ProjectionFunction kFunctions[] = {ProjectionFunction::exponential,
                                             ProjectionFunction::trigonometric};

TEST_CASE("projected attention equals linear attention on the features: lengths and masks") {
  unsigned turn = 0;
  for (const ProjectionFunction function : kFunctions)
    for (const bool causal : {false, true})
      for (const int64_t T : {1, 5, 64, 131})
        for (const int64_t S : {1, 2, 65, 130, 257}) {
          Case c;
          c.T = T;
          c.S = S;
          c.args.function = function;
          c.args.scale = 0.5;
          c.causal = causal;
          c.weighted = turn % 2 == 0;
          c.per_head = turn % 3 == 0;
          c.masked = turn % 4 < 2;
          c.strided = turn % 5 < 3;
          ++turn;
          check_case(c);
        }
}

TEST_CASE("projected attention equals linear attention on the features: widths and floors") {
  for (const ProjectionFunction function : kFunctions)
    for (const bool causal : {false, true}) {
      Case base;
      base.T = base.S = 70;
      base.args.function = function;
      base.causal = causal;
      const auto with = [&](auto&& change) {
        Case c = base;
        change(c);
        check_case(c);
      };
      with([](Case& c) { c.d = 1, c.m = 1, c.dv = 1, c.masked = true; });
      with([](Case& c) { c.d = 33, c.m = 130, c.dv = 80, c.args.scale = 0.1, c.weighted = true; });
      with([](Case& c) { c.B = 1, c.H = 5, c.dv = 71, c.m = 3, c.per_head = true; });
      if (function == ProjectionFunction::trigonometric)
        with([](Case& c) { c.args.floor = 0.6, c.weighted = true, c.masked = true; });
    }
}

TEST_CASE(
    "projected attention of large rows: terms are summed again in log space, as on features") {
  Case c;
  c.T = c.S = 150;
  c.size = 20.0;
  c.causal = true;
  const Result reference = on_features(c, DType::float64), r = fused(c, DType::float64);
  CHECK(r.statistics.recomputed > 10);
  CHECK(r.statistics.recomputed == reference.statistics.recomputed);
  for (size_t i = 0; i < reference.values.size(); ++i)
    CHECK(error(r.values[i], reference.values[i]) < 1e-11);
  c.causal = false;
  CHECK(fused(c, DType::float32).statistics.smallest_ratio >= 1.0 - 1e-5);
}

TEST_CASE("projected attention: the composite keeps NaN at hidden rows from every gradient") {
  for (const ProjectionFunction function : kFunctions)
    for (const bool causal : {false, true}) {
      Case c;
      c.args.function = function;
      c.T = c.S = 9;
      c.causal = causal;
      c.masked = c.weighted = true;
      const Result r = fused(c, DType::float64);
      const Operands o = make_operands(c, DType::float64);
      // Rows of keys that their weight hides are hidden as well.
      const Unfused unfused;
      const Variable out =
          projected_attention(o.q, o.k, o.v, o.log_weight, o.mask, o.omega, c.args);
      CHECK(error(out.value(), r.values[0]) < 1e-12);
      const Variables g = grad({out}, o.inputs(), {o.grad});
      for (size_t i = 0; i < g.size(); ++i) CHECK(error(g[i].value(), r.values[i + 1]) < 1e-11);
    }
}

TEST_CASE("projected attention: empty sizes") {
  for (const ProjectionFunction function : kFunctions)
    for (const int which : {0, 1, 2, 3})
      for (const bool causal : {false, true}) {
        Case c;
        c.args.function = function;
        c.causal = causal;
        (which == 0 ? c.B : which == 1 ? c.T : which == 2 ? c.S : c.dv) = 0;
        CAPTURE(c.text());
        const Operands o = make_operands(c, DType::float32);
        const Variable out = projected_attention(o.q, o.k, o.v, {}, o.mask, o.omega, c.args);
        CHECK(out.shape() == Shape{c.B, c.H, c.T, c.dv});
        CHECK(error(out.value(), Tensor::zeros(out.shape())) == 0.0);
        for (const Variable& g : grad({out}, o.inputs(), {o.grad}))
          CHECK(error(g.value(), Tensor::zeros(g.shape())) == 0.0);
      }
}

TEST_CASE("projected attention: bfloat16 is float32 rounded") {
  const Operands o = make_operands({}, DType::bfloat16);
  const auto wide = [](const Variable& x) { return Variable(x.value().to(DType::float32)); };
  const Variable got = projected_attention(o.q, o.k, o.v, {}, {}, o.omega, {});
  const Variable expected =
      projected_attention(wide(o.q), wide(o.k), wide(o.v), {}, {}, o.omega.to(DType::float32), {});
  CHECK(got.dtype() == DType::bfloat16);
  CHECK(max_abs_difference(got.value(), expected.value().to(DType::bfloat16)) == 0.0);
}

TEST_CASE("projected attention: the output does not depend on whether a state is kept") {
  Case c;
  c.T = c.S = 300;
  const Operands o = make_operands(c, DType::float32);
  const auto out = [&] { return projected_attention(o.q, o.k, o.v, {}, {}, o.omega, c.args); };
  const Tensor kept = out().value();
  const NoGrad off;
  CHECK(max_abs_difference(out().value(), kept) == 0.0);
}

TEST_CASE("projected attention keeps no features: memory besides operands and results") {
  const Threads one(1);  // scratch memory grows with the threads
  Case c;
  c.B = 4;
  c.H = 4;
  c.T = c.S = 1024;
  c.d = c.dv = 32;
  c.m = 64;
  for (const bool causal : {false, true}) {
    c.causal = causal;
    const Operands o = make_operands(c, DType::float32);
    const size_t before = memory_stats(kCpu).current_bytes;
    reset_peak(kCpu);
    {
      const Variable out = projected_attention(o.q, o.k, o.v, {}, o.mask, o.omega, c.args);
      const Variables g = grad({out}, o.inputs(), {o.grad});
    }
    const auto extra = static_cast<double>(memory_stats(kCpu).peak_bytes - before);
    // The output and three gradients; the features of one side would be half as many bytes.
    const auto results = 4.0 * static_cast<double>(o.q.value().bytes());
    CHECK(extra < 1.45 * results);
  }
}

TEST_CASE("projected attention: a projection matrix overwritten before backward is an error") {
  for (const bool fuse : {true, false}) {
    const Operands o = make_operands({}, DType::float64);
    Variable out;
    if (fuse) {
      out = projected_attention(o.q, o.k, o.v, {}, {}, o.omega, {});
    } else {
      const Unfused unfused;
      out = projected_attention(o.q, o.k, o.v, {}, {}, o.omega, {});
    }
    o.omega.fill(1.0);
    const std::string text = error_of([&] { grad({out}, {o.q}, {o.grad}); });
    CHECK(contains(text, "overwritten"));
    if (fuse) CHECK(contains(text, "projection matrix"));
  }
}

TEST_CASE("projected attention: operands that do not fit are errors") {
  const Operands o = make_operands({}, DType::float64);
  const auto text = [&](const Tensor& omega, ProjectedAttentionArgs args = {}) {
    return error_of([&] { projected_attention(o.q, o.k, o.v, {}, {}, omega, args); });
  };
  CHECK(contains(text({}), "omega must be (d, m)"));
  CHECK(contains(text(Tensor::zeros({3, 6}, DType::float64)), "does not fit"));
  CHECK(contains(text(Tensor::zeros({4, 0}, DType::float64)), "m > 0"));
  CHECK(contains(text(Tensor::zeros({3, 4, 6}, DType::float64)), "does not fit"));
  CHECK(contains(text(Tensor::zeros({4, 6})), "dtypes differ"));
  CHECK(contains(text(o.omega, {.floor = 0.5}), "use 0"));
  CHECK(contains(text(o.omega, {.function = ProjectionFunction::trigonometric, .floor = -1.0}),
                 "must be a finite number"));
}

}  // namespace
}  // namespace macgrad::testing
