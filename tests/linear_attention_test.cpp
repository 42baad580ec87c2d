// The op linear_attention: a naive O(T·S) reference in log space over shapes, masks, strides and
// options, values and gradients; recurrences of gates; published figures; extreme magnitudes;
// causality, padding and errors. Shape letters: B batch, H heads, T queries, S keys, M features,
// dv values.
#include "macgrad/autograd/linear_attention.h"

#include <doctest/doctest.h>
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>

#include "macgrad/autograd/engine.h"
#include "macgrad/autograd/fused.h"
#include "macgrad/autograd/ops.h"
#include "macgrad/tests/errors.h"
#include "macgrad/tests/padding.h"

namespace macgrad::testing {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kInfinity = std::numeric_limits<double>::infinity();

using Doubles = std::vector<double>;

struct Case {
  int64_t B = 1, H = 2, T = 5, S = 5, M = 4, dv = 3;
  LinearAttentionArgs args;
  bool causal = false;
  bool weighted = false;
  int key_mask = 0;    // 0 none, 1 random, 2 random and batch 0 all padding
  int query_mask = 0;  // 0 none, 1 random
  bool strided = false;
  double scale = 1.0;       // standard deviation of log-features
  double log_weight = 1.0;  // standard deviation of ℓ
  double growth = 0.0;      // of ℓ per position
  double zeros = 0.0;       // share of log-features that are -inf
};

struct Data {
  Doubles q, k, v, l, grad;
  std::vector<uint8_t> key_valid, query_valid;
};

Data make_data(const Case& c, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<double> normal;
  std::uniform_real_distribution<double> uniform;
  Data data;
  const auto draw = [&](int64_t n, auto&& f) {
    Doubles x(static_cast<size_t>(n));
    for (double& e : x) e = f();
    return x;
  };
  const auto feature = [&] {
    // Plain features are mostly positive, so that no denominator is near 0.
    if (!c.args.log_features) return c.scale * (1.5 + 0.5 * normal(random));
    const double value = c.scale * normal(random);
    return c.zeros > 0 && uniform(random) < c.zeros ? -kInfinity : value;
  };
  data.q = draw(c.B * c.H * c.T * c.M, feature);
  data.k = draw(c.B * c.H * c.S * c.M, feature);
  data.v = draw(c.B * c.H * c.S * c.dv, [&] { return normal(random); });
  data.l = draw(c.B * c.H * c.S, [&] { return c.log_weight * normal(random); });
  for (size_t i = 0; i < data.l.size(); ++i)
    data.l[i] += c.growth * static_cast<double>(i % static_cast<size_t>(c.S));
  data.grad = draw(c.B * c.H * c.T * c.dv, [&] { return normal(random); });
  const auto mask = [&](int mode, int64_t n) {
    std::vector<uint8_t> valid(static_cast<size_t>(c.B * n), 1);
    for (size_t i = 0; i < valid.size(); ++i) {
      if (mode > 0) valid[i] = random() % 4 != 0;
      if (mode == 2 && static_cast<int64_t>(i) < n) valid[i] = 0;
    }
    return valid;
  };
  data.key_valid = mask(c.key_mask, c.S);
  data.query_valid = mask(c.query_mask, c.T);
  const auto poison = [&](std::vector<double>& x, const std::vector<uint8_t>& valid, int64_t n,
                          int64_t columns) {
    testing::fill_hidden_rows(x, valid, c.B, c.H, n, columns);
  };
  poison(data.q, data.query_valid, c.T, c.M);
  poison(data.k, data.key_valid, c.S, c.M);
  poison(data.v, data.key_valid, c.S, c.dv);
  poison(data.l, data.key_valid, c.S, 1);
  return data;
}

struct Result {
  Doubles out, dq, dk, dv, dl;
  DenominatorStatistics statistics;
  bool fused = false;
};

/// Pairs of queries and keys one by one: weights e^(log K_ij + ℓ_j) over the largest of their row.
Result naive(const Case& c, const Data& data) {
  Result r;
  const auto size = [](int64_t n) { return static_cast<size_t>(n); };
  r.out.assign(data.grad.size(), 0.0);
  r.dq.assign(data.q.size(), 0.0);
  r.dk.assign(data.k.size(), 0.0);
  r.dv.assign(data.v.size(), 0.0);
  r.dl.assign(data.l.size(), 0.0);
  for (int64_t bh = 0; bh < c.B * c.H; ++bh) {
    const int64_t b = bh / c.H;
    for (int64_t i = 0; i < c.T; ++i) {
      if (!data.query_valid[size(b * c.T + i)]) continue;
      const double* q = data.q.data() + (bh * c.T + i) * c.M;
      struct Seen {
        int64_t key;
        double sign, log;       // of K_ij·e^(ℓ_j)
        double log_weight = 0;  // ℓ_j
        double a = 0;           // K_ij·e^(ℓ_j - shift)
      };
      std::vector<Seen> seen;
      for (int64_t j = 0; j < c.S; ++j) {
        if (!data.key_valid[size(b * c.S + j)] || (c.causal && j > i + c.S - c.T)) continue;
        const double l = c.weighted ? data.l[size(bh * c.S + j)] : 0.0;
        if (l == -kInfinity) continue;
        const double* k = data.k.data() + (bh * c.S + j) * c.M;
        Seen one{j, 1.0, 0.0, l};
        if (c.args.log_features) {
          double top = c.args.constant > 0 ? std::log(c.args.constant) : -kInfinity, sum = 0;
          for (int64_t m = 0; m < c.M; ++m) top = std::max(top, q[m] + k[m]);
          if (c.args.constant > 0) sum += std::exp(std::log(c.args.constant) - top);
          for (int64_t m = 0; m < c.M; ++m) sum += std::exp(q[m] + k[m] - top);
          one.log = top + std::log(sum) + l;
        } else {
          double value = c.args.constant;
          for (int64_t m = 0; m < c.M; ++m) value += q[m] * k[m];
          one.sign = value < 0 ? -1.0 : 1.0;
          one.log = std::log(std::abs(value)) + l;
        }
        seen.push_back(one);
      }
      if (seen.empty()) continue;
      r.statistics.rows += 1;
      double shift = -kInfinity, den = 0, weights = 0;
      for (const Seen& s : seen)
        shift = std::max(shift, c.args.log_features ? s.log : s.log_weight);
      if (c.args.normaliser == Normaliser::none) shift = 0.0;
      for (Seen& s : seen) {
        s.a = s.sign * std::exp(s.log - shift);
        den += s.a;
        weights += std::exp(s.log_weight - shift);
      }
      const double bound = c.args.floor * weights;
      const bool floored = c.args.floor > 0 && den < bound;
      r.statistics.floored += c.args.floor > 0 ? floored : !c.args.log_features && den <= 0;
      const bool quotient = c.args.normaliser == Normaliser::quotient;
      const double scale = quotient ? 1.0 / (floored ? bound : den) : c.args.factor;
      if (quotient && !c.args.log_features)
        r.statistics.smallest_ratio = std::min(r.statistics.smallest_ratio, den / weights);
      double* out = &r.out[size((bh * c.T + i) * c.dv)];
      const double* g = &data.grad[size((bh * c.T + i) * c.dv)];
      double dot = 0;
      for (int64_t e = 0; e < c.dv; ++e) {
        for (const Seen& s : seen)
          out[e] += scale * s.a * data.v[size((bh * c.S + s.key) * c.dv + e)];
        dot += g[e] * out[e];
      }
      for (const Seen& s : seen) {
        const int64_t at = bh * c.S + s.key;
        double slope = quotient && !floored ? -dot : 0.0;
        for (int64_t e = 0; e < c.dv; ++e) {
          slope += g[e] * data.v[size(at * c.dv + e)];
          r.dv[size(at * c.dv + e)] += scale * s.a * g[e];
        }
        r.dl[size(at)] += scale * s.a * slope;
        // The floor follows the weights.
        if (floored) r.dl[size(at)] -= scale * dot * c.args.floor * std::exp(s.log_weight - shift);
        const double* k = data.k.data() + at * c.M;
        for (int64_t m = 0; m < c.M; ++m) {
          double dq = 0, dk = 0;
          if (c.args.log_features) {
            dq = dk = scale * slope * std::exp(q[m] + k[m] + s.log_weight - shift);
          } else {
            const double w = scale * slope * std::exp(s.log_weight - shift);
            dq = w * k[m];
            dk = w * q[m];
          }
          r.dq[size((bh * c.T + i) * c.M + m)] += dq;
          r.dk[size(at * c.M + m)] += dk;
        }
      }
    }
  }
  return r;
}

AttentionMask mask_of(const Case& c, const Data& data) {
  AttentionMask mask;
  mask.causal = c.causal;
  const auto bools = [&](const std::vector<uint8_t>& valid, int64_t n) {
    return Tensor::from_values(Doubles(valid.begin(), valid.end()), {c.B, n}, DType::boolean);
  };
  if (c.key_mask) mask.key_valid = bools(data.key_valid, c.S);
  if (c.query_mask) mask.query_valid = bools(data.query_valid, c.T);
  return mask;
}

Result run(const Case& c, const Data& data, DType dtype, bool backward = true) {
  // (B, H, n, columns), in memory as it stands or as a head-split view of (B, n, H, columns).
  const auto fill = [&](const Doubles& x, int64_t n, int64_t columns) {
    const Tensor plain = Tensor::from_values(x, Shape{c.B, c.H, n, columns}, dtype);
    return c.strided ? plain.transpose(1, 2).contiguous().transpose(1, 2) : plain;
  };
  const Variable q(fill(data.q, c.T, c.M), backward), k(fill(data.k, c.S, c.M), backward);
  const Variable v(fill(data.v, c.S, c.dv), backward);
  Variable l;
  if (c.weighted) l = Variable(Tensor::from_vector(data.l, Shape{c.B, c.H, c.S}), backward);
  Tensor statistics;
  const Variable out = linear_attention(q, k, v, l, mask_of(c, data), c.args, &statistics);
  Result r;
  r.fused = statistics.defined();
  r.statistics = read_statistics(statistics);
  r.out = out.value().to_vector<double>();
  if (!backward) return r;
  Variables inputs{q, k, v};
  if (c.weighted) inputs.push_back(l);
  const Variables g = grad({out}, inputs, {Variable(fill(data.grad, c.T, c.dv))});
  r.dq = g[0].value().to_vector<double>();
  r.dk = g[1].value().to_vector<double>();
  r.dv = g[2].value().to_vector<double>();
  r.dl = c.weighted ? g[3].value().to_vector<double>() : Doubles(data.l.size(), 0.0);
  return r;
}

/// Largest difference over the largest magnitude of the reference (1 at least); NaN counts as inf.
double error(const Doubles& x, const Doubles& reference) {
  REQUIRE(x.size() == reference.size());
  double size = 1.0, worst = 0.0;
  for (double e : reference) size = std::max(size, std::abs(e));
  for (size_t i = 0; i < x.size(); ++i) {
    const double difference = std::abs(x[i] - reference[i]);
    worst = std::isnan(difference) ? kInfinity : std::max(worst, difference);
  }
  return worst / size;
}

void check_equal(const Result& r, const Result& reference, double tolerance, bool weighted) {
  CHECK(error(r.out, reference.out) < tolerance);
  CHECK(error(r.dq, reference.dq) < tolerance);
  CHECK(error(r.dk, reference.dk) < tolerance);
  CHECK(error(r.dv, reference.dv) < tolerance);
  if (weighted) CHECK(error(r.dl, reference.dl) < tolerance);
}

std::string text(const Case& c) {
  return fmt::format(
      "B {} H {} T {} S {} M {} dv {} log {} weighted {} causal {} constant {} floor {} none {} "
      "masks {}{} strided {}",
      c.B, c.H, c.T, c.S, c.M, c.dv, c.args.log_features, c.weighted, c.causal, c.args.constant,
      c.args.floor, c.args.normaliser == Normaliser::none, c.key_mask, c.query_mask, c.strided);
}

void check_against_naive(const Case& c, unsigned seed) {
  INFO(text(c) << " seed " << seed);
  const Data data = make_data(c, seed);
  const Result reference = naive(c, data);
  const Result r = run(c, data, DType::float64);
  check_equal(r, reference, 1e-12, c.weighted);
  check_equal(run(c, data, DType::float32), reference, 3e-5, c.weighted);
  CHECK(r.statistics.rows == reference.statistics.rows);
  CHECK(r.statistics.floored == reference.statistics.floored);
  if (c.args.log_features) {
    // The key that has a feature's largest value contributes 1.
    if (!c.causal && c.args.normaliser == Normaliser::quotient)
      CHECK(r.statistics.smallest_ratio >= 1.0 - 1e-12);
  } else if (reference.statistics.smallest_ratio < kInfinity) {
    CHECK(r.statistics.smallest_ratio ==
          doctest::Approx(reference.statistics.smallest_ratio).epsilon(1e-10));
  }
}

TEST_CASE("linear attention equals the naive sum: lengths, features and log-features") {
  unsigned seed = 1;
  for (const bool log : {false, true})
    for (const bool causal : {false, true})
      for (const int64_t T : {1, 2, 63, 65, 130})
        for (const int64_t S : {1, 2, 64, 65, 130}) {
          Case c;
          c.B = 1 + seed % 2;
          c.T = T;
          c.S = S;
          c.M = 1 + seed % 6;
          c.args.log_features = log;
          c.args.constant = seed % 3 == 0 ? 0.5 : 0.0;
          c.causal = causal;
          c.weighted = seed % 2 == 0;
          c.key_mask = static_cast<int>(seed % 4) % 3;
          c.query_mask = seed % 5 == 0;
          c.strided = seed % 3 == 1;
          check_against_naive(c, seed++);
        }
}

TEST_CASE("linear attention equals the naive sum: options") {
  unsigned seed = 100;
  for (const bool log : {false, true})
    for (const bool causal : {false, true})
      for (const bool weighted : {false, true}) {
        Case base;
        base.B = 2;
        base.T = base.S = 70;
        base.M = 5;
        base.args.log_features = log;
        base.causal = causal;
        base.weighted = weighted;
        base.key_mask = 1;
        const auto with = [&](auto&& change) {
          Case c = base;
          change(c);
          check_against_naive(c, seed++);
        };
        with([](Case& c) { c.query_mask = 1, c.strided = true; });
        with([](Case& c) { c.args.constant = 0.75, c.key_mask = 2; });
        with([](Case& c) { c.M = 1, c.dv = 1; });
        with([](Case& c) { c.M = 130, c.dv = 7, c.T = 9; });
        with([](Case& c) { c.M = 300, c.dv = 66, c.S = 20; });
        with([](Case& c) { c.M = 0, c.args.constant = 2.0; });
        with([](Case& c) {
          c.args.normaliser = Normaliser::none;
          c.args.factor = -0.25;
          c.args.constant = 0.5;
        });
        if (log) {
          with([](Case& c) { c.zeros = 0.3, c.args.constant = 0.5; });
        } else {
          with([](Case& c) { c.args.floor = 10.0; });
        }
      }
}

TEST_CASE("floored denominators pass no gradient to features") {
  for (const bool causal : {false, true}) {
    Case c;
    c.T = c.S = 150;
    c.causal = causal;
    c.weighted = true;
    c.args.floor = 9.5;
    const Data data = make_data(c, 7);
    const Result reference = naive(c, data);
    CHECK(reference.statistics.floored > 10);
    CHECK(reference.statistics.floored < reference.statistics.rows - 10);
    check_equal(run(c, data, DType::float64), reference, 1e-12, true);
  }
}

// out_i = φ_q S_i / φ_q z_i with S_i = f_i S_{i-1} + u_i φ_k,i v_iᵀ, z_i likewise.
Doubles recurrence(const Case& c, const Data& data, const Doubles& keep, const Doubles& add) {
  Doubles out;
  const auto at = [](int64_t i) { return static_cast<size_t>(i); };
  for (int64_t h = 0; h < c.B * c.H; ++h) {
    Doubles state(at(c.M * (c.dv + 1)), 0.0);
    for (int64_t i = 0; i < c.T; ++i) {
      const auto n = at(h * c.T + i);
      Doubles num(at(c.dv + 1), 0.0);
      for (int64_t m = 0; m < c.M; ++m)
        for (int64_t e = 0; e <= c.dv; ++e) {
          double& s = state[at(m * (c.dv + 1) + e)];
          const double v = e < c.dv ? data.v[n * at(c.dv) + at(e)] : 1.0;
          s = keep[n] * s + add[n] * data.k[n * at(c.M) + at(m)] * v;
          num[at(e)] += data.q[n * at(c.M) + at(m)] * s;
        }
      for (int64_t e = 0; e < c.dv; ++e) out.push_back(num[at(e)] / num[at(c.dv)]);
    }
  }
  return out;
}

TEST_CASE("gates are key weights: RFA's gate and forget gates equal their recurrences") {
  Case c;
  c.B = 2;
  c.T = c.S = 150;
  c.M = 7;
  c.causal = c.weighted = true;
  Data data = make_data(c, 11);
  std::mt19937 random(12);
  std::uniform_real_distribution<double> uniform(0.05, 0.95);
  for (const bool forget : {false, true}) {
    Doubles gate(data.l.size()), add(data.l.size(), 1.0);
    for (size_t i = 0; i < gate.size(); ++i) {
      gate[i] = uniform(random);
      const bool first = i % static_cast<size_t>(c.S) == 0;
      const double before = first ? 0.0 : data.l[i - 1] - (forget ? 0.0 : std::log1p(-gate[i - 1]));
      data.l[i] = before - std::log(gate[i]);
      if (!forget) {
        add[i] = 1.0 - gate[i];
        data.l[i] += std::log(add[i]);
      }
    }
    const Result r = run(c, data, DType::float64);
    CHECK(error(r.out, recurrence(c, data, gate, add)) < 1e-12);
    check_equal(r, naive(c, data), 1e-12, true);
  }
}

// One head of 4 rows, d = 2, worked out in family figures: queries, keys, values, projections.
struct Worked {
  Doubles q{0.9, -0.4, 0.1, 0.7, -0.6, 0.5, 0.3, 1.1}, k{0.2, 0.8, -0.7, 0.3, 1, 0.4, 0.5, -0.9},
      v{1, -2, 0.5, 0, -1, 3, 2, 1}, omega{0.7, -1.2, -0.3, 0.5, 1.6, 0.4},
      gate{0.9, 0.6, 0.75, 0.5};

