// Attention cores: masks, sameness under padding and batching, agreement with each other, ppSBN,
// the logit scale, decoding with a state.
#include <cmath>
#include <limits>

#include "macgrad/autograd/fused.h"
#include "nn_checks.h"

namespace macgrad::nn {

using namespace macgrad::checks;

namespace {

constexpr int64_t kHeads = 2, kDim = 4;

/// A core on its own.
struct Core : Module {
  explicit Core(AttentionSettings settings, AttentionRole role = AttentionRole::self)
      : random(5),
        core(make_attention_core(this, "core", settings, {role, kHeads, kDim, &random})) {
    to(DType::float64);
  }
  Variable operator()(const Variable& q, const Variable& k, const Variable& v, const Mask& mask,
                      DecodeState* state = nullptr) {
    return core->forward({q, k, v, mask, {}}, state);
  }
  ModelRandom random;
  std::unique_ptr<AttentionCore> core;
};

std::vector<std::pair<std::string, AttentionSettings>> all_settings() {
  std::vector<std::pair<std::string, AttentionSettings>> all;
  all.emplace_back("softmax", softmax_settings());
  all.emplace_back("exact", exact_settings());
  all.emplace_back("rmfa", rmfa_settings(40, false));
  for (const AttentionKind& kind : attention_kinds()) {
    for (const PreSbnMode mode : {PreSbnMode::row, PreSbnMode::batch}) {
      AttentionSettings s = rmfa_settings(40);
      s.kind = kind;
      s.pre_sbn = mode;
      s.sbn_eps = 1e-6;
      s.post_sbn_per_dim = mode == PreSbnMode::row;
      all.emplace_back(fmt::format("ppSBN {} {}", kind.name, static_cast<int>(mode)), s);
    }
  }
  AttentionSettings s = rmfa_settings(40, false);
  s.qk_norm = true;
  s.kernel = dot_product_kernel("inv");
  s.train_logit_scale = true;
  s.draws = DrawMethod::official;
  all.emplace_back("rmfa inv, unit norm, trained scale", s);
  for (const FeatureMapKind& map : feature_maps()) {
    for (const std::string kernel : {"softmax", "gaussian"}) {
      if (map.estimates ? !map.estimates(pair_kernel(kernel)) : kernel == "gaussian") continue;
      for (const bool unit : {false, true}) {
        AttentionSettings l;
        l.kind = attention_kind("linear");
        l.map = map;
        l.kernel = pair_kernel(kernel);
        l.logit_scale = 1.0;
        l.features = 40;
        l.qk_norm = unit;
        l.train_logit_scale = unit && l.reads("train_logit_scale");
        all.emplace_back(fmt::format("{} {}{}", map.name, kernel, unit ? ", unit norm" : ""), l);
      }
    }
  }
  s = exact_settings();
  s.kernel = pair_kernel("gaussian");
  s.train_logit_scale = true;
  all.emplace_back("exact gaussian", s);
  return all;
}

/// Gradients of the inputs; zero where the output does not depend on one, as in `mean`.
Variables gradients(const Variable& out, const Variables& inputs, const Variable& cotangent) {
  Variables g = grad({out}, inputs, cotangent.defined() ? Variables{cotangent} : Variables{},
                     {.allow_unused = true});
  for (size_t i = 0; i < g.size(); ++i)
    if (!g[i].defined()) g[i] = Variable(Tensor::zeros(inputs[i].shape(), inputs[i].dtype()));
  return g;
}

Variable leaf(int64_t B, int64_t L, uint32_t draw) {
  return normal_leaf(Shape{B, kHeads, L, kDim}, draw);
}

}  // namespace

TEST_CASE("attention: invalid queries give 0 and pass no gradient; keys beyond the mask neither") {
  for (const auto& [name, settings] : all_settings()) {
    CAPTURE(name);
    Core core(settings);
    Variable q = leaf(2, 5, 1), k = leaf(2, 6, 2), v = leaf(2, 6, 3);
    const Mask mask{first_places({6, 3}, 6), first_places({5, 2}, 5), false};
    // Whatever stands at invalid places must not matter.
    q.value().select(0, 1).slice(1, 2, 5).fill(std::numeric_limits<double>::quiet_NaN());
    k.value().select(0, 1).slice(1, 3, 6).fill(std::numeric_limits<double>::quiet_NaN());
    v.value().select(0, 1).slice(1, 3, 6).fill(std::numeric_limits<double>::infinity());
    const Variable out = core(q, k, v, mask);
    REQUIRE(all_finite(out.value()));
    const Tensor zeros = Tensor::zeros(Shape{kHeads, 3, kDim}, DType::float64);
    check_near(out.value().select(0, 1).slice(1, 2, 5), zeros, 0.0);
    CHECK(max_abs_difference(out.value().select(0, 1).slice(1, 0, 2), zeros.slice(1, 0, 2)) > 1e-3);
    const Variables g = gradients(out, {q, k, v}, Variable(normal_tensor(out.shape(), 9)));
    for (const Variable& one : g) CHECK(all_finite(one.value()));
    check_near(g[0].value().select(0, 1).slice(1, 2, 5), zeros, 0.0);
    check_near(g[1].value().select(0, 1).slice(1, 3, 6), zeros, 0.0);
    check_near(g[2].value().select(0, 1).slice(1, 3, 6), zeros, 0.0);
  }
}

TEST_CASE("attention: rows without a visible key are 0") {
  for (const auto& [name, settings] : all_settings()) {
    CAPTURE(name);
    Core core(settings);
    const Variable q = leaf(2, 3, 1), k = leaf(2, 4, 2), v = leaf(2, 4, 3);
    const Variable out = core(q, k, v, {first_places({4, 0}, 4), Tensor(), false});
    const Tensor zeros = Tensor::zeros(Shape{kHeads, 3, kDim}, DType::float64);
    check_near(out.value().select(0, 1), zeros, 0.0);
    const Variables g = gradients(sum(out), {q, k, v}, Variable());
    for (const Variable& one : g) {
      CHECK(all_finite(one.value()));
      // Batch statistics carry gradients to every row that takes part in them.
      if (settings.ppsbn && settings.pre_sbn == PreSbnMode::batch) continue;
      check_near(one.value().select(0, 1),
                 Tensor::zeros(one.value().select(0, 1).shape(), DType::float64), 0.0);
    }
  }
}

TEST_CASE("attention: padded = unpadded, batch = single, in values and gradients") {
  for (const auto& [name, settings] : all_settings()) {
    CAPTURE(name);
    Core core(settings);
    // Statistics over a batch depend on the batch; evaluation uses the running ones.
    if (settings.pre_sbn == PreSbnMode::batch) core.eval();
    for (const bool causal : {false, true}) {
      const Variable q = leaf(2, 7, 1), k = leaf(2, 7, 2), v = leaf(2, 7, 3);
      const Tensor valid = first_places({7, 4}, 7);
      const Tensor cotangent = normal_tensor(Shape{2, kHeads, 7, kDim}, 4);
      const Variable out = core(q, k, v, {valid, valid, causal});
      const Variables g = gradients(out, {q, k, v}, Variable(cotangent));
      for (const int64_t b : {0, 1}) {
        const int64_t n = b == 0 ? 7 : 4;
        const auto cut = [&](const Tensor& t) { return t.slice(0, b, b + 1).slice(2, 0, n); };
        const auto alone = [&](const Variable& x) {
          return Variable(cut(x.value()).clone(), true);
        };
        const Variable q1 = alone(q), k1 = alone(k), v1 = alone(v);
        const Variable out1 = core(q1, k1, v1, {Tensor(), Tensor(), causal});
        check_near(out1.value(), cut(out.value()), 1e-12);
        const Variables g1 = gradients(out1, {q1, k1, v1}, Variable(cut(cotangent).clone()));
        for (size_t i = 0; i < 3; ++i) check_near(g1[i].value(), cut(g[i].value()), 1e-11);
      }
    }
  }
}

TEST_CASE("attention: batch statistics leave padding out") {
  AttentionSettings s = exact_settings(true);
  s.pre_sbn = PreSbnMode::batch;
  Core core(s), same(s);
  const Variable q = leaf(1, 4, 1), k = leaf(1, 4, 2), v = leaf(1, 4, 3);
  const auto padded = [](const Variable& x) {
    return concat({x, Variable(Tensor::full(Shape{1, kHeads, 2, kDim}, 50.0, DType::float64))}, 2);
  };
  const Tensor valid = first_places({4}, 6);
  check_near(core(padded(q), padded(k), padded(v), {valid, valid, false}).value().slice(2, 0, 4),
             same(q, k, v, {}).value(), 1e-12);
}

TEST_CASE("attention: exact attention of the exp kernel is softmax attention") {
  for (const bool ppsbn : {false, true}) {
    AttentionSettings soft = softmax_settings();
    soft.ppsbn = ppsbn;
    soft.logit_scale = 1.7;
    AttentionSettings exact = soft;
    exact.kind = attention_kind("exact");
    Core a(soft), b(exact);
    const Variable q = leaf(2, 5, 1), k = leaf(2, 7, 2), v = leaf(2, 7, 3);
    for (const bool causal : {false, true}) {
      const Mask mask{first_places({7, 3}, 7), first_places({5, 5}, 5), causal};
      const Variable ya = a(q, k, v, mask), yb = b(q, k, v, mask);
      check_near(ya.value(), yb.value(), 1e-12);
      const Variable c(normal_tensor(ya.shape(), 8));
      const Variables ga = grad({ya}, {q, k, v}, {c}), gb = grad({yb}, {q, k, v}, {c});
      for (size_t i = 0; i < 3; ++i) check_near(ga[i].value(), gb[i].value(), 1e-12);
    }
  }
}

TEST_CASE("attention: RMFA comes near exact attention with many features") {
  const auto nmse = [](const Tensor& a, const Tensor& exact) {
    const Variable e = sub(Variable(a), Variable(exact));
    return sum(mul(e, e)).item() / sum(mul(Variable(exact), Variable(exact))).item();
  };
  for (const std::string kernel : {"exp", "inv", "log", "sqrt", "poly:c=1,k=3"}) {
    CAPTURE(kernel);
    AttentionSettings approximate = rmfa_settings(2048);
    approximate.kernel = dot_product_kernel(kernel);
    approximate.draws = DrawMethod::official;
    AttentionSettings exact = approximate;
    exact.kind = attention_kind("exact");
    Core a(approximate), b(exact);
    const Variable q = leaf(2, 9, 1), k = leaf(2, 9, 2), v = leaf(2, 9, 3);
    for (const bool causal : {false, true}) {
      const Mask mask{first_places({9, 6}, 9), Tensor(), causal};
      CHECK(nmse(a(q, k, v, mask).value(), b(q, k, v, mask).value()) < 0.01);
    }
  }
}

TEST_CASE("attention: cores pass gradcheck") {
  const OneThread one_thread;
  for (const auto& [name, settings] : all_settings()) {
    CAPTURE(name);
    Core core(settings);
    // Small, so that few features keep the denominators away from 0.
    const auto small = [](uint32_t draw) {
      return Variable(mul(leaf(2, 4, draw), 0.5).value().clone(), true);
    };
    Variables inputs{small(1), small(2), small(3)};
    for (const Parameter* p : core.parameters()) inputs.push_back(*p);
    const Tensor valid = first_places({4, 3}, 4);
    const auto f = [&](const Variables& in) {
      return core(in[0], in[1], in[2], {valid, valid, true});
    };
    const GradcheckResult result = gradcheck(f, inputs);
    CHECK_MESSAGE(result.ok, result.message);
  }
}

TEST_CASE("attention: what leaves a kernel's domain is refused when it is made") {
  AttentionSettings s = rmfa_settings(16, false);
  s.kernel = dot_product_kernel("inv");
  CHECK(contains(error_of([&] { Core core(s); }), "unit norm"));
  s.ppsbn = true;
  s.logit_scale = 2.0;  // radius·√d = 2
  CHECK(contains(error_of([&] { Core core(s); }), "below 2"));
  s.logit_scale = 1.95;
  CHECK_NOTHROW(Core{s});
  s.train_logit_scale = true;  // below 0.95·2 = 1.9
  CHECK(contains(error_of([&] { Core core(s); }), "start lower"));
  s.train_logit_scale = false;
  s.logit_scale = -1.0;
  CHECK_THROWS_AS(Core{s}, Error);
}

TEST_CASE("the default attention separates keys, and the paper's form is named") {
  AttentionSettings s;
  CHECK(resolved_logit_scale(s, 32) == 1.0);
  for (const bool ppsbn : {true, false}) {
    s.ppsbn = ppsbn;
    s.qk_norm = !ppsbn;
    CHECK(resolved_logit_scale(s, 32) == doctest::Approx(8.0));
    s.kind = attention_kind("rmfa");
    CHECK(resolved_logit_scale(s, 8) == doctest::Approx(4.0));
    s.kernel = dot_product_kernel("inv");
    CHECK(resolved_logit_scale(s, 16) == doctest::Approx(2.0));  // radius 1: half of 4
    s.kind = attention_kind("softmax");                          // does not read the kernel
    CHECK(resolved_logit_scale(s, 16) == doctest::Approx(std::sqrt(32.0)));
    s.kernel = dot_product_kernel("exp");
  }
  s.logit_scale = 3.0;
  CHECK(resolved_logit_scale(s, 32) == 3.0);

  const auto described = [](const AttentionSettings& settings) {
    ModelRandom random(1);
    return make_attention_core(nullptr, "core", settings, {AttentionRole::self, 2, 32, &random})
        ->describe();
  };
  s = {};
  s.kind = attention_kind("rmfa");
  s.ppsbn = true;
  for (const char* part : {"preSBN row", "draws optimal", "logit scale 8"})
    CHECK_MESSAGE(contains(described(s), part), described(s));
  for (const char* part : {"preSBN batch", "maclaurin exp, D 128", "draws iid", "redraw step",
                           "logit scale 1,", "floored at 0.001"})
    CHECK_MESSAGE(contains(described(paper_attention()), part), described(paper_attention()));
  CHECK(paper_attention().sbn_eps == 1e-13);

  // Each query equals one of four random keys: the default gives that key most of the weight.
  const Variable q(Tensor::randn(Shape{1, 1, 4, 32}, 5));
  const Variable v(
      Tensor::from_values(std::vector<double>{1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1},
                          Shape{1, 1, 4, 4}, DType::float32));
  s.kind = attention_kind("exact");
  ModelRandom random(1);
  const auto core = make_attention_core(nullptr, "core", s, {AttentionRole::self, 1, 32, &random});
  core->eval();
  const Tensor weights = core->forward({q, q, v}).value();
  for (int64_t i = 0; i < 4; ++i) CHECK(weights.at({0, 0, i, i}) > 0.45);  // 0.25 in a mean
}

TEST_CASE("the trained logit scale starts where told and stays inside the radius") {
  LogitScale finite(nullptr, "scale", 1.5, true, 1.0, 4);
  CHECK(finite.value() == doctest::Approx(1.5));
  CHECK(finite.apply(Variable(Tensor::full(Shape{1}, 2.0))).item() == doctest::Approx(3.0));
  finite.theta->value().fill(50.0);
  CHECK(finite.value() == doctest::Approx(1.9));
  LogitScale free(nullptr, "scale", 8.0, true, kEverywhere, 4);
  CHECK(free.value() == doctest::Approx(8.0));
  CHECK(free.apply(Variable(Tensor::full(Shape{1}, 3.0)), 2.0).item() == doctest::Approx(12.0));
  const Variable x(Tensor::full(Shape{1}, 3.0));
  const Variable y = free.apply(x);
  CHECK(grad({y}, {*free.theta})[0].item() == doctest::Approx(24.0));
}

TEST_CASE("a trained scale reaches RMFA whatever scale the draw was made for") {
  AttentionSettings s = rmfa_settings(4096);
  s.draws = DrawMethod::optimal;
  s.train_logit_scale = true;
  s.redraw = RedrawPolicy::parse("never");
  AttentionSettings e = s;
  e.kind = attention_kind("exact");
  Core rmfa(s), exact(e);
  const Variable q = leaf(1, 9, 1), k = leaf(1, 9, 2), v = leaf(1, 9, 3);
  const auto difference = [&] {
    return max_abs_difference(rmfa(q, k, v, {}).value(), exact(q, k, v, {}).value());
  };
  CHECK(difference() < 0.05);
  for (Core* core : {&rmfa, &exact})
    for (const auto& [name, p] : core->named_parameters())
      if (contains(name, "theta")) p->value().fill(std::log(3.0));
  CHECK(difference() < 0.2);  // the draw still stands for scale 1
  rmfa.begin_step(1, 0);
  const auto& draw = maclaurin(dynamic_cast<PpSbn&>(*rmfa.core).inner()).current();
  CHECK(draw.settings.logit_scale == doctest::Approx(3.0));
  CHECK(difference() < 0.2);
}

TEST_CASE("ppSBN: defaults by place, running statistics, described") {
  AttentionSettings s = rmfa_settings(16);
  CHECK(contains(Core(s, AttentionRole::self).core->describe(), "preSBN batch"));
  CHECK(contains(Core(s, AttentionRole::causal_self).core->describe(), "preSBN row"));
  CHECK(contains(Core(s, AttentionRole::cross).core->describe(), "preSBN row"));
  s.pre_sbn = PreSbnMode::batch;
  CHECK(contains(Core(s, AttentionRole::causal_self).core->describe(), "sees later ones"));

  Core core(s);
  auto& sbn = dynamic_cast<PpSbn&>(*core.core);
  const Variable q = leaf(3, 50, 1), k = leaf(3, 50, 2), v = leaf(3, 50, 3);
  core(add(q, 2.0), k, v, {});
  const Variable rows = reshape(permute(add(q, 2.0), {1, 3, 0, 2}), Shape{kHeads, kDim, 150});
  check_near(sbn.query_norm.running_mean->value(), mul(mean(rows, {2}), 0.1).value(), 1e-12);
  check_near(sbn.query_norm.running_var->value(), add(mul(var(rows, {2}, 0.0), 0.1), 0.9).value(),
             1e-12);
  CHECK(sbn.key_norm.running_mean->value().at({0, 0}) < 0.1);
  // They move once per forward pass, the composite's as well.
  Core composite(s);
  {
    const Unfused unfused;
    composite(add(q, 2.0), k, v, {});
  }
  check_near(dynamic_cast<PpSbn&>(*composite.core).query_norm.running_mean->value(),
             sbn.query_norm.running_mean->value(), 1e-12);
  core.eval();
  const Tensor kept = sbn.query_norm.running_mean->value().clone();
  core(q, k, v, {});
  check_near(sbn.query_norm.running_mean->value(), kept, 0.0);
}

TEST_CASE("ppSBN: evaluation with the statistics of the batch at hand") {
  Core core(rmfa_settings(16));
  auto& sbn = dynamic_cast<PpSbn&>(*core.core);
  const Variable q = leaf(3, 50, 1), k = leaf(3, 50, 2), v = leaf(3, 50, 3);
  core(add(q, 2.0), k, v, {});
  const Tensor mean_kept = sbn.query_norm.running_mean->value().clone();
  const Tensor var_kept = sbn.key_norm.running_var->value().clone();
  core.eval();
  const auto rows = [&] { return sbn.query_norm.forward(q, {}).value(); };
  const Tensor running = rows();
  {
    const OwnStatisticsScope own(core);
    CHECK(own.modules() == 2);
    check_near(rows(), pre_sbn(q, {}, SbnStatistics::batch, 1e-13, nullptr).value(), 1e-12);
    core(q, k, v, {});
  }
  check_near(rows(), running, 0.0);
  check_near(sbn.query_norm.running_mean->value(), mean_kept, 0.0);
  check_near(sbn.key_norm.running_var->value(), var_kept, 0.0);
  CHECK_FALSE(sbn.query_norm.training());
  Core by_rows(rmfa_settings(16), AttentionRole::cross);
  CHECK(OwnStatisticsScope(by_rows).modules() == 0);
}

TEST_CASE("RMFA: what decoding keeps does not grow with what came before") {
  Core core(rmfa_settings(32, false));
  core.eval();
  const NoGrad no_grad;
  DecodeState state;
  int64_t features = 0;
  for (const int64_t length : {1, 10, 500}) {
    while (state.length() < length) {
      const Variable x = leaf(3, 1, static_cast<uint32_t>(state.length()));
      core(x, x, x, {}, &state);
    }
    if (features == 0) features = state.products().size(2);
    CHECK(state.products().shape() == Shape{3, kHeads, features, kDim + 1});
    CHECK(state.sums().shape() == Shape{3, kHeads, 1, kDim + 1});
  }
  CHECK(features <= 32 + kDim);  // random features and the linear block
}

TEST_CASE("RMFA: floored denominators are counted a step") {
  AttentionSettings s = rmfa_settings(8, false);
  s.denominator = 0.0;
  Core core(s);
  auto& rmfa = dynamic_cast<LinearAttentionCore&>(*core.core);
  // Long queries make estimates of exp vary around values far below their spread.
  const Variable q = mul(leaf(2, 30, 1), 6.0), k = mul(leaf(2, 30, 2), 6.0), v = leaf(2, 30, 3);
  core(q, k, v, {});
  const DenominatorStatistics once = rmfa.statistics();
  CHECK(once.floored > 0);
  CHECK(once.smallest_ratio < 0.0);
  core(q, k, v, {});
  CHECK(rmfa.statistics().floored == 2 * once.floored);
  core.begin_step(1, 0);
  CHECK(rmfa.statistics().floored == 0);
  CHECK(std::isinf(denominator_statistics(core).smallest_ratio));

  s.denominator = parse_denominator_floor("floor");
  Core floored(s);
  const Variable out = floored(q, k, v, {});
  CHECK(all_finite(out.value()));
  CHECK(denominator_statistics(floored).floored >= once.floored);
  CHECK(parse_denominator_floor("floor:0.25") == 0.25);
  s.denominator = 0.25;
  CHECK(contains(Core(s).core->describe(), "floored at 0.25 per visible key"));
  s.kernel = dot_product_kernel("poly:c=0,k=2");
  CHECK(contains(Core(s).core->describe(), "denominator not floored"));
}

TEST_CASE("decoding with a state equals causal attention over the whole") {
  constexpr int64_t kPlaces = 7;
  const NoGrad no_grad;
  // Padding before and within what counts.
  const Tensor holes =
      Tensor::from_vector(std::vector<bool>{true, true, true, true, true, true, true,  //
                                            false, false, true, true, false, true, true},
                          Shape{2, kPlaces});
  auto settings_list = all_settings();
  settings_list.emplace_back("rmfa, draws a head", rmfa_settings(40));
  settings_list.back().second.draws_per_head = true;
  for (DType dtype : {DType::float64, DType::float32}) {
    for (const auto& [name, settings] : settings_list) {
      for (const Tensor& valid : {Tensor(), holes}) {
        for (const int64_t piece : {1, 3, 7}) {
          CAPTURE(name);
          CAPTURE(valid.defined());
          CAPTURE(piece);
          Core core(settings, AttentionRole::causal_self);
          core.to(dtype);
          core.eval();
          const auto rows = [&](uint32_t draw) {
            return Variable(normal_tensor(Shape{2, kHeads, kPlaces, kDim}, draw, dtype));
          };
          const Variable q = rows(1), k = rows(2), v = rows(3);
          const Tensor whole = core(q, k, v, {valid, valid, true}).value();
          DecodeState state;
          for (int64_t t = 0; t < kPlaces; t += piece) {
            const int64_t end = std::min(kPlaces, t + piece);
            const auto at = [&](const Variable& x) { return slice(x, 2, t, end); };
            Mask mask{Tensor(), Tensor(), true};
            if (valid.defined()) {
              mask.key_valid = valid.slice(1, 0, end).contiguous();
              mask.query_valid = valid.slice(1, t, end).contiguous();
            }
            const Variable some = core(at(q), at(k), at(v), mask, &state);
            // Signed features of the maps have smaller denominators.
            const double single = settings.kind.uses_map ? 4e-6 : 1e-6;
            check_relative(some.value(), whole.slice(2, t, end),
                           dtype == DType::float64 ? 1e-12 : single);
          }
          CHECK(state.length() == kPlaces);
        }
      }
    }
  }
}

TEST_CASE("a state of the source is read by one query after another, and follows its rows") {
  const NoGrad no_grad;
  const Tensor valid = first_places({4, 6}, 6);
  for (const auto& [name, settings] : all_settings()) {
    CAPTURE(name);
    Core core(settings, AttentionRole::cross);
    core.eval();
    const Variable q = leaf(2, 3, 1), k = leaf(2, 6, 2), v = leaf(2, 6, 3);
    const Tensor whole = core(q, k, v, {valid, Tensor(), false}).value();
    DecodeState state;
    const auto at = [&](int64_t t) { return slice(q, 2, t, t + 1); };
    check_relative(core(at(0), k, v, {valid, Tensor(), false}, &state).value(),
                   whole.slice(2, 0, 1), 1e-12);
    CHECK(state.rows() == 2);
    check_relative(core(at(1), Variable(), Variable(), {valid, Tensor(), false}, &state).value(),
                   whole.slice(2, 1, 2), 1e-12);
    const Tensor swapped = Tensor::from_vector(std::vector<int64_t>{1, 0, 1});
    state.select(swapped);
    const auto picked = [&](const Tensor& t) { return index_select(Variable(t), 0, swapped); };
    check_relative(core(picked(at(2).value()), Variable(), Variable(),
                        {first_places({6, 4, 6}, 6), Tensor(), false}, &state)
                       .value(),
                   picked(whole.slice(2, 2, 3)).value(), 1e-12);
  }
}

TEST_CASE("a floored denominator is floored with a state as well") {
  const NoGrad no_grad;
  AttentionSettings s = rmfa_settings(8, false);
  s.denominator = 0.5;
  Core core(s, AttentionRole::causal_self);
  core.eval();
  const Variable q = mul(leaf(2, 9, 1), 4.0), k = mul(leaf(2, 9, 2), 4.0), v = leaf(2, 9, 3);
  const Tensor whole = core(q, k, v, {Tensor(), Tensor(), true}).value();
  CHECK(denominator_statistics(core).floored > 3);
  DecodeState state;
  for (int64_t t = 0; t < 9; t += 3) {
    const auto at = [&](const Variable& x) { return slice(x, 2, t, t + 3); };
    check_relative(core(at(q), at(k), at(v), {Tensor(), Tensor(), true}, &state).value(),
                   whole.slice(2, t, t + 3), 1e-12);
  }
}

// Added one by one in bfloat16, ones stop at 256: the keys of the second half would not count.
TEST_CASE("the sums of RMFA's state go on beyond 256 keys in bfloat16") {
  constexpr int64_t kPlaces = 600;
  const NoGrad no_grad;
  for (const int64_t piece : {1, 4}) {
    CAPTURE(piece);
    Core core(rmfa_settings(40, false), AttentionRole::causal_self);
    core.to(DType::bfloat16);
    core.eval();
    const auto rows = [](uint32_t draw) {
      return mul(Variable(normal_tensor(Shape{1, kHeads, kPlaces, kDim}, draw)), 0.1);
    };
    const auto low = [](const Variable& x) { return Variable(x.value().to(DType::bfloat16)); };
    const Variable q = low(rows(1)), k = low(rows(2));
    const Variable v =
        low(Variable(concat({Variable(Tensor::zeros({1, kHeads, kPlaces / 2, kDim})),
                             Variable(Tensor::full({1, kHeads, kPlaces / 2, kDim}, 1.0))},
                            2)
                         .value()));
    DecodeState state;
    Tensor last;
    for (int64_t t = 0; t < kPlaces; t += piece) {
      const auto at = [&](const Variable& x) { return slice(x, 2, t, t + piece); };
      last = core(at(q), at(k), at(v), {Tensor(), Tensor(), true}, &state).value();
    }
    CHECK(last.dtype() == DType::bfloat16);
    core.to(DType::float32);
    const auto wide = [](const Variable& x) { return Variable(x.value().to(DType::float32)); };
    const Tensor whole = core(wide(q), wide(k), wide(v), {Tensor(), Tensor(), true}).value();
    check_near(last.to(DType::float32), whole.slice(2, kPlaces - piece, kPlaces), 0.02);
  }
}

TEST_CASE("RMFA refuses a backward pass after its draw was overwritten") {
  const auto settings = rmfa_settings(40, false);
  Core core(settings);
  core.train();
  const Variable q = leaf(1, 3, 1), k = leaf(1, 3, 2), v = leaf(1, 3, 3);
  auto& features = maclaurin(*core.core);
  for (const bool overwritten : {false, true}) {
    const Variable y = sum(core(q, k, v, {}));
    const FeatureDraw& draw = features.current(DType::float64);
    if (overwritten) draw.weight.copy_from(draw.weight.clone());
    const std::string message = error_of([&] { backward(y); });
    CHECK(contains(message, "the feature draw") == overwritten);
  }
}

TEST_CASE("a trained scale is formed in float32 and rounded once in bfloat16") {
  constexpr double kTau = 1.37;
  LogitScale scale(nullptr, "scale", kTau, true, kEverywhere, 4);
  scale.to(DType::bfloat16);
  const double theta = scale.theta->value().item();
  const Variable x(Tensor::full({1}, 1.0, DType::bfloat16));
  for (const double relative_to : {1.0, 1.2345, 1.37}) {
    const double exact = std::exp(theta) / relative_to;
    const Tensor live = Tensor::full({1}, relative_to, DType::float64);
    for (const Tensor& given : {Tensor(), live})
      CHECK(scale.apply(x, relative_to, given).item() ==
            static_cast<double>(static_cast<float>(bfloat16(static_cast<float>(exact)))));
  }
}

TEST_CASE("a state is refused while recording, and when it is empty without keys") {
  for (const auto& settings : {softmax_settings(), rmfa_settings(40)}) {
    Core core(settings, AttentionRole::causal_self);
    core.eval();
    DecodeState state;
    const Variable x = leaf(1, 1, 1);
    CHECK(contains(error_of([&] { core(x, x, x, {}, &state); }), "NoGrad"));
    const NoGrad no_grad;
    CHECK(
        contains(error_of([&] { core(x, Variable(), Variable(), {}, &state); }), "state is empty"));
  }
}

TEST_CASE("unit rows: norm 1, zero rows stay zero with zero gradient") {
  const Variable x = normal_leaf(Shape{3, 4}, 1);
  x.value().select(0, 1).fill(0.0);
  const Variable y = unit_rows(x);
  CHECK(sum(mul(y, y)).item() == doctest::Approx(2.0));
  const Tensor g = grad({sum(mul(y, Variable(normal_tensor(Shape{3, 4}, 2))))}, {x})[0].value();
  CHECK(all_finite(g));
  check_near(g.select(0, 1), Tensor::zeros(Shape{4}, DType::float64), 0.0);
  const GradcheckResult result = gradcheck([](const Variables& in) { return unit_rows(in[0]); },
                                           {normal_leaf(Shape{3, 4}, 5)});
  CHECK_MESSAGE(result.ok, result.message);
}

}  // namespace macgrad::nn
