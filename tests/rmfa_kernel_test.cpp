// The CPU kernels rmfa_forward and rmfa_backward: the worked examples of the fixture, a naive
// O(T·S) float64 reference over shapes, masks, strides and options, numerical gradients, sameness
// across thread counts, and the size of the scratch memory.
// Shape letters: B batch, H heads, T queries, S keys, d head dimension, dv values, M features,
// P projections.
#include <doctest/doctest.h>
#include <omp.h>

#include <cmath>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <random>

#include "macgrad/core/kernels/rmfa.h"
#include "macgrad/tests/padding.h"

using namespace macgrad;

namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

struct Case {
  int64_t B = 1, H = 1, T = 1, S = 1, d = 4, dv = 4;
  RmfaArgs args;
  bool per_head = false;
  int key_mask = 0;    // 0 none, 1 random, 2 random and batch 0 all padding, 3 a padded tail
  int query_mask = 0;  // 0 none, 1 random
  bool strided = false;
  double scale = 0.25;        // standard deviation of q and k
  double weight_scale = 0.2;  // of the features
  int64_t features() const { return args.levels.empty() ? 0 : args.levels[0]; }
  int64_t projections() const {
    int64_t p = 0;
    for (int64_t l : args.levels) p += l;
    return p;
  }
};

struct Data {
  std::vector<double> q, k, v, omega, weight, grad;
  std::vector<uint8_t> key_valid, query_valid;
};

Data make_data(const Case& c, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<double> normal;
  auto draw = [&](int64_t n, double scale) {
    std::vector<double> x(static_cast<size_t>(n));
    for (double& e : x) e = scale * normal(random);
    return x;
  };
  Data data;
  data.q = draw(c.B * c.H * c.T * c.d, c.scale);
  data.k = draw(c.B * c.H * c.S * c.d, c.scale);
  data.v = draw(c.B * c.H * c.S * c.dv, 1.0);
  data.grad = draw(c.B * c.H * c.T * c.dv, 1.0);
  data.omega = draw((c.per_head ? c.H : 1) * c.d * c.projections(), 1.0);
  // Signs take the path of tables in float32, other values that of the library.
  const double size = (c.T + c.S) % 2 == 0 ? 1.0 : 0.75;
  for (double& e : data.omega) e = e < 0 ? -size : size;
  data.weight = draw(c.features(), 1.0);
  for (double& e : data.weight) e = c.weight_scale * (0.5 + std::abs(e));
  auto mask = [&](int mode, int64_t n) {
    std::vector<uint8_t> valid(static_cast<size_t>(c.B * n), 1);
    for (int64_t b = 0; b < c.B; ++b) {
      for (int64_t i = 0; i < n; ++i) {
        uint8_t& e = valid[static_cast<size_t>(b * n + i)];
        if (mode == 1 || mode == 2) e = random() % 4 != 0;
        if (mode == 2 && b == 0) e = 0;
        if (mode == 3) e = i < n / 3;
      }
    }
    return valid;
  };
  data.key_valid = mask(c.key_mask, c.S);
  data.query_valid = mask(c.query_mask, c.T);
  const auto poison = [&](std::vector<double>& x, const std::vector<uint8_t>& valid, int64_t n,
                          int64_t columns) {
    testing::fill_hidden_rows(x, valid, c.B, c.H, n, columns);
  };
  poison(data.k, data.key_valid, c.S, c.d);
  poison(data.v, data.key_valid, c.S, c.dv);
  poison(data.q, data.query_valid, c.T, c.d);
  poison(data.grad, data.query_valid, c.T, c.dv);
  return data;
}

struct Result {
  std::vector<double> out, den, dq, dk, dv;
  double rows = 0, unsafe = 0, smallest = 0;
};

