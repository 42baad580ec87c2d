// A training step recorded on the CUDA device has the ops, values and gradients of the CPU's.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>

#include "macgrad/experiments/inspect/attention_view.h"
#include "macgrad/experiments/inspect/step_record.h"
#include "macgrad/tests/composites_allowed.h"
#include "macgrad/tests/cuda/device.h"

namespace macgrad::testing {
namespace {

using namespace experiments;

StepSettings tiny(const std::string& device) {
  StepSettings s;
  make_toy(s.model);
  s.model.toy_train_pairs = 50;
  s.model.toy_valid_pairs = 5;
  s.model.d_model = 8;
  s.model.heads = 2;
  s.model.ffn = 12;
  s.model.features = 12;
  s.model.attention = "rmfa";
  s.model.ppsbn = true;
  s.model.logit_scale = 1.0;  // denominators of few features stay away from 0
  s.model.common.device = device;
  s.sentences = 2;
  return s;
}

TEST_CASE("cuda inspect: a recorded step is the CPU's") {
  const CompositesAllowed allowed;
  ModelStep host(tiny("cpu")), device(tiny("cuda"));
  const auto a = record_step(host, true), b = record_step(device, true);
  CHECK(b->loss == doctest::Approx(a->loss).epsilon(1e-5));
  CHECK(b->fused.loss < 1e-4);
  // The CPU leaves padding out before it projects to the vocabulary; all else has equal keys.
  std::map<std::string, const GraphRecord::Op*> on_device;
  const auto keys = b->graph.op_keys();
  for (size_t i = 0; i < keys.size(); ++i) on_device[keys[i]] = &b->graph.ops()[i];
  size_t compared = 0;
  const auto host_keys = a->graph.op_keys();
  for (size_t i = 0; i < host_keys.size(); ++i) {
    CAPTURE(host_keys[i]);
    const GraphRecord::Op& x = a->graph.ops()[i];
    const auto found = on_device.find(host_keys[i]);
    if (found == on_device.end()) continue;
    const GraphRecord::Op& y = *found->second;
    if (x.outputs[0].shape() != y.outputs[0].shape()) continue;
    ++compared;
    const GradStatistics s = statistics(x.outputs[0]);
    CHECK(max_abs_difference(x.outputs[0], y.outputs[0].to(kCpu)) <
          1e-4 * std::max({1.0, s.max, -s.min}));
    const auto* g = a->gradient(x.node->id, 0);
    const auto* h = b->gradient(y.node->id, 0);
    REQUIRE((g == nullptr) == (h == nullptr));
    if (g) CHECK(std::abs(h->stats.l2 - g->stats.l2) < 1e-3 * g->stats.l2 + 1e-6);
  }
  CHECK(compared > host_keys.size() * 9 / 10);
  AttentionViewSettings view;
  view.redraws = 2;
  CHECK(attention_views(device, *b, view).size() == 3);
}

TEST_CASE("cuda inspect: steps of a model with hooks are not recorded, and that is said") {
  Multi30kSettings s = tiny("cuda").model;
  s.graph = "on";
  s.batch_tokens = 60;
  s.max_updates = 5;
  const TranslationData data = load_translation_data(s);
  Trainer trainer(s, data);
  int calls = 0;
  trainer.model().encoder.add_forward_hook([&calls](const Variable&) {
    ++calls;
    return Variable();
  });
  trainer.train_epoch(1, [](const nn::StepReport&) { return true; });
  CHECK(calls == 5);
  CHECK(trainer.step().replays() == 0);
  REQUIRE(trainer.step().eager_reasons().size() == 1);
  CHECK(trainer.step().eager_reasons()[0].find("forward hooks") != std::string::npos);
}

}  // namespace
}  // namespace macgrad::testing
