// RandomMaclaurinFeatures: when it draws, what evaluation uses, and that its state loads strictly.
#include <omp.h>

#include "nn_checks.h"

namespace macgrad::nn {

using namespace macgrad::checks;

namespace {

FeatureSettings small(DrawMethod method = DrawMethod::iid, int64_t features = 24) {
  FeatureSettings s;
  s.method = method;
  s.features = features;
  s.head_dim = 8;
  return s;
}

struct Map {
  explicit Map(const std::string& redraw, int eval_draws = 1, FeatureSettings settings = small(),
               uint64_t seed = 3)
      : random(seed),
        features(nullptr, "features", dot_product_kernel("exp"), settings,
                 RedrawPolicy::parse(redraw), eval_draws, random) {}
  ModelRandom random;
  RandomMaclaurinFeatures features;
  /// What tells draws apart.
  std::vector<int64_t> now() const { return to_record(features.current()); }
  Tensor omega() const { return features.current().omega; }
};

bool same_signs(const Tensor& a, const Tensor& b) {
  return a.shape() == b.shape() && max_abs_difference(a, b) == 0.0;
}

}  // namespace

TEST_CASE("redraw policies: text, and which steps share a draw") {
  for (const char* text : {"step", "epoch", "never", "every:7"})
    CHECK(RedrawPolicy::parse(text).text() == text);
  for (const char* text : {"every:0", "every:", "every:2x", "steps", ""})
    CHECK_THROWS_AS(RedrawPolicy::parse(text), Error);

  struct Row {
    const char* policy;
    bool step, later, epoch;  // drawn anew at (1,0), (10,0), (10,1) against the one before
  };
  for (const Row& row : {Row{"step", true, true, false}, Row{"epoch", false, false, true},
                         Row{"every:10", false, true, false}, Row{"never", false, false, false}}) {
    CAPTURE(row.policy);
    Map map(row.policy);
    auto before = map.now();
    const auto begin = [&](uint32_t step, int64_t epoch) {
      map.features.begin_step(step, epoch);
      const bool changed = map.now() != before;
      before = map.now();
      return changed;
    };
    CHECK(begin(1, 0) == row.step);
    CHECK(begin(10, 0) == row.later);
    CHECK_FALSE(begin(10, 0));
    CHECK(begin(10, 1) == row.epoch);
  }
}

TEST_CASE("a draw is a function of seed, map and step") {
  Map a("step"), b("step"), other("step", 1, small(), 4);
  a.features.begin_step(5, 0);
  b.features.begin_step(2, 0);
  b.features.begin_step(5, 0);
  CHECK(a.now() == b.now());
  CHECK(same_signs(a.omega(), b.omega()));
  other.features.begin_step(5, 0);
  CHECK_FALSE(same_signs(a.omega(), other.omega()));
  ModelRandom random(3);
  RandomMaclaurinFeatures first(nullptr, "a", dot_product_kernel("exp"), small(), {}, 1, random);
  RandomMaclaurinFeatures second(nullptr, "b", dot_product_kernel("exp"), small(), {}, 1, random);
  CHECK_FALSE(same_signs(first.current().omega, second.current().omega));
}

TEST_CASE("evaluation draws are fixed by the seed, apart from training and from each other") {
  Map map("step", 3);
  map.features.begin_step(4, 0);
  const Tensor training = map.omega().clone();
  map.features.eval();
  std::vector<Tensor> draws;
  for (int e = 0; e < 3; ++e) {
    map.features.use_eval_draw(e);
    draws.push_back(map.omega().clone());
    CHECK_FALSE(same_signs(draws.back(), training));
  }
  CHECK_FALSE(same_signs(draws[0], draws[1]));
  CHECK_FALSE(same_signs(draws[1], draws[2]));
  map.features.train();
  CHECK(same_signs(map.omega(), training));
  map.features.begin_step(9, 2);
  map.features.eval();
  map.features.use_eval_draw(1);
  CHECK(same_signs(map.omega(), draws[1]));
  CHECK_THROWS_AS(map.features.use_eval_draw(3), Error);
}

TEST_CASE("a model trained on one draw alone is evaluated on that draw") {
  Map map("never");
  const Tensor training = map.omega().clone();
  map.features.eval();
  CHECK(same_signs(map.omega(), training));
  CHECK(contains(error_of([] { Map many("never", 2); }), "one draw for all"));
}

TEST_CASE("the state has one shape whatever was drawn, and brings the draws back") {
  for (const DrawMethod method : {DrawMethod::iid, DrawMethod::official, DrawMethod::stratified,
                                  DrawMethod::srht, DrawMethod::h01, DrawMethod::optimal}) {
    CAPTURE(draw_method_name(method));
    Map a("step", 2, small(method));
    a.features.begin_step(11, 0);
    std::map<std::string, Tensor> state;
    for (const auto& [name, value] : a.features.state_dict()) state[name] = value.clone();
    REQUIRE(state.size() == 1);
    Map b("step", 2, small(method), 99);
    CHECK_FALSE(same_signs(a.omega(), b.omega()));
    b.features.load_state_dict(state);
    CHECK(a.now() == b.now());
    CHECK(same_signs(a.omega(), b.omega()));
    CHECK(a.features.current().levels == b.features.current().levels);
    CHECK(a.features.current().constant == b.features.current().constant);
    a.features.eval();
    b.features.eval();
    CHECK(same_signs(a.omega(), b.omega()));
    a.features.train();
    b.features.train();
    a.features.begin_step(12, 0);
    b.features.begin_step(12, 0);
    CHECK(same_signs(a.omega(), b.omega()));
    CHECK(a.features.state_dict().begin()->second.shape() == state.begin()->second.shape());
  }
  Map map("step");
  Map larger("step", 1, small(DrawMethod::iid, 25));
  CHECK(contains(error_of([&] { map.features.load_state_dict(larger.features.state_dict()); }),
                 "misshapen: draw"));
}

TEST_CASE("a scale that moved by more than 5 % allocates anew") {
  Map map("never", 1, small(DrawMethod::optimal, 64));
  const auto start = map.now();
  map.features.set_logit_scale(1.04);
  CHECK(map.now() == start);
  map.features.set_logit_scale(2.5);
  CHECK(map.features.current().plan.logit_scale == 2.5);
  CHECK(map.features.current().settings.logit_scale == 2.5);
  Map fresh("never", 1, [] {
    FeatureSettings s = small(DrawMethod::optimal, 64);
    s.logit_scale = 2.5;
    return s;
  }());
  CHECK(map.now() == fresh.now());
  // Within the tolerance the allocation stays and the next draw is made for the new scale.
  Map step("step", 1, small(DrawMethod::optimal, 64));
  step.features.set_logit_scale(1.03);
  step.features.begin_step(1, 0);
  CHECK(step.features.current().plan.logit_scale == 1.0);
  CHECK(step.features.current().settings.logit_scale == 1.03);
}

TEST_CASE("the dtype asked for changes no sign") {
  Map map("step");
  const Tensor single = map.features.current().omega.clone();
  const FeatureDraw& draw = map.features.current(DType::float64);
  CHECK(draw.omega.dtype() == DType::float64);
  CHECK(max_abs_difference(draw.omega.to(DType::float32), single) == 0.0);
}

}  // namespace macgrad::nn