/// Pairs of queries and keys one by one, in float64.
Result naive(const Case& c, const Data& data) {
  const int64_t M = c.features(), P = c.projections(),
                L = static_cast<int64_t>(c.args.levels.size());
  std::vector<int64_t> first(static_cast<size_t>(L), 0);
  for (int64_t l = 1; l < L; ++l) first[l] = first[l - 1] + c.args.levels[l - 1];
  Result r;
  r.out.assign(data.grad.size(), 0.0);
  r.den.assign(static_cast<size_t>(c.B * c.H * c.T), 0.0);
  r.dq.assign(data.q.size(), 0.0);
  r.dk.assign(data.k.size(), 0.0);
  r.dv.assign(data.v.size(), 0.0);
  r.smallest = std::numeric_limits<double>::infinity();
  for (int64_t bh = 0; bh < c.B * c.H; ++bh) {
    const int64_t b = bh / c.H;
    const double* omega = data.omega.data() + (c.per_head ? bh % c.H * c.d * P : 0);
    auto project = [&](const double* x) {
      std::vector<double> p(static_cast<size_t>(P), 0.0);
      for (int64_t i = 0; i < c.d; ++i)
        for (int64_t j = 0; j < P; ++j) p[j] += x[i] * omega[i * P + j];
      return p;
    };
    // Product of the projections of feature m, without that of level `skip`.
    auto product = [&](const std::vector<double>& p, int64_t m, int64_t skip) {
      double value = data.weight[m];
      for (int64_t l = 0; l < L && c.args.levels[l] > m; ++l)
        if (l != skip) value *= p[first[l] + m];
      return value;
    };
    auto map = [&](const std::vector<double>& p) {
      std::vector<double> phi(static_cast<size_t>(M));
      for (int64_t m = 0; m < M; ++m) phi[m] = product(p, m, -1);
      return phi;
    };
    auto pull = [&](const std::vector<double>& p, const std::vector<double>& dphi, double* dx) {
      for (int64_t m = 0; m < M; ++m)
        for (int64_t l = 0; l < L && c.args.levels[l] > m; ++l)
          for (int64_t i = 0; i < c.d; ++i)
            dx[i] += dphi[m] * product(p, m, l) * omega[i * P + first[l] + m];
    };
    const double* q = data.q.data() + bh * c.T * c.d;
    const double* k = data.k.data() + bh * c.S * c.d;
    const double* v = data.v.data() + bh * c.S * c.dv;
    std::vector<std::vector<double>> pk, phik, dphik(static_cast<size_t>(c.S));
    for (int64_t j = 0; j < c.S; ++j) {
      pk.push_back(project(k + j * c.d));
      phik.push_back(map(pk.back()));
      dphik[j].assign(static_cast<size_t>(M), 0.0);
    }
    for (int64_t i = 0; i < c.T; ++i) {
      if (!data.query_valid[b * c.T + i]) continue;
      const double* x = q + i * c.d;
      const std::vector<double> pq = project(x), phiq = map(pq);
      std::vector<int64_t> seen;
      for (int64_t j = 0; j < c.S; ++j)
        if (data.key_valid[b * c.S + j] && (!c.args.causal || j <= i + c.S - c.T))
          seen.push_back(j);
      if (seen.empty()) continue;
      std::vector<double> value;
      double den = 0.0;
      double* out = r.out.data() + (bh * c.T + i) * c.dv;
      for (int64_t j : seen) {
        double f = c.args.constant;
        for (int64_t e = 0; e < c.d; ++e) f += c.args.linear * x[e] * k[j * c.d + e];
        for (int64_t m = 0; m < M; ++m) f += phiq[m] * phik[j][m];
        value.push_back(f);
        den += f;
        for (int64_t e = 0; e < c.dv; ++e) out[e] += f * v[j * c.dv + e];
      }
      const double count = static_cast<double>(seen.size());
      r.den[bh * c.T + i] = den;
      r.rows += 1;
      r.smallest = std::min(r.smallest, den / count);
      const double bound = c.args.floor * count;
      const bool floored = c.args.floor > 0 && den < bound;
      if (c.args.floor > 0 ? floored : den <= 0) r.unsafe += 1;
      const double used = floored ? bound : den;
      const double* g = data.grad.data() + (bh * c.T + i) * c.dv;
      double dot = 0.0;
      for (int64_t e = 0; e < c.dv; ++e) {
        out[e] /= used;
        dot += g[e] * out[e];
      }
      std::vector<double> dphiq(static_cast<size_t>(M), 0.0);
      double* dx = r.dq.data() + (bh * c.T + i) * c.d;
      for (size_t s = 0; s < seen.size(); ++s) {
        const int64_t j = seen[s];
        double df = floored ? 0.0 : -dot / used;
        for (int64_t e = 0; e < c.dv; ++e) {
          df += g[e] * v[j * c.dv + e] / used;
          r.dv[(bh * c.S + j) * c.dv + e] += value[s] * g[e] / used;
        }
        for (int64_t e = 0; e < c.d; ++e) {
          dx[e] += df * c.args.linear * k[j * c.d + e];
          r.dk[(bh * c.S + j) * c.d + e] += df * c.args.linear * x[e];
        }
        for (int64_t m = 0; m < M; ++m) {
          dphiq[m] += df * phik[j][m];
          dphik[j][m] += df * phiq[m];
        }
      }
      pull(pq, dphiq, dx);
    }
    for (int64_t j = 0; j < c.S; ++j)
      if (data.key_valid[b * c.S + j]) pull(pk[j], dphik[j], r.dk.data() + (bh * c.S + j) * c.d);
  }
  return r;
}