  /// Projections (1,1,4,3) of rows x/d^¼, of unit norm first if `unit`.
  Doubles projections(const Doubles& x, bool unit) const {
    Doubles u;
    for (size_t i = 0; i < 4; ++i) {
      const double norm = unit ? std::hypot(x[2 * i], x[2 * i + 1]) : 1.0;
      for (size_t m = 0; m < 3; ++m)
        u.push_back((x[2 * i] * omega[2 * m] + x[2 * i + 1] * omega[2 * m + 1]) / norm /
                    std::pow(2.0, 0.25));
    }
    return u;
  }
  Variable values() const { return Variable(Tensor::from_vector(v, {1, 1, 4, 2})); }
};

TEST_CASE("worked example: RFA with a gate on unit rows, causal") {
  const Worked w;
  const auto features = [&](const Doubles& x) {
    Doubles phi;
    const Doubles u = w.projections(x, /*unit=*/true);
    for (size_t i = 0; i < 4; ++i) {
      for (size_t m = 0; m < 3; ++m) phi.push_back(std::cos(u[3 * i + m]) / std::sqrt(3.0));
      for (size_t m = 0; m < 3; ++m) phi.push_back(std::sin(u[3 * i + m]) / std::sqrt(3.0));
    }
    return Variable(Tensor::from_vector(phi, {1, 1, 4, 6}));
  };
  Doubles l;
  double kept = 0;
  for (double g : w.gate) {
    kept += std::log(g);
    l.push_back(std::log(1 - g) - kept);
  }
  AttentionMask causal;
  causal.causal = true;
  const Variable out = linear_attention(features(w.q), features(w.k), w.values(),
                                        Variable(Tensor::from_vector(l, {1, 1, 4})), causal, {});
  CHECK(error(out.value().to_vector<double>(),
              {1, -2, 0.5937156, -0.3748623, 0.3499611, 0.2172674, 0.9341238, 1.0718663}) < 1e-7);
}

TEST_CASE("worked example: positive features on raw rows") {
  const Worked w;
  Doubles l;
  for (size_t i = 0; i < 4; ++i)
    l.push_back(-(w.k[2 * i] * w.k[2 * i] + w.k[2 * i + 1] * w.k[2 * i + 1]) / std::sqrt(2.0) / 2);
  const auto features = [&](const Doubles& x) {
    return Variable(Tensor::from_vector(w.projections(x, false), {1, 1, 4, 3}));
  };
  const Doubles expected = {0.4953283, 1.0780290, 0.3868054, 0.8695687,
                            0.5216504, 0.6099934, 0.3100824, 0.9277324};
  const Variable log_weight(Tensor::from_vector(l, {1, 1, 4}));
  const Variable of_logs = linear_attention(features(w.q), features(w.k), w.values(), log_weight,
                                            {}, {.log_features = true});
  CHECK(error(of_logs.value().to_vector<double>(), expected) < 1e-7);
  const Variable of_features =
      linear_attention(exp(features(w.q)), exp(features(w.k)), w.values(), log_weight, {}, {});
  CHECK(error(of_features.value().to_vector<double>(), expected) < 1e-7);
}

TEST_CASE("log-features of magnitude 1,000 and gates of 0.1 stay finite and right") {
  unsigned seed = 300;
  for (const bool causal : {false, true})
    for (const bool weighted : {false, true})
      for (const double scale : {40.0, 400.0}) {
        Case c;
        c.T = c.S = 256;
        c.M = 16;
        c.args.log_features = true;
        c.causal = causal;
        c.weighted = weighted;
        c.scale = scale;
        if (weighted) c.growth = -std::log(0.1);
        c.key_mask = weighted ? 1 : 0;
        INFO(text(c));
        const Data data = make_data(c, seed++);
        const Result reference = naive(c, data);
        const Result r = run(c, data, DType::float64);
        check_equal(r, reference, 1e-10, weighted);
        // The log-features themselves are rounded to 1e-5 in float32.
        check_equal(run(c, data, DType::float32), reference, 1e-3, weighted);
        const double share =
            static_cast<double>(r.statistics.recomputed) / static_cast<double>(r.statistics.rows);
        MESSAGE(text(c), ": share of rows summed again in log space ", share);
        if (causal)
          CHECK((share > 0.0 && share < (scale > 40 ? 0.6 : 0.3)));
        else
          CHECK(share == 0.0);
      }
  // Gates alone move no row out of range: their weights are relative to those a row sees.
  Case gated;
  gated.T = gated.S = 256;
  gated.args.log_features = gated.causal = gated.weighted = true;
  gated.growth = -std::log(0.1);
  CHECK(run(gated, make_data(gated, seed++), DType::float64).statistics.recomputed == 0);
  // Signed features with gates that span 590 units of ℓ.
  for (const bool causal : {false, true}) {
    Case c;
    c.T = c.S = 256;
    c.causal = causal;
    c.weighted = true;
    c.growth = -std::log(0.1);
    c.key_mask = c.query_mask = 1;
    check_against_naive(c, seed++);
  }
}

TEST_CASE("a key of log-weight -inf is hidden, a log-feature of -inf is 0") {
  for (const bool log : {false, true})
    for (const bool causal : {false, true}) {
      Case c;
      c.T = c.S = 70;
      c.weighted = true;
      c.causal = causal;
      c.args.log_features = log;
      Data data = make_data(c, 41);
      for (size_t i = 0; i < data.l.size(); ++i)
        if (i % 3 == 0) data.l[i] = -kInfinity;  // the first query sees no key when causal
      check_equal(run(c, data, DType::float64), naive(c, data), 1e-12, true);
    }
  Case c;
  c.args.log_features = true;
  Data data = make_data(c, 42), shorter = data;
  Case fewer = c;
  fewer.M = 3;
  shorter.q.clear();
  shorter.k.clear();
  for (Doubles Data::*side : {&Data::q, &Data::k})
    for (size_t i = 0; i < (data.*side).size(); ++i) {
      if (i % 4 == 1)
        (data.*side)[i] = side == &Data::q ? -kInfinity : (data.*side)[i];
      else
        (shorter.*side).push_back((data.*side)[i]);
    }
  CHECK(error(run(c, data, DType::float64).out, run(fewer, shorter, DType::float64).out) < 1e-14);
}

TEST_CASE("a later key changes no earlier row, padding changes nothing") {
  for (const bool log : {false, true}) {
    Case c;
    c.T = c.S = 100;
    c.args.log_features = log;
    c.causal = c.weighted = true;
    Data data = make_data(c, 51);
    const Result before = run(c, data, DType::float64);
    const int64_t changed = 70;
    for (int64_t h = 0; h < c.H; ++h)
      for (int64_t j = changed; j < c.S; ++j) {
        data.l[static_cast<size_t>(h * c.S + j)] += 3.0;
        for (int64_t m = 0; m < c.M; ++m) data.k[static_cast<size_t>((h * c.S + j) * c.M + m)] += 2;
      }
    const Result after = run(c, data, DType::float64);
    for (size_t i = 0; i < before.out.size(); ++i) {
      const auto row = static_cast<int64_t>(i) / c.dv % c.T;
      // Rows of one block share their reference, so they may differ in rounding.
      if (row < changed) CHECK(std::abs(after.out[i] - before.out[i]) < 1e-13);
    }

    c.causal = false;
    c.H = 1;
    Data padded = make_data(c, 52), plain = padded;
    Case shorter = c;
    shorter.S = 64;
    c.key_mask = 1;
    for (int64_t j = 0; j < c.S; ++j) padded.key_valid[static_cast<size_t>(j)] = j < shorter.S;
    plain.k.resize(static_cast<size_t>(shorter.S * c.M));
    plain.v.resize(static_cast<size_t>(shorter.S * c.dv));
    plain.l.resize(static_cast<size_t>(shorter.S));
    plain.key_valid.resize(static_cast<size_t>(shorter.S));
    CHECK(error(run(c, padded, DType::float64).out, run(shorter, plain, DType::float64).out) <
          1e-14);
  }
}

TEST_CASE("linear attention gives the same bits at any number of threads") {
  const int before = omp_get_max_threads();
  for (const bool log : {false, true})
    for (const bool causal : {false, true}) {
      Case c;
      c.B = 3;
      c.T = 200;
      c.S = 230;
      c.M = 33;
      c.args.log_features = log;
      c.args.constant = 0.5;
      c.causal = causal;
      c.weighted = true;
      c.key_mask = 1;
      c.scale = log ? 20 : 1;
      const Data data = make_data(c, 71);
      omp_set_num_threads(1);
      const Result one = run(c, data, DType::float32);
      for (const int threads : {2, 3, 8}) {
        omp_set_num_threads(threads);
        const Result many = run(c, data, DType::float32);
        for (Doubles Result::*member :
             {&Result::out, &Result::dq, &Result::dk, &Result::dv, &Result::dl})
          CHECK(many.*member == one.*member);
        CHECK(many.statistics.recomputed == one.statistics.recomputed);
        CHECK(many.statistics.smallest_ratio == one.statistics.smallest_ratio);
      }
    }
  omp_set_num_threads(before);
}

TEST_CASE("linear attention's scratch memory is a state and a block per thread") {
  const int before = omp_get_max_threads();
  omp_set_num_threads(2);
  const Tensor phi = Tensor::empty({1, 64, 4000, 128}), v = Tensor::empty({1, 64, 4000, 64}), none;
  const LinearAttentionArgs args{.log_features = true};
  const auto of_operands = static_cast<double>(2 * phi.bytes() + v.bytes());
  for (const bool causal : {false, true}) {
    const LinearAttentionOperands in{.phi_q = phi,
                                     .phi_k = phi,
                                     .v = v,
                                     .log_weight = none,
                                     .key_valid = none,
                                     .query_valid = none,
                                     .args = args,
                                     .causal = causal};
    CHECK(static_cast<double>(cpu::linear_attention_forward_scratch(in)) < 0.01 * of_operands);
    CHECK(static_cast<double>(cpu::linear_attention_backward_scratch(in)) < 0.02 * of_operands);
  }
  omp_set_num_threads(before);
}

TEST_CASE("log-weights of another floating dtype are converted") {
  Case c;
  c.weighted = true;
  const Data data = make_data(c, 61);
  const auto tensor = [&](const Doubles& x, int64_t columns) {
    return Variable(Tensor::from_values(x, {c.B, c.H, c.S, columns}, DType::float64));
  };
  const Variable l(Tensor::from_values(data.l, {c.B, c.H, c.S}, DType::float32), true);
  const auto out = [&](const Variable& weight) {
    return linear_attention(tensor(data.q, c.M), tensor(data.k, c.M), tensor(data.v, c.dv), weight,
                            {}, {});
  };
  const Variable y = out(l);
  CHECK(y.value().to_vector<double>() == out(cast(l, DType::float64)).value().to_vector<double>());
  CHECK(grad({sum(y * y)}, {l})[0].dtype() == DType::float32);
}

TEST_CASE("linear attention names what does not fit") {
  const auto of = [](const Shape& shape, DType dtype = DType::float32) {
    return Variable(Tensor::zeros(shape, dtype));
  };
  const Variable q = of({2, 3, 4, 5}), k = of({2, 3, 6, 5}), v = of({2, 3, 6, 7});
  const auto message = [&](const LinearAttentionArgs& args, const Variable& l = {}) {
    return error_of([&] { linear_attention(q, k, v, l, {}, args); });
  };
  CHECK(contains(message({.constant = -1}), "constant -1"));
  CHECK(contains(message({.floor = -0.5}), "floor -0.5"));
  CHECK(contains(message({.log_features = true, .floor = 0.5}), "floor 0.5"));
  CHECK(contains(message({.factor = 2}), "factor 2"));
  CHECK(contains(message({}, of({2, 3, 4})), "(B = 2, H = 3, S = 6)"));
  CHECK(contains(message({}, of({2, 3, 6}, DType::int64)), "int64"));
  CHECK(contains(error_of([&] {
                   linear_attention(q, of({2, 3, 6, 4}), v, {}, {}, {});
                 }),
                 "do not fit"));
  CHECK(contains(error_of([&] {
                   linear_attention(of({2, 3, 4, 0}), of({2, 3, 6, 0}), v, {}, {}, {});
                 }),
                 "no feature"));
  AttentionMask mask;
  mask.key_valid = Tensor::zeros({2, 5}, DType::boolean);
  CHECK(contains(error_of([&] { linear_attention(q, k, v, {}, mask, {}); }), "key_valid"));
}

}  // namespace
}  // namespace macgrad::testing
