// Every feature map of the table with every projection matrix it takes: what kernel it estimates,
// with which variance, and that linear attention with it is the quotient of its definition. The
// modes that hold for every attention (masks, padding, decoding, gradients) are in
// attention_test.cpp.
#include <cmath>
#include <limits>
#include <numbers>

#include "macgrad/autograd/linear_attention.h"
#include "macgrad/autograd/node.h"
#include "macgrad/nn/projected_features.h"
#include "nn_checks.h"

namespace macgrad::nn {

using namespace macgrad::checks;

namespace {

using Row = std::vector<double>;

struct Choice {
  std::string map, matrix, kernel;
};

std::vector<Choice> projected_choices() {
  std::vector<Choice> all;
  for (const FeatureMapKind& map : feature_maps())
    if (!map.matrix.empty())
      for (const ProjectionMatrix& matrix : projection_matrices())
        for (const char* kernel : {"softmax", "gaussian"})
          if (map.estimates(pair_kernel(kernel))) all.push_back({map.name, matrix.name, kernel});
  return all;
}

std::string label(const Choice& c) {
  return c.map + "/" + c.matrix + " " + c.kernel;
}

AttentionSettings settings_of(const Choice& c, int64_t features) {
  AttentionSettings s;
  s.kind = attention_kind("linear");
  s.map = feature_map(c.map);
  if (!c.matrix.empty()) s.matrix = projection_matrix(c.matrix);
  s.kernel = pair_kernel(c.kernel);
  s.logit_scale = 1.0;
  s.features = features;
  return s;
}

/// Rows whose scaled form is x: the map divides by d^¼.
Variable unscaled(const Row& x) {
  const auto d = static_cast<double>(x.size());
  return mul(Variable(Tensor::from_vector(x, Shape{1, 1, 1, static_cast<int64_t>(x.size())})),
             std::pow(d, 0.25));
}

double value_or(const Variable& x, double otherwise) {
  return x.defined() ? x.item() : otherwise;
}

/// φ(x)_i φ(y)_i times the weights of both rows, column by column.
Row products(FeatureMap& map, const Row& x, const Row& y) {
  const NoGrad off;
  const MappedRows q = map.map(unscaled(x), Side::query, {});
  const MappedRows k = map.map(unscaled(y), Side::key, {});
  const Variable x_weight = map.map(unscaled(x), Side::key, {}).log_weight;
  const double weight = std::exp(value_or(x_weight, 0.0) + value_or(k.log_weight, 0.0));
  const Row a = q.features.value().to_vector<double>(), b = k.features.value().to_vector<double>();
  Row result;
  for (size_t i = 0; i < a.size(); ++i)
    result.push_back(weight * (map.log_features() ? std::exp(a[i] + b[i]) : a[i] * b[i]));
  return result;
}

double total(const Row& values) {
  double sum = 0.0;
  for (const double v : values) sum += v;
  return sum;
}

struct Map {
  Map(const AttentionSettings& settings, int64_t d, uint64_t seed = 1)
      : random(seed),
        scale(nullptr, "scale", settings.logit_scale, false, settings.kernel.radius(), d),
        map(make_feature_map(nullptr, "map", settings, {AttentionRole::cross, 1, d, &random},
                             &scale)) {}
  ModelRandom random;
  LogitScale scale;
  std::unique_ptr<FeatureMap> map;
};

const Row kX{0.5, -0.3, 0.2, 0.1}, kY{0.4, 0.1, -0.2, 0.3};

double dot(const Row& x, const Row& y) {
  double sum = 0.0;
  for (size_t i = 0; i < x.size(); ++i) sum += x[i] * y[i];
  return sum;
}

/// Nodes and weights with Σ w_i p(z_i) = E p(z), z ~ N(0, 1), for polynomials p up to degree 2n -
/// 1: roots of the Hermite polynomial He_n by Newton's method.
std::pair<Row, Row> gauss_hermite(int n) {
  Row nodes, weights;
  const auto evaluate = [n](double z) {  // orthonormal He_n and He_{n-1}
    double previous = 0.0, value = 1.0;
    for (int k = 0; k < n; ++k) {
      const double next = (z * value - std::sqrt(k) * previous) / std::sqrt(k + 1.0);
      previous = value;
      value = next;
    }
    return std::pair(value, previous);
  };
  // The roots are apart by more than 0.2 for n = 40: find the changes of sign.
  for (double z = -20.0; z < 20.0; z += 0.01) {
    if (evaluate(z).first * evaluate(z + 0.01).first > 0.0) continue;
    double root = z + 0.005;
    for (int i = 0; i < 50; ++i)
      root -= evaluate(root).first / (std::sqrt(n) * evaluate(root).second);
    nodes.push_back(root);
    weights.push_back(1.0 / (n * std::pow(evaluate(root).second, 2)));
  }
  return {nodes, weights};
}

/// A matrix with the given rows.
ProjectionMatrix given(const std::vector<Row>& rows) {
  Row flat;
  for (const Row& row : rows) flat.insert(flat.end(), row.begin(), row.end());
  const Tensor omega =
      Tensor::from_vector(flat, Shape{std::ssize(rows), static_cast<int64_t>(rows[0].size())});
  return {"given", "",    true,
          false,   false, [omega](const DrawKey&, int64_t, int64_t) { return omega; }};
}

}  // namespace

TEST_CASE("feature maps: the mean over Gaussian rows is the kernel") {
  const Row x{0.5, -0.3}, y{0.4, 0.1};
  const auto [nodes, weights] = gauss_hermite(40);
  REQUIRE(nodes.size() == 40);
  CHECK(total(weights) == doctest::Approx(1.0).epsilon(1e-13));
  // E over ω ~ N(0, I) in two dimensions, as a matrix with one row per pair of nodes.
  std::vector<Row> omega;
  Row weight;
  for (size_t i = 0; i < 40; ++i)
    for (size_t j = 0; j < 40; ++j) {
      omega.push_back({nodes[i], nodes[j]});
      weight.push_back(weights[i] * weights[j]);
    }
  for (const Choice& c : projected_choices()) {
    if (!projection_matrix(c.matrix).gaussian_rows) continue;
    CAPTURE(label(c));
    AttentionSettings s = settings_of(c, 1600 * feature_map(c.map).columns_per_row);
    s.matrix = given(omega);
    Map map(s, 2);
    const Row p = products(*map.map, x, y);
    double mean = 0.0;
    for (size_t i = 0; i < p.size(); ++i) mean += 1600.0 * weight[i % 1600] * p[i];
    CHECK(mean ==
          doctest::Approx(pair_kernel(c.kernel)(dot(x, x), dot(y, y), dot(x, y))).epsilon(1e-12));
    CHECK(map.map->unbiased());
  }
  CHECK(pair_kernel("softmax")(dot(kX, kX), dot(kY, kY), dot(kX, kY)) ==
        doctest::Approx(1.1735109).epsilon(1e-7));
  CHECK(pair_kernel("gaussian")(dot(kX, kX), dot(kY, kY), dot(kX, kY)) ==
        doctest::Approx(0.8311043).epsilon(1e-7));
}

TEST_CASE("feature maps: rows of ±1 are biased, by their enumerated mean") {
  for (const Choice& c : projected_choices())
    if (!projection_matrix(c.matrix).gaussian_rows)
      CHECK_FALSE(Map(settings_of(c, 8), 4).map->unbiased());
  for (const Choice& c :
       {Choice{"positive", "rademacher", "softmax"}, Choice{"positive", "rademacher", "gaussian"},
        Choice{"trig", "rademacher", "softmax"}, Choice{"trig", "rademacher", "gaussian"}}) {
    CAPTURE(label(c));
    std::vector<Row> rows;
    for (int bits = 0; bits < 16; ++bits) {
      rows.emplace_back();
      for (int i = 0; i < 4; ++i) rows.back().push_back((bits >> i & 1) != 0 ? 1.0 : -1.0);
    }
    AttentionSettings s = settings_of(c, 16 * feature_map(c.map).columns_per_row);
    s.matrix = given(rows);
    Map map(s, 4);
    // E exp(ω·z) = Π cosh z_l, E cos(ω·δ) = Π cos δ_l, times what the weights add.
    double product = 1.0;
    for (size_t i = 0; i < 4; ++i)
      product *= c.map == "positive" ? std::cosh(kX[i] + kY[i]) : std::cos(kX[i] - kY[i]);
    const double squares = dot(kX, kX) + dot(kY, kY);
    const double native = c.map == "positive" ? 0.5 : -0.5;
    const double target = c.kernel == "softmax" ? 0.0 : -0.5;
    CHECK(total(products(*map.map, kX, kY)) ==
          doctest::Approx(product * std::exp((target - native) * squares)).epsilon(1e-12));
  }
}

TEST_CASE("feature maps: predicted variances, and those of draws") {
  const double xx = dot(kX, kX), yy = dot(kY, kY), xy = dot(kX, kY);
  struct Figure {
    Choice choice;
    double variance;
  };
  for (const Figure& f : {Figure{{"trig", "iid", "gaussian"}, 0.0119557},
                          Figure{{"trig", "orf", "gaussian"}, 0.00547297},
                          Figure{{"positive", "iid", "softmax"}, 0.600979}}) {
    CAPTURE(label(f.choice));
    const int64_t per_row = feature_map(f.choice.map).columns_per_row;
    CHECK(*Map(settings_of(f.choice, 4 * per_row), 4).map->predicted_variance(xx, yy, xy) ==
          doctest::Approx(f.variance).epsilon(2e-6));
  }
  for (const char* map : {"positive", "trig"})
    for (const char* matrix : {"iid", "orf"})
      CHECK(Map(settings_of({map, matrix, "softmax"}, 8), 4)
                .map->predicted_variance(xx, yy, xy)
                .has_value());
  constexpr int kDraws = 20000;
  for (const Choice& c : projected_choices()) {
    if (!projection_matrix(c.matrix).gaussian_rows) continue;
    // Within a block, one whole block, and a block and a half.
    for (const int64_t m : {2, 4, 6}) {
      CAPTURE(label(c));
      CAPTURE(m);
      Map map(settings_of(c, m * feature_map(c.map).columns_per_row), 4);
      const auto predicted = map.map->predicted_variance(xx, yy, xy);
      if (!predicted) continue;  // a map may come without a formula
      const double mean = map.map->kernel()->operator()(xx, yy, xy);
      double sum = 0.0, squares = 0.0, fourth = 0.0;
      for (int draw = 0; draw < kDraws; ++draw) {
        map.map->begin_step(static_cast<uint32_t>(draw), 0);
        const double error = total(products(*map.map, kX, kY)) - mean;
        sum += error;
        squares += error * error;
        fourth += error * error * error * error;
      }
      const double variance = squares / kDraws;
      CHECK(std::abs(sum / kDraws) < 4.5 * std::sqrt(variance / kDraws));
      const double deviation = std::sqrt((fourth / kDraws - variance * variance) / kDraws);
      CHECK(std::abs(variance - *predicted) < 4.5 * deviation);
    }
  }
}

TEST_CASE("feature maps: Kummer's function") {
  CHECK(hypergeometric_1f1(1.0, 1.0, 2.5) == doctest::Approx(std::exp(2.5)).epsilon(1e-14));
  CHECK(hypergeometric_1f1(2.0, 2.0, -7.0) == doctest::Approx(std::exp(-7.0)).epsilon(1e-12));
  // ₁F₁(2; 1; z) = (1 + z) e^z.
  CHECK(hypergeometric_1f1(2.0, 1.0, -0.3) == doctest::Approx(0.7 * std::exp(-0.3)).epsilon(1e-13));
}

TEST_CASE("projection matrices: orthogonal blocks, norms of independent rows, entries ±1") {
  for (const int64_t m : {1, 5, 8, 13}) {
    CAPTURE(m);
    const Tensor omega = projection_matrix("orf").draw({3, 1, 0, 7}, m, 5);
    REQUIRE(omega.shape() == Shape{m, 5});
    for (int64_t i = 0; i < m; ++i)
      for (int64_t j = i + 1; j < m && j / 5 == i / 5; ++j) {
        const Row a = omega.select(0, i).to_vector<double>();
        const Row b = omega.select(0, j).to_vector<double>();
        CHECK(std::abs(dot(a, b)) < 1e-14 * std::sqrt(dot(a, a) * dot(b, b)) * 10);
      }
  }
  // Moments over draws: E ωωᵀ = I for all, E|ω|⁴ = d(d + 2) for Gaussian rows and d² for signs.
  constexpr int kDraws = 4000;
  constexpr int64_t m = 5, d = 3;
  for (const ProjectionMatrix& matrix : projection_matrices()) {
    CAPTURE(matrix.name);
    double second[d][d] = {}, fourth = 0.0;
    for (uint32_t draw = 0; draw < kDraws; ++draw) {
      const Row all = matrix.draw({3, 1, 0, draw}, m, d).to_vector<double>();
      for (int64_t i = 0; i < m; ++i) {
        double squares = 0.0;
        for (int64_t a = 0; a < d; ++a) {
          const double x = all[static_cast<size_t>(i * d + a)];
          squares += x * x;
          for (int64_t b = 0; b < d; ++b)
            second[a][b] += x * all[static_cast<size_t>(i * d + b)] / (kDraws * m);
        }
        fourth += squares * squares / (kDraws * m);
      }
    }
    for (int64_t a = 0; a < d; ++a)
      for (int64_t b = 0; b < d; ++b) CHECK(std::abs(second[a][b] - (a == b ? 1.0 : 0.0)) < 0.05);
    CHECK(std::abs(fourth - (matrix.gaussian_rows ? d * (d + 2.0) : d * d)) < 1.0);
    CHECK(max_abs_difference(matrix.draw({3, 1, 0, 5}, m, d), matrix.draw({3, 1, 0, 5}, m, d)) ==
          0.0);
  }
  CHECK(contains(error_of([] { projection_matrix("gauss"); }), "use iid, orf"));
}

namespace {

/// Every map of the table; those of projections with every matrix, on raw and on unit rows.
std::vector<std::pair<std::string, AttentionSettings>> all_maps() {
  std::vector<std::pair<std::string, AttentionSettings>> all;
  for (const Choice& c : projected_choices())
    for (const bool unit : {false, true}) {
      AttentionSettings s = settings_of(c, 22);
      s.unit_rows_given = unit;
      all.emplace_back(label(c) + (unit ? ", unit" : ""), s);
    }
  for (const FeatureMapKind& map : feature_maps())
    if (map.matrix.empty()) all.emplace_back(map.name, settings_of({map.name, "", "exp"}, 22));
  return all;
}

struct Core : Module {
  explicit Core(const AttentionSettings& settings, uint64_t seed = 5)
      : random(seed), core(nullptr, "core", settings, {AttentionRole::self, 2, 5, &random}) {
    core.to(DType::float64);
  }
  Variable operator()(const Variable& q, const Variable& k, const Variable& v,
                      const AttentionMask& mask, const Variable& log_weight = {}) {
    return core.forward({q, k, v, mask, log_weight});
  }
  ModelRandom random;
  LinearAttentionCore core;
};

/// Σ_j w_j K̂_ij v_j / Σ_j w_j K̂_ij in log space, where the map has log-features.
Variable dense(FeatureMap& map, const Variable& q, const Variable& k, const Variable& v,
               const AttentionMask& mask, const Variable& log_weight) {
  const MappedRows a = map.map(q, Side::query, {}), b = map.map(k, Side::key, {});
  const Tensor shown = visible(mask, q.size(2), k.size(2), kCpu);
  Variable l = b.log_weight;
  if (log_weight.defined()) l = l.defined() ? add(l, log_weight) : log_weight;
  Variable weights;
  if (map.log_features()) {
    const Variable pairs = add(unsqueeze(a.features, 3), unsqueeze(b.features, 2));
    Variable logits = logsumexp(pairs, 4);
    if (l.defined()) logits = add(logits, unsqueeze(l, 2));
    if (shown.defined()) logits = where(shown, logits, -1e300);
    weights = softmax(logits, 3);
  } else {
    weights = add(matmul(a.features, transpose(b.features, 2, 3)), a.constant);
    if (l.defined()) weights = mul(weights, exp(unsqueeze(l, 2)));
    if (shown.defined()) weights = where(shown, weights, 0.0);
    weights = div(weights, sum(weights, {3}, true));
  }
  return matmul(weights, v);
}

Variable rows(int64_t n, uint32_t draw, double size = 1.0) {
  return Variable(mul(Variable(normal_tensor(Shape{2, 2, n, 5}, draw)), size).value(), true);
}

}  // namespace

TEST_CASE("feature maps: linear attention is the dense quotient, with and without key weights") {
  for (auto [name, settings] : all_maps()) {
    settings.denominator = 0.0;
    for (const bool causal : {false, true}) {
      for (const bool weighted : {false, true}) {
        CAPTURE(name);
        CAPTURE(causal);
        CAPTURE(weighted);
        Core core(settings);
        const int64_t T = 9, S = causal ? 9 : 7;
        const double size = settings.unit_rows_given ? 0.2 : 0.7;
        const Variable q = rows(T, 1, size), k = rows(S, 2, size), v = rows(S, 3);
        const Variable log_weight =
            weighted ? Variable(normal_tensor(Shape{2, 2, S}, 4), true) : Variable();
        const AttentionMask mask{first_places({S, S - 2}, S), Tensor(), causal};
        Variables inputs{q, k, v};
        if (weighted) inputs.push_back(log_weight);
        const Variable ours = core(q, k, v, mask, log_weight);
        const Variable theirs = dense(core.core.map(), q, k, v, mask, log_weight);
        check_relative(ours.value(), theirs.value(), 1e-12);
        const Variable c(normal_tensor(ours.shape(), 8));
        const Variables g = grad({ours}, inputs, {c}), h = grad({theirs}, inputs, {c});
        for (size_t i = 0; i < g.size(); ++i) check_relative(g[i].value(), h[i].value(), 1e-11);
      }
    }
  }
}

TEST_CASE("feature maps: large rows stay finite and equal to the value in log space") {
  for (const auto& [name, settings] : all_maps()) {
    if (settings.unit_rows_given || !Core(settings).core.map().log_features()) continue;
    for (const bool causal : {false, true}) {
      CAPTURE(name);
      CAPTURE(causal);
      Core core(settings);
      const Variable q = rows(9, 1, 40.0), k = rows(9, 2, 40.0), v = rows(9, 3);
      const AttentionMask mask{Tensor(), Tensor(), causal};
      const Variable ours = core(q, k, v, mask), theirs = dense(core.core.map(), q, k, v, mask, {});
      REQUIRE(all_finite(ours.value()));
      check_near(ours.value(), theirs.value(), 1e-10);
    }
  }
  // Trigonometric features are bounded; the weights of their keys are not.
  Core core(settings_of({"trig", "iid", "softmax"}, 22));
  CHECK(all_finite(core(rows(9, 1, 40.0), rows(9, 2, 40.0), rows(9, 3), {}).value()));
}

TEST_CASE("feature maps: the order of keys does not matter, later keys neither") {
  const Tensor order = Tensor::from_vector(std::vector<int64_t>{4, 2, 6, 0, 3, 1, 5});
  for (const auto& [name, settings] : all_maps()) {
    CAPTURE(name);
    Core core(settings);
    const Variable q = rows(7, 1, 0.5), k = rows(7, 2, 0.5), v = rows(7, 3);
    const auto shuffled = [&](const Variable& x) { return index_select(x, 2, order); };
    check_relative(core(q, shuffled(k), shuffled(v), {}).value(), core(q, k, v, {}).value(), 1e-12);
    const AttentionMask causal{Tensor(), Tensor(), true};
    const Tensor before = core(q, k, v, causal).value().slice(2, 0, 4).clone();
    k.value().slice(2, 4, 7).fill(3.0);
    v.value().slice(2, 4, 7).fill(-5.0);
    check_relative(core(q, k, v, causal).value().slice(2, 0, 4), before, 1e-6);
  }
}

TEST_CASE("feature maps: a draw goes through a checkpoint, a foreign one is rejected") {
  for (const auto& [name, settings] : all_maps()) {
    if (!settings.reads("redraw")) continue;
    CAPTURE(name);
    Core a(settings), b(settings, 99);
    const Variable q = rows(7, 1, 0.3), k = rows(7, 2, 0.3), v = rows(7, 3);
    a.core.begin_step(11, 0);
    CHECK(max_abs_difference(a(q, k, v, {}).value(), b(q, k, v, {}).value()) > 1e-6);
    std::map<std::string, Tensor> state;
    for (const auto& [key, value] : a.core.state_dict()) state[key] = value.clone();
    b.core.load_state_dict(state);
    for (const uint32_t step : {11u, 12u}) {
      a.core.begin_step(step, 0);
      b.core.begin_step(step, 0);
      check_near(b(q, k, v, {}).value(), a(q, k, v, {}).value(), 0.0);
    }
    a.core.eval();
    b.core.eval();
    check_near(b(q, k, v, {}).value(), a(q, k, v, {}).value(), 0.0);
  }
  Core iid(settings_of({"positive", "iid", "softmax"}, 22));
  Core orf(settings_of({"positive", "orf", "softmax"}, 22));
  CHECK(contains(error_of([&] { iid.core.load_state_dict(orf.core.state_dict()); }), "matrix"));
}

TEST_CASE("feature maps: policies, evaluation draws and draws per head") {
  AttentionSettings s = settings_of({"trig", "iid", "softmax"}, 22);
  s.redraw = RedrawPolicy::parse("every:3");
  s.eval_draws = 2;
  s.draws_per_head = true;
  Core core(s);
  auto& map = dynamic_cast<ProjectedFeatures&>(core.core.map());
  const auto omega = [&] { return map.omega(DType::float64, kCpu).clone(); };
  core.core.begin_step(3, 0);
  const Tensor third = omega();
  REQUIRE(third.shape() == Shape{2, 5, 11});
  CHECK(max_abs_difference(third.select(0, 0), third.select(0, 1)) > 0.1);
  core.core.begin_step(5, 0);
  check_near(omega(), third, 0.0);
  core.core.begin_step(6, 0);
  CHECK(max_abs_difference(omega(), third) > 0.1);
  core.core.eval();
  const Tensor first = omega();
  core.core.use_eval_draw(1);
  CHECK(max_abs_difference(omega(), first) > 0.1);
  CHECK_THROWS_AS(core.core.use_eval_draw(2), Error);
}

TEST_CASE("feature maps: what does not fit is an error that says what to change") {
  AttentionSettings s = settings_of({"positive", "orf", "softmax"}, 22);
  s.kernel = pair_kernel("poly:c=1,k=2");
  CHECK(contains(error_of([&] { Core core(s); }), "cannot estimate the kernel poly:c=1,k=2"));
  s = settings_of({"maclaurin", "", "gaussian"}, 22);
  CHECK(contains(error_of([&] { Core core(s); }), "cannot estimate the kernel gaussian"));
  s = settings_of({"elu", "orf", "softmax"}, 22);
  CHECK(contains(error_of([&] { Core core(s); }), "no projection matrix"));
  s = settings_of({"trig", "iid", "softmax"}, 21);
  CHECK(contains(error_of([&] { Core core(s); }), "multiple of it, is 21"));
  CHECK(contains(error_of([] { feature_map("favor"); }), "use maclaurin, positive"));
  CHECK(contains(error_of([] { attention_kind("rfa"); }), "use softmax, exact"));
}

namespace {

const Tensor& four_rows(int which) {
  static const Tensor tensors[] = {
      Tensor::from_vector(Row{0.9, -0.4, 0.1, 0.7, -0.6, 0.5, 0.3, 1.1}, Shape{1, 1, 4, 2}),
      Tensor::from_vector(Row{0.2, 0.8, -0.7, 0.3, 1.0, 0.4, 0.5, -0.9}, Shape{1, 1, 4, 2}),
      Tensor::from_vector(Row{1, -2, 0.5, 0, -1, 3, 2, 1}, Shape{1, 1, 4, 2})};
  return tensors[which];
}

}  // namespace

TEST_CASE("attention figures: FAVOR+, exact Gaussian, forget gates in softmax") {
  ModelRandom random(1);
  const AttentionSite site{AttentionRole::causal_self, 1, 2, &random};
  const Variable q(four_rows(0)), k(four_rows(1)), v(four_rows(2));
  const auto check_figure = [&](const AttentionSettings& s, const AttentionInputs& in,
                                const Row& expected) {
    CAPTURE(s.kind.name);
    const auto core = make_attention_core(nullptr, "core", s, site);
    check_near(core->forward(in).value(), Tensor::from_vector(expected, Shape{1, 1, 4, 2}), 6e-8);
  };
  AttentionSettings favor = settings_of({"positive", "iid", "softmax"}, 3);
  favor.matrix = given({{0.7, -1.2}, {-0.3, 0.5}, {1.6, 0.4}});
  check_figure(
      favor, {q, k, v, {}, {}},
      {0.4953283, 1.0780290, 0.3868054, 0.8695687, 0.5216504, 0.6099934, 0.3100824, 0.9277324});
  AttentionSettings gaussian = exact_settings();
  gaussian.kernel = pair_kernel("gaussian");
  check_figure(
      gaussian, {q, k, v, {}, {}},
      {0.6430048, 0.8934023, 0.4925332, 0.2026128, 0.6089705, -0.0039407, 0.4115857, 0.1742189});
  Row log_weight;
  double sum = 0.0;
  for (const double g : {0.9, 0.6, 0.75, 0.5}) log_weight.push_back(sum -= std::log(g));
  const Variable weight(Tensor::from_vector(log_weight, Shape{1, 1, 4}));
  for (AttentionSettings s : {softmax_settings(), exact_settings()})
    check_figure(s, {q, k, v, {Tensor(), Tensor(), true}, weight},
                 {1, -2, 0.7251203, -0.9004812, 0.1468508, 0.4800505, 0.4024048, 0.9853658});
}

TEST_CASE("attention: key weights hide, scale and decode alike in every kind") {
  // Gates close to 0 and to 1, as logarithms that grow along the sequence.
  const Variable gates(cumsum(exp(Variable(normal_tensor(Shape{2, 2, 7}, 4))), 2).value(), true);
  const Variable q = rows(7, 1, 0.5), k = rows(7, 2, 0.5), v = rows(7, 3);
  const AttentionMask causal{first_places({7, 7}, 7), Tensor(), true};
  for (const char* kind : {"softmax", "exact", "rmfa", "positive", "trig", "elu"}) {
    CAPTURE(kind);
    AttentionSettings s;
    const bool is_map = std::any_of(feature_maps().begin(), feature_maps().end(),
                                    [&](const FeatureMapKind& map) { return map.name == kind; });
    s.kind = attention_kind(is_map ? "linear" : kind);
    if (is_map) s.map = feature_map(kind);
    s.features = 40;
    ModelRandom random(3);
    const auto core =
        make_attention_core(nullptr, "core", s, {AttentionRole::causal_self, 2, 5, &random});
    core->to(DType::float64);
    core->eval();
    const Tensor whole = core->forward({q, k, v, causal, gates}).value();
    // A constant added to all logarithms cancels; hidden keys have weight 0.
    check_relative(core->forward({q, k, v, causal, add(gates, 50.0)}).value(), whole, 1e-11);
    const Tensor first = equal(Tensor::arange(7, DType::float64), 0.0);
    check_relative(core->forward({q, k, v, {}, where(first, gates, -1e4)}).value(),
                   expand(slice(v, 2, 0, 1), v.shape()).value(), 1e-11);
    const NoGrad off;
    for (const int64_t piece : {1, 3}) {
      DecodeState state;
      for (int64_t t = 0; t < 7; t += piece) {
        const int64_t end = std::min<int64_t>(7, t + piece);
        const auto at = [&](const Variable& x) { return slice(x, 2, t, end); };
        const AttentionMask mask{first_places({end, end}, end), Tensor(), true};
        check_relative(core->forward({at(q), at(k), at(v), mask, at(gates)}, &state).value(),
                       whole.slice(2, t, end), 1e-11);
      }
    }
  }
}

TEST_CASE("attention: gates of 0.1 over 2,000 positions keep float32's precision") {
  const NoGrad off;
  constexpr int64_t kLength = 2000;
  const Variable positions(Tensor::arange(kLength, DType::float64).reshape({1, 1, kLength}));
  const Variable gates = mul(positions, -std::log(0.1));  // up to 4,600
  const auto input = [](uint32_t draw) {
    return Variable(mul(Variable(normal_tensor(Shape{1, 1, kLength, 4}, draw)), 0.5).value());
  };
  const Variable q = input(1), k = input(2), v = input(3);
  const AttentionMask causal{Tensor(), Tensor(), true};
  for (const char* kind : {"softmax", "exact", "rmfa", "linear"}) {
    CAPTURE(kind);
    AttentionSettings s;
    s.kind = attention_kind(kind);
    s.map = feature_map("positive");
    s.features = 40;
    ModelRandom random(3);
    const auto core =
        make_attention_core(nullptr, "core", s, {AttentionRole::causal_self, 1, 4, &random});
    const auto run = [&](DType dtype) {
      core->to(dtype);
      return core->forward({cast(q, dtype), cast(k, dtype), cast(v, dtype), causal, gates})
          .value()
          .to(DType::float64);
    };
    check_near(run(DType::float32), run(DType::float64), 1e-4);
  }
}

namespace {

/// φ(x) = exp(x), not divided by anything; log φ or φ.
struct Unnormalised : FeatureMap {
  Unnormalised(Module* parent, std::string name, bool logarithms)
      : FeatureMap(parent, std::move(name), nullptr), log(logarithms) {}
  int64_t columns() const override { return 5; }
  bool log_features() const override { return log; }
  bool row_by_row() const override { return rows_alone; }
  Normaliser normaliser() const override { return Normaliser::none; }
  double factor() const override { return 0.25; }
  MappedRows map(const Variable& x, Side, const Tensor&) override {
    return {log ? x : exp(x), Variable()};
  }
  std::string describe() const override { return "unnormalised"; }
  bool log, rows_alone = true;
};

}  // namespace

TEST_CASE("feature maps from outside: without a quotient, and with keys that belong together") {
  for (const bool logarithms : {false, true}) {
    CAPTURE(logarithms);
    AttentionSettings s;
    s.kind = attention_kind("linear");
    s.map = FeatureMapKind{"outside",
                           "exp(x)",
                           {},
                           0,
                           "",
                           nullptr,
                           [&](Module* parent, const std::string& name, const AttentionSettings&,
                               const AttentionSite&, const LogitScale*) {
                             return std::make_unique<Unnormalised>(parent, name, logarithms);
                           }};
    Core core(s);
    core.core.eval();
    const NoGrad off;
    const Variable q = rows(6, 1), k = rows(6, 2), v = rows(6, 3);
    for (const Variable& weight : {Variable(), Variable(normal_tensor(Shape{2, 2, 6}, 4))}) {
      const AttentionMask causal{Tensor(), Tensor(), true};
      Variable kernel = matmul(exp(q), transpose(exp(k), 2, 3));
      if (weight.defined()) kernel = mul(kernel, exp(unsqueeze(weight, 2)));
      const Variable expected =
          mul(matmul(where(visible(causal, 6, 6, kCpu), kernel, 0.0), v), 0.25);
      check_relative(core(q, k, v, causal, weight).value(), expected.value(), 1e-12);
      DecodeState state;
      for (int64_t t = 0; t < 6; ++t) {
        const auto at = [&](const Variable& x) { return slice(x, 2, t, t + 1); };
        AttentionInputs in{at(q), at(k), at(v), causal, {}};
        if (weight.defined()) in.log_weight = at(weight);
        check_relative(core.core.forward(in, &state).value(), expected.value().slice(2, t, t + 1),
                       1e-12);
      }
    }
    dynamic_cast<Unnormalised&>(core.core.map()).rows_alone = false;
    CHECK_NOTHROW(core(q, k, v, {}));
    CHECK(contains(error_of([&] { core(q, k, v, {Tensor(), Tensor(), true}); }), "all keys"));
  }
}

namespace {

/// Positive features by map() alone, as a map from outside has them.
struct OwnPositive : ProjectedFeatures {
  OwnPositive(Module* parent, std::string name, const AttentionSettings& settings,
              const AttentionSite& site, const LogitScale* scale)
      : ProjectedFeatures(parent, std::move(name), "own", settings, site, scale, 1, 0.5) {}
  bool log_features() const override { return true; }
  MappedRows map(const Variable& x, Side side, const Tensor&) override {
    const Variable rows = scaled(x);
    return {projected(rows), log_weight(rows, side)};
  }
};

}  // namespace

TEST_CASE("feature maps: functions of projections run inside the kernel of attention") {
  const auto op_of = [](const std::string& map, bool own) {
    AttentionSettings s = settings_of({map, "iid", "softmax"}, 22);
    if (own)
      s.map.make = [](Module* parent, const std::string& name, const AttentionSettings& settings,
                      const AttentionSite& site, const LogitScale* scale) {
        return std::make_unique<OwnPositive>(parent, name, settings, site, scale);
      };
    Core core(s);
    const Variable q = rows(7, 1, 0.5), k = rows(7, 2, 0.5), v = rows(7, 3);
    const Variable out = core.core.map().attend(q, k, v, {}, {}, 0.1, nullptr);
    return std::pair(out.node()->op, out);
  };
  CHECK(op_of("positive", false).first == "projected_attention");
  CHECK(op_of("trig", false).first == "projected_attention");
  const auto [op, out] = op_of("positive", true);
  CHECK(op == "linear_attention");
  check_relative(op_of("positive", false).second.value(), out.value(), 1e-12);
}

TEST_CASE("feature maps: the gradient of a trained scale, with NaN at padding") {
  for (const char* name : {"positive", "trig"}) {
    CAPTURE(name);
    AttentionSettings s = settings_of({name, "iid", "softmax"}, 22);
    s.train_logit_scale = true;
    s.denominator = 0.0;
    Core core(s);
    const Variable k = rows(7, 2, 0.5), q = rows(9, 1, 0.5), v = rows(7, 3);
    const AttentionMask mask{first_places({7, 5}, 7), Tensor(), false};
    const Variable theirs = dense(core.core.map(), q, k, v, mask, {});
    const Variable c(normal_tensor(theirs.shape(), 8));
    const Parameter& theta = *core.core.logit_scale.theta;
    const Tensor expected = grad({theirs}, {theta}, {c})[0].value();
    k.value().slice(0, 1, 2).slice(2, 5, 7).fill(std::numeric_limits<double>::quiet_NaN());
    const Variable ours = core(q, k, v, mask);
    check_relative(ours.value(), theirs.value(), 1e-12);
    check_relative(grad({ours}, {theta}, {c})[0].value(), expected, 1e-11);
  }
}

TEST_CASE("attention: mean gives every visible value the same weight") {
  AttentionSettings s;
  s.kind = attention_kind("mean");
  ModelRandom random(1);
  const auto core = make_attention_core(nullptr, "core", s, {AttentionRole::self, 2, 5, &random});
  const Variable q = rows(4, 1), k = rows(4, 2), v = rows(4, 3);
  check_near(core->forward({q, k, v, {}, {}}).value(),
             expand(mean(v, {2}, true), v.shape()).value(), 1e-13);
  const Tensor causal = core->forward({q, k, v, {Tensor(), Tensor(), true}, {}}).value();
  check_near(causal.slice(2, 0, 1), v.value().slice(2, 0, 1), 1e-13);
  check_near(causal.slice(2, 3, 4), mean(v, {2}, true).value(), 1e-13);
}

}  // namespace macgrad::nn