Result run(const Case& c, const Data& data, DType dtype, bool backward = true) {
  // (B, H, n, columns), in memory as it stands or as a head-split view of (B, n, H, columns).
  auto view = [&](const Tensor& t) { return c.strided ? t.transpose(1, 2) : t; };
  auto blank = [&](int64_t n, int64_t columns) {
    return view(Tensor::full(c.strided ? Shape{c.B, n, c.H, columns} : Shape{c.B, c.H, n, columns},
                             kNan, dtype));
  };
  auto fill = [&](const std::vector<double>& x, int64_t n, int64_t columns) {
    const Tensor plain = Tensor::from_values(x, Shape{c.B, c.H, n, columns}, dtype);
    return c.strided ? view(plain.transpose(1, 2).contiguous()) : plain;
  };
  auto mask = [&](int mode, const std::vector<uint8_t>& valid, int64_t n) {
    if (mode == 0) return Tensor();
    const std::vector<double> values(valid.begin(), valid.end());
    return Tensor::from_values(values, Shape{c.B, n}, DType::boolean);
  };
  const Tensor q = fill(data.q, c.T, c.d), k = fill(data.k, c.S, c.d), v = fill(data.v, c.S, c.dv);
  const Tensor grad = fill(data.grad, c.T, c.dv);
  const Tensor key_valid = mask(c.key_mask, data.key_valid, c.S);
  const Tensor query_valid = mask(c.query_mask, data.query_valid, c.T);
  const int64_t P = c.projections();
  const Tensor omega =
      Tensor::from_values(data.omega, c.per_head ? Shape{c.H, c.d, P} : Shape{c.d, P}, dtype);
  const Tensor weight = Tensor::from_values(data.weight, Shape{c.features()}, dtype);
  const Tensor out = blank(c.T, c.dv), den = Tensor::full(Shape{c.B, c.H, c.T}, kNan, dtype);
  const Tensor stats = Tensor::full(Shape{4}, kNan, DType::float64);
  kernels::rmfa_forward({.in = {.q = q,
                                .k = k,
                                .v = v,
                                .key_valid = key_valid,
                                .query_valid = query_valid,
                                .omega = omega,
                                .weight = weight,
                                .args = c.args},
                         .out = out,
                         .den = den,
                         .stats = stats});
  Result r;
  r.out = out.to_vector<double>();
  r.den = den.to_vector<double>();
  r.rows = stats.at({0});
  r.unsafe = stats.at({1});
  CHECK(stats.at({2}) == 0.0);
  r.smallest = stats.at({3});
  if (!backward) return r;
  const Tensor dq = blank(c.T, c.d), dk = blank(c.S, c.d), dv = blank(c.S, c.dv);
  kernels::rmfa_backward({.in = {.q = q,
                                 .k = k,
                                 .v = v,
                                 .key_valid = key_valid,
                                 .query_valid = query_valid,
                                 .omega = omega,
                                 .weight = weight,
                                 .args = c.args},
                          .out = out,
                          .den = den,
                          .grad = grad,
                          .dq = dq,
                          .dk = dk,
                          .dv = dv});
  r.dq = dq.to_vector<double>();
  r.dk = dk.to_vector<double>();
  r.dv = dv.to_vector<double>();
  return r;
}

/// Largest difference over the largest magnitude of the reference (1 at least); NaN counts as inf.
double error(const std::vector<double>& x, const std::vector<double>& reference) {
  REQUIRE(x.size() == reference.size());
  double size = 1.0, worst = 0.0;
  for (double e : reference) size = std::max(size, std::abs(e));
  for (size_t i = 0; i < x.size(); ++i) {
    const double difference = std::abs(x[i] - reference[i]);
    worst = std::isnan(difference) ? std::numeric_limits<double>::infinity()
                                   : std::max(worst, difference);
  }
  return worst / size;
}

void check_against_naive(const Case& c, unsigned seed, bool single = true) {
  INFO("B=" << c.B << " H=" << c.H << " T=" << c.T << " S=" << c.S << " d=" << c.d << " dv=" << c.dv
            << " M=" << c.features() << " P=" << c.projections() << " causal=" << c.args.causal
            << " linear=" << c.args.linear << " floor=" << c.args.floor << " masks=" << c.key_mask
            << c.query_mask << " strided=" << c.strided << " seed=" << seed);
  const Data data = make_data(c, seed);
  const Result reference = naive(c, data);
  for (DType dtype : {DType::float64, DType::float32}) {
    if (dtype == DType::float32 && !single) continue;
    const bool is_double = dtype == DType::float64;
    INFO("dtype " << std::string(name(dtype)));
    const Result r = run(c, data, dtype);
    const double tolerance = is_double ? 1e-12 : 2e-5;
    CHECK(error(r.out, reference.out) < tolerance);
    CHECK(error(r.den, reference.den) < tolerance);
    CHECK(error(r.dq, reference.dq) < tolerance);
    CHECK(error(r.dk, reference.dk) < tolerance);
    CHECK(error(r.dv, reference.dv) < tolerance);
    CHECK(r.rows == reference.rows);
    if (is_double) CHECK(r.unsafe == reference.unsafe);
    if (std::isinf(reference.smallest)) {
      CHECK(std::isinf(r.smallest));
    } else {
      CHECK(r.smallest == doctest::Approx(reference.smallest).epsilon(is_double ? 1e-10 : 1e-4));
    }
  }
}

RmfaArgs args_of(std::vector<int64_t> levels, double constant, double linear, bool causal,
                 double floor = 0.0) {
  RmfaArgs args;
  args.levels = std::move(levels);
  args.constant = constant;
  args.linear = linear;
  args.causal = causal;
  args.floor = floor;
  return args;
}

nlohmann::json fixture() {
  std::ifstream file(MACGRAD_FIXTURES "/rmfa_attention.json");
  REQUIRE(file.good());
  return nlohmann::json::parse(file);
}

std::vector<double> flat(const nlohmann::json& rows, double scale = 1.0) {
  std::vector<double> x;
  for (const auto& row : rows) {
    if (row.is_array()) {
      for (double e : row) x.push_back(scale * e);
    } else {
      x.push_back(scale * row.get<double>());
    }
  }
  return x;
}

}  // namespace

TEST_CASE("rmfa: the worked examples") {
  const nlohmann::json j = fixture();
  const double d = j["d"], D = j["D"], scale = std::pow(d, -0.25);
  const std::vector<int64_t> degrees = j["degrees"];
  // Features in descending order of degree; those of degree 0 are the constant.
  std::vector<size_t> order;
  for (int64_t degree = 3; degree >= 1; --degree)
    for (size_t i = 0; i < degrees.size(); ++i)
      if (degrees[i] == degree) order.push_back(i);
  int cases = 0;
  for (const auto& [name, expected] : j["cases"].items()) {
    INFO(name);
    ++cases;
    const std::vector<double> a = j["coefficients"][name.substr(0, name.find('_'))];
    Case c;
    c.T = c.S = j["n"];
    c.d = c.dv = 2;
    c.args.causal = name.find("causal") != std::string::npos;
    c.args.levels = {4, 2, 1};
    c.key_mask = name.find("keymask") != std::string::npos ? 1 : 0;
    Data data;
    data.q = flat(j["Q"], scale);
    data.k = flat(j["K"], scale);
    data.v = flat(j["V"]);
    data.grad = flat(j["upstream_grad"]);
    for (int e : j["key_mask"]) data.key_valid.push_back(c.key_mask ? static_cast<uint8_t>(e) : 1);
    data.query_valid.assign(static_cast<size_t>(c.T), 1);
    for (int64_t degree : degrees)
      if (degree == 0) c.args.constant += a[0] * 2.0 / D;
    for (size_t i : order) {
      const double N = static_cast<double>(degrees[i]);
      data.weight.push_back(std::sqrt(a[static_cast<size_t>(N)] * std::pow(2.0, N + 1) / D));
    }
    for (size_t row = 0; row < 2; ++row)
      for (size_t l = 0; l < 3; ++l)
        for (size_t m = 0; m < static_cast<size_t>(c.args.levels[l]); ++m)
          data.omega.push_back(j["omegas"][order[m]][l][row].get<double>());
    for (DType dtype : {DType::float64, DType::float32}) {
      INFO("dtype " << std::string(macgrad::name(dtype)));
      const double tolerance = dtype == DType::float64 ? 1e-12 : 2e-5;
      Result r = run(c, data, dtype);
      for (double& e : r.dq) e *= scale;
      for (double& e : r.dk) e *= scale;
      CHECK(error(r.out, flat(expected["out"])) < tolerance);
      CHECK(error(r.den, flat(expected["den"])) < tolerance);
      CHECK(error(r.dq, flat(expected["dQ"])) < tolerance);
      CHECK(error(r.dk, flat(expected["dK"])) < tolerance);
      CHECK(error(r.dv, flat(expected["dV"])) < tolerance);
    }
  }
  CHECK(cases == 20);
}

TEST_CASE("rmfa: lengths, causal or not, against the naive reference") {
  unsigned seed = 1;
  for (bool causal : {false, true}) {
    for (int64_t T : {1, 2, 63, 64, 65, 130, 300}) {
      for (int64_t S : {1, 2, 63, 64, 65, 130, 300}) {
        Case c;
        c.B = 1 + seed % 2;
        c.H = 2;
        c.T = T;
        c.S = S;
        c.d = 5;
        c.dv = 3;
        c.args = args_of({6, 4, 2, 1}, 1.5, seed % 3 == 0 ? 0.7 : 0.0, causal);
        c.key_mask = static_cast<int>(seed % 4);
        c.query_mask = seed % 5 == 0;
        c.strided = seed % 2 == 1;
        c.per_head = seed % 7 == 0;
        check_against_naive(c, seed++, T < 130 || S < 130);
      }
    }
  }
}

TEST_CASE("rmfa: options against the naive reference") {
  for (bool causal : {false, true}) {
    Case base;
    base.B = 2;
    base.H = 3;
    base.T = base.S = 70;
    base.d = 7;
    base.dv = 5;
    base.args = args_of({9, 5, 5, 2, 1, 1}, 1.0, 0.5, causal);
    SUBCASE("linear block, odd sizes") {
      check_against_naive(base, 100);
    }
    SUBCASE("head-split views, draws a head, padding") {
      base.strided = base.per_head = true;
      base.key_mask = 2;
      base.query_mask = 1;
      check_against_naive(base, 101);
    }
    SUBCASE("constant alone: the mean of visible values") {
      base.args.levels = {};
      base.args.linear = 0.0;
      base.key_mask = 1;
      check_against_naive(base, 102);
    }
    SUBCASE("constant and linear") {
      base.args.levels = {};
      base.key_mask = 2;
      base.T = 90;
      check_against_naive(base, 103);
    }
    SUBCASE("no constant") {
      base.args.constant = 0.0;
      base.args.floor = 0.2;
      check_against_naive(base, 104, /*single=*/false);
    }
    SUBCASE("a level without features") {
      base.args.levels = {3, 1, 0};
      check_against_naive(base, 105);
    }
    SUBCASE("one head dimension, one value") {
      base.d = base.dv = 1;
      check_against_naive(base, 106);
    }
    SUBCASE("more keys than queries, fewer keys than queries") {
      base.T = 5;
      base.S = 200;
      check_against_naive(base, 107);
      base.T = 200;
      base.S = 9;
      base.key_mask = 1;
      check_against_naive(base, 108);
    }
  }
}

TEST_CASE("rmfa: floored denominators pass no gradient and are counted") {
  for (bool causal : {false, true}) {
    Case c;
    c.B = c.H = 2;
    c.T = c.S = 90;
    c.args = args_of({6, 3, 1}, 0.3, 0.0, causal, /*floor=*/0.3);
    c.key_mask = 1;
    c.scale = 1.0;
    c.weight_scale = 0.3;
    const Data data = make_data(c, 7);
    const Result reference = naive(c, data);
    CHECK(reference.unsafe > 10);
    CHECK(reference.unsafe < static_cast<double>(c.B * c.H * c.T) - 10);
    check_against_naive(c, 7, /*single=*/false);
    // Without a floor what is counted are denominators that are not positive.
    c.args.floor = 0.0;
    const Result raw = run(c, data, DType::float64, /*backward=*/false);
    double count = 0;
    for (double e : raw.den) count += e < 0;
    CHECK(count > 0);
    CHECK(raw.unsafe == count);
    CHECK(error(raw.den, reference.den) < 1e-12);
  }
}

TEST_CASE("rmfa: no visible key gives zeros and no statistics") {
  Case c;
  c.H = 2;
  c.T = 70;
  c.S = 3;
  c.args = args_of({4, 2}, 1.0, 1.0, false, 1e-3);
  c.key_mask = 2;
  const Result r = run(c, make_data(c, 3), DType::float32);
  for (const auto* x : {&r.out, &r.den, &r.dq, &r.dk, &r.dv})
    for (double e : *x) CHECK(e == 0.0);
  CHECK(r.unsafe == 0.0);
  CHECK(r.smallest == std::numeric_limits<double>::infinity());
}

TEST_CASE("rmfa: numerical gradients") {
  const int threads = omp_get_max_threads();
  omp_set_num_threads(1);  // hundreds of tiny calls
  for (bool causal : {false, true}) {
    Case c;
    c.B = 1;
    c.H = 2;
    c.T = 5;
    c.S = 7;
    c.d = c.dv = 3;
    c.args = args_of({4, 3, 2, 1}, 1.2, 0.4, causal);
    Data data = make_data(c, 11);
    const Result r = run(c, data, DType::float64);
    auto loss = [&] {
      const Result f = run(c, data, DType::float64, /*backward=*/false);
      double sum = 0.0;
      for (size_t i = 0; i < f.out.size(); ++i) sum += f.out[i] * data.grad[i];
      return sum;
    };
    auto check = [&](std::vector<double>& x, const std::vector<double>& gradient) {
      for (size_t i = 0; i < x.size(); ++i) {
        const double before = x[i], h = 1e-5;
        x[i] = before + h;
        const double up = loss();
        x[i] = before - h;
        const double down = loss();
        x[i] = before;
        CHECK((up - down) / (2 * h) == doctest::Approx(gradient[i]).epsilon(1e-6));
      }
    };
    check(data.q, r.dq);
    check(data.k, r.dk);
    check(data.v, r.dv);
  }
  omp_set_num_threads(threads);
}

TEST_CASE("rmfa: long sequences of few heads are cut into pieces") {
  unsigned seed = 200;
  for (bool causal : {false, true}) {
    for (auto [T, S] : {std::pair<int64_t, int64_t>{1100, 1100}, {70, 1300}, {1300, 600}}) {
      Case c;
      c.T = T;
      c.S = S;
      c.args = args_of({4, 2, 1}, 1.0, 0.5, causal);
      c.key_mask = 1;
      c.query_mask = 1;
      check_against_naive(c, seed++, /*single=*/false);
    }
  }
}

TEST_CASE("rmfa: the same bits at any number of threads") {
  const int threads = omp_get_max_threads();
  std::vector<Case> cases(3);
  cases[0].B = 5;
  cases[0].H = 3;
  cases[0].T = 130;
  cases[0].S = 140;
  cases[1].H = 2;
  cases[1].T = 1500;
  cases[1].S = 1300;
  cases[2].T = cases[2].S = 200;
  for (Case& c : cases) {
    for (bool causal : {false, true}) {
      c.d = c.dv = 16;
      c.args = args_of({24, 12, 6, 3, 1}, 1.0, 0.5, causal);
      c.key_mask = 1;
      const Data data = make_data(c, 21);
      for (DType dtype : {DType::float32, DType::float64}) {
        omp_set_num_threads(1);
        const Result one = run(c, data, dtype);
        for (int n : {2, 3, 8, 16}) {
          omp_set_num_threads(n);
          const Result many = run(c, data, dtype);
          CHECK(many.out == one.out);
          CHECK(many.den == one.den);
          CHECK(many.dq == one.dq);
          CHECK(many.dk == one.dk);
          CHECK(many.dv == one.dv);
          CHECK(many.smallest == one.smallest);
        }
      }
    }
  }
  omp_set_num_threads(threads);
}

TEST_CASE("rmfa: inside a parallel region") {
  Case c;
  c.H = 2;
  c.T = c.S = 100;
  c.args = args_of({6, 3}, 1.0, 0.5, true);
  const Data data = make_data(c, 31);
  const Result reference = run(c, data, DType::float64);
  std::vector<Result> results(3);
#pragma omp parallel for num_threads(3)
  for (int i = 0; i < 3; ++i) results[static_cast<size_t>(i)] = run(c, data, DType::float64);
  for (const Result& r : results) {
    CHECK(error(r.out, reference.out) < 1e-12);
    CHECK(error(r.dk, reference.dk) < 1e-12);
  }
}

TEST_CASE("rmfa: scratch memory is below a tenth of inputs and outputs") {
  const int threads = omp_get_max_threads();
  omp_set_num_threads(2);
  for (int64_t n : {1000, 4000}) {
    for (int64_t heads : {1, 128}) {
      for (bool causal : {false, true}) {
        const Tensor x = Tensor::empty({1, heads, n, 64});
        const RmfaArgs args = args_of({64, 32, 16, 8, 4, 2, 1, 1}, 0.5, 0.0, causal);
        const Tensor omega = Tensor::empty({64, 128}), weight = Tensor::empty({64}), none;
        const double bytes = static_cast<double>(x.bytes());
        // One head cut into pieces holds a state a piece and a workspace a thread: below 0.4 of it.
        const double share = heads == 1 ? 0.4 : 0.1;
        const RmfaOperands in{.q = x,
                              .k = x,
                              .v = x,
                              .key_valid = none,
                              .query_valid = none,
                              .omega = omega,
                              .weight = weight,
                              .args = args};
        CHECK(static_cast<double>(cpu::rmfa_forward_scratch(in)) < share * 4 * bytes);
        CHECK(static_cast<double>(cpu::rmfa_backward_scratch(in)) < share * 8 * bytes);
      }
    }
  }
  omp_set_num_threads(threads);
}

TEST_CASE("rmfa: bfloat16 is refused with a reason") {
  const Tensor x = Tensor::empty({1, 1, 2, 4}, DType::bfloat16);
  const Tensor omega = Tensor::empty({4, 3}, DType::bfloat16), none;
  const Support support =
      kernels::rmfa_forward.supports(kCpu, {.q = x,
                                            .k = x,
                                            .v = x,
                                            .key_valid = none,
                                            .query_valid = none,
                                            .omega = omega,
                                            .weight = Tensor::empty({2}),
                                            .args = args_of({2, 1}, 1.0, 0.0, false)});
  CHECK_FALSE(support.ok);
  CHECK(support.reason.find("bfloat16") != std::string::npos);
}
