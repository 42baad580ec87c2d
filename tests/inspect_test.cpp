// `inspect`: a recorded step is the step that trains, its files agree with it, the page holds
// hostile names as data, and the questions (check, compare, explode, the inside of attention) find
// what is put there for them to find.
#include <doctest/doctest.h>

#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>

#include "macgrad/autograd/engine.h"
#include "macgrad/autograd/ops.h"
#include "macgrad/core/safetensors.h"
#include "macgrad/experiments/common/csv.h"
#include "macgrad/experiments/common/output_files.h"
#include "macgrad/experiments/inspect/attention_seen.h"
#include "macgrad/experiments/inspect/attention_sharpness.h"
#include "macgrad/experiments/inspect/attention_view.h"
#include "macgrad/experiments/inspect/check.h"
#include "macgrad/experiments/inspect/compare.h"
#include "macgrad/experiments/inspect/explode.h"
#include "macgrad/experiments/inspect/page.h"
#include "macgrad/experiments/inspect/record.h"
#include "macgrad/experiments/inspect/statistics.h"
#include "macgrad/experiments/multi30k/evaluation.h"
#include "macgrad/experiments/multi30k/run_files.h"
#include "macgrad/tests/multi30k_settings.h"
#include "macgrad/tests/temporary_folder.h"

namespace macgrad::experiments {
namespace {

using doctest::Contains;
using testing::OneThread;
using Folder = testing::TemporaryFolder;

StepSettings small(const std::string& attention = "rmfa") {
  StepSettings s;
  s.model = testing::tiny(attention);
  s.model.dropout = 0.1;
  return s;
}

StepSettings small64(const std::string& attention = "rmfa") {
  StepSettings s = small(attention);
  s.model.common.precision = "float64";
  s.sentences = 2;
  return s;
}

int inspect(const std::vector<std::string>& arguments, int (*command)(int, const char* const*)) {
  std::vector<const char*> argv{"inspect"};
  for (const std::string& a : arguments) argv.push_back(a.c_str());
  return command(static_cast<int>(argv.size()), argv.data());
}

std::vector<std::string> tiny_model(const std::string& out) {
  return {"--toy",   "--d-model", "16", "--heads", "2", "--ffn",     "32", "--features",  "16",
          "--ppsbn", "--threads", "1",  "--out",   out, "--redraws", "4",  "--attention", "rmfa"};
}

TEST_CASE("a model step repeats itself to the bit, running statistics included") {
  const OneThread one;
  StepSettings settings = small();
  settings.model.presbn = "batch";
  ModelStep step(settings);
  const auto statistics_now = [&] {
    std::vector<double> all;
    for (const auto& [name, value] : step.model().state_dict())
      if (name.find("running_") != std::string::npos)
        for (const double v : value.to_vector<double>()) all.push_back(v);
    return all;
  };
  const std::vector<double> before = statistics_now();
  const Variable first = step.loss();
  const std::vector<double> after = statistics_now();
  const Variable second = step.loss();
  CHECK(first.item() == second.item());
  CHECK(after != before);
  CHECK(statistics_now() == after);
  backward(first);
  const double norm = step.update();
  CHECK(norm > 0);
  step.next();
  CHECK(step.step() == 2);
  CHECK(step.loss().item() != first.item());
}

TEST_CASE("a model step with a whole batch is the training program's, also from its checkpoint") {
  const OneThread one;
  const Folder folder;
  StepSettings s = small();
  s.sentences = 0;
  s.model.redraw = "epoch";
  const TranslationData data = load_translation_data(s.model);
  // What training does, update by update over two epochs, with checkpoints on the way.
  Trainer trainer(s.model, data);
  std::vector<std::pair<double, double>> trained;  // loss and norm
  const int64_t checkpoint_after = 3;
  // As the program writes them.
  s.model.common.out = folder / "run";
  RunFiles files(s.model, data, /*resume=*/false);
  const std::string middle = files.out().file("middle.safetensors");
  const std::string end = files.out().file("end.safetensors");
  const auto save = [&](const std::string& path) {
    RunState state;
    state.place = trainer.place();
    files.save(trainer.model(), trainer.optimizer(), state);
    std::filesystem::copy_file(checkpoint_path(s.model.common.out), path);
  };
  size_t first_epoch = 0;
  for (int64_t epoch = 1; epoch <= 2; ++epoch) {
    bool more = true;
    while (more) {
      trainer.train_epoch(epoch, [&](const nn::StepReport& r) {
        trained.emplace_back(r.loss, r.gradient_norm);
        return r.step != checkpoint_after;
      });
      more = !trainer.epoch_complete();
      if (trainer.updates() == checkpoint_after) save(middle);
    }
    if (epoch == 1) {
      first_epoch = trained.size();
      save(end);
    }
  }
  REQUIRE(first_epoch > static_cast<size_t>(checkpoint_after));
  REQUIRE(trained.size() > first_epoch + 2);
  const auto follows = [&](const std::string& checkpoint, size_t from) {
    StepSettings again = s;
    again.checkpoint = checkpoint;
    ModelStep step(again);
    for (size_t i = from; i < from + 3; ++i) {
      CAPTURE(i);
      CHECK(step.step() == static_cast<int64_t>(i) + 1);
      const Variable loss = step.loss();
      CHECK(loss.item() == doctest::Approx(trained[i].first).epsilon(1e-6));
      backward(loss);
      CHECK(step.update() == doctest::Approx(trained[i].second).epsilon(1e-5));
      step.next();
    }
  };
  follows("", 0);
  follows(middle, static_cast<size_t>(checkpoint_after));
  follows(end, first_epoch);
  // In another precision the moments stay behind.
  StepSettings wide = s;
  wide.checkpoint = middle;
  wide.model.common.precision = "float64";
  ModelStep step(wide);
  CHECK(step.loss().item() == doctest::Approx(trained[checkpoint_after].first).epsilon(1e-5));
}

TEST_CASE("a recorded step: unique keys, the gradients of training, composites that agree") {
  const OneThread one;
  ModelStep step(small());
  const Variable loss = step.loss();
  backward(loss);
  std::map<std::string, Tensor> trained;
  for (const auto& [name, p] : step.model().named_parameters())
    if (p->grad().defined()) trained.emplace(name, p->grad().value());
  step.model().zero_grad();

  for (const bool open : {false, true}) {
    CAPTURE(open);
    step.model().zero_grad();
    const auto record = record_step(step, open);
    CHECK(record->loss == doctest::Approx(loss.item()).epsilon(1e-5));
    std::set<std::string> keys;
    for (const auto& list : {record->graph.op_keys(), record->graph.leaf_keys()})
      for (const std::string& key : list) CHECK(keys.insert(key).second);
    size_t found = 0;
    for (const GraphRecord::Leaf& leaf : record->graph.leaves()) {
      const auto it = trained.find(leaf.name);
      if (it == trained.end()) continue;
      ++found;
      const auto* gradient = record->gradient(leaf.meta.get());
      REQUIRE(gradient);
      const double difference = max_abs_difference(gradient->gradient, it->second);
      if (open)
        CHECK(difference < 1e-5);
      else
        CHECK(difference == 0);
    }
    CHECK(found == trained.size());
    if (!open) continue;
    CHECK(record->fused.loss < 1e-5);
    CHECK(record->fused.gradient < 1e-5);
    CHECK(record->fused.results.size() >= 15);  // norms, attentions, preSBN, postSBN, loss
    for (const auto& [node, difference] : record->fused.results) CHECK(difference < 1e-3);
    // Every op that a model is made of has a formula.
    const Json formulas = op_formulas();
    for (const GraphRecord::Op& op : record->graph.ops()) {
      CAPTURE(op.node->op);
      CHECK(formulas.contains(op.node->op));
    }
  }
}

TEST_CASE("inspect: its files agree with each other") {
  const OneThread one;
  const Folder folder;
  const std::string out = folder / "run";
  std::vector<std::string> arguments = tiny_model(out);
  arguments.insert(arguments.end(), {"--steps", "3"});
  REQUIRE(inspect(arguments, record_command) == 0);
  const Json json = read_json(out + "/graph.json");
  REQUIRE(json.at("steps").size() == 3);
  CHECK(json.at("steps")[0].at("loss") > json.at("steps")[2].at("loss"));
  CHECK(json.at("attentions").size() == 3);

  const CsvTable csv = read_csv(out + "/gradients.csv");
  const auto gradients = load_safetensors(out + "/gradients.safetensors").tensors;
  const auto values = load_safetensors(out + "/values.safetensors").tensors;
  CHECK(csv.rows.size() == gradients.size());
  std::map<std::string, Json> on_page;
  const Json& last = json.at("steps").back();
  for (const Json& op : last.at("ops"))
    for (size_t o = 0; o < op.at("outputs").size(); ++o)
      on_page[output_key(op.at("key"), static_cast<int>(o))] = op.at("outputs")[o];
  for (const Json& leaf : last.at("leaves")) on_page[leaf.at("key")] = leaf;
  CHECK(values.size() == on_page.size());
  for (const auto& row : csv.rows) {
    CAPTURE(row[0]);
    const Json& value = on_page.at(row[0]);
    const auto tensor = gradients.find(row[0]);
    REQUIRE(tensor != gradients.end());
    const GradStatistics s = statistics(tensor->second);
    CHECK(std::stod(row[7]) == doctest::Approx(s.l2));
    CHECK(std::stod(row[7]) == value.at("gradient").at("l2").get<double>());
    CHECK(value.at("gradient").at("count") == s.count);
    const Json& histogram = value.at("gradient").at("histogram");
    int64_t count = 0;
    for (const int64_t c : histogram.at("counts")) count += c;
    CHECK(count == s.count);
  }
  // Inputs come from ops before.
  for (size_t i = 0; i < last.at("ops").size(); ++i)
    for (const Json& input : last.at("ops")[i].at("inputs"))
      if (input[0] >= 0) CHECK(input[0] < i);

  // The page can be made again from graph.json, and the settings lead to the same record.
  REQUIRE(inspect({out + "/graph.json", "--out", folder / "again"}, page_command) == 0);
  REQUIRE(inspect({"--config", out + "/settings.json", "--out", folder / "same", "--redraws", "4"},
                  record_command) == 0);
  REQUIRE(inspect({"--config", out + "/settings.json", "--out", folder / "more", "--redraws", "4",
                   "--threads", "1", "--steps", "3"},
                  record_command) == 0);
  CHECK(inspect({folder / "same", folder / "more"}, compare_command) == kFound);  // updates 1 and 3
  CHECK(inspect({out, folder / "more", "--tolerance", "0"}, compare_command) == 0);
  const auto text = [](const std::string& path) {
    std::string all;
    for (const std::string& line : read_lines(path)) all += line + "\n";
    return all;
  };
  CHECK(text(folder / "again/inspect.html") == text(out + "/inspect.html"));

  CHECK(inspect({"--toy", "--steps", "0"}, record_command) == 2);
  CHECK(inspect({"--config", out + "/gradients.csv"}, record_command) == 1);
  CHECK(inspect({out + "/settings.json"}, page_command) == 1);
}

TEST_CASE("inspect page: what a record holds stays data") {
  const std::string evil = "\"</script><script>alert(1)</script><!-- & RECORD_JSON /*SCRIPT*/";
  const Json record{
      {"title", evil}, {"steps", Json::array()}, {"large", 1e300}, {"none", std::nan("")}};
  const std::string page = page_of(record);
  CHECK(page.find("alert(1)</script>") == std::string::npos);
  const size_t start = page.find("id=\"record\"");
  REQUIRE(start != std::string::npos);
  const size_t begin = page.find('>', start) + 1, end = page.find("</script>", begin);
  const Json back = Json::parse(page.substr(begin, end - begin));
  CHECK(back.at("title") == evil);
  CHECK(back.at("none").is_null());
  CHECK(page.find("/*STYLE*/") == std::string::npos);
}

TEST_CASE("numbers of a tensor: image and histogram show extremes and what is not finite") {
  std::vector<double> values(100 * 100, 0.0);
  values[5050] = -8;
  values[0] = 4;
  values[99] = NAN;
  const Json n = numbers_of(Tensor::from_vector(values, Shape{100, 100}), true);
  CHECK(n.at("non_finite") == 1);
  CHECK(n.at("min") == -8);
  const Json& image = n.at("image");
  CHECK(image.at("rows") == 48);
  CHECK(image.at("of") == Json({100, 100}));
  CHECK(image.at("scale") == 8);
  CHECK(image.at("pixels").get<std::string>().size() == 48 * 48 / 3 * 4);
  CHECK(image.at("pixels").get<std::string>().substr(0, 4) == "QAAA");  // 64, 0, 0
  CHECK(n.at("histogram").at("counts")[0] == 1);
  CHECK_FALSE(
      numbers_of(Tensor::from_vector(std::vector<double>{NAN}), true).contains("histogram"));
  CHECK(numbers_of(Tensor::zeros({0}), true).at("count") == 0);
  // Values without a width between them.
  for (const double v : {1e17, 1e308, -1e300, 5e-324}) {
    const Json one = numbers_of(Tensor::from_vector(std::vector<double>{v, v, v}), true);
    int64_t count = 0;
    for (const int64_t c : one.at("histogram").at("counts")) count += c;
    CHECK(count == 3);
  }
}

TEST_CASE("inspect compare: the first value that differs is the one that was changed") {
  const OneThread one;
  const Folder folder;
  const auto write = [&](const std::string& name, const std::function<void(ModelStep&)>& change) {
    ModelStep step(small());
    change(step);
    const auto record = record_step(step, true);
    const std::string out = folder / name;
    std::filesystem::create_directories(out);
    save_gradients(*record, out + "/gradients.safetensors");
    save_values(*record, out + "/values.safetensors");
    write_json(out + "/graph.json", {{"steps", {to_json(*record, false)}}});
    return out;
  };
  const std::string a = write("a", [](ModelStep&) {});
  const std::string b = write("b", [](ModelStep&) {});
  const std::string c = write("c", [](ModelStep& step) {
    auto& bias = *step.model().encoder.layers[0]->feed_forward.linear1.bias;
    bias.value().fill(0.01);
  });
  CHECK(first_above(compare_records(a, b).values, 0) == nullptr);
  CHECK(first_above(compare_records(a, b).gradients, 0) == nullptr);
  const ComparisonResult r = compare_records(a, c);
  const Comparison* first = first_above(r.values, 1e-6);
  REQUIRE(first != nullptr);
  CHECK(first->key == "encoder.layers.0.feed_forward.linear1/linear");
  CHECK(first->difference == doctest::Approx(0.01).epsilon(1e-3));
  REQUIRE(first_above(r.gradients, 1e-6) != nullptr);
  CHECK(inspect({a, b}, compare_command) == 0);
  CHECK(inspect({a, c, "--csv", folder / "all.csv"}, compare_command) == kFound);
  CHECK(read_csv(folder / "all.csv").rows.size() == r.values.size() + r.gradients.size());
  CHECK(inspect({a, folder / "none"}, compare_command) == 1);
}

TEST_CASE("inspect explode: the op where it began, and the way there") {
  const OneThread one;
  {
    ModelStep step(small());
    CHECK_FALSE(find_explosion(step).has_value());
    const Tensor weight = step.model().decoder.layers[0]->feed_forward.linear2.weight.value();
    weight.data<float>()[3] = INFINITY;
    const auto found = find_explosion(step);
    REQUIRE(found.has_value());
    CHECK_FALSE(found->gradient);
    CHECK(found->key == "decoder.layers.0.feed_forward.linear2/linear");
    CHECK(found->op == "linear");
    CHECK(found->scope == "decoder.layers.0.feed_forward.linear2");
    REQUIRE(found->chain.size() == 1);
    CHECK(found->chain[0].key == "decoder.layers.0.feed_forward.linear2.weight");
    CHECK(found->chain[0].non_finite == 1);
    CHECK(found->inputs.size() == 3);
  }
  {
    // A gradient: the rule of the second norm hands NaN back.
    ModelStep step(small("softmax"));
    step.model().encoder.layers[0]->norm2.add_forward_hook([](const Variable& y) {
      y.add_hook([](const Variable& g) { return g * NAN; });
      return Variable();
    });
    const auto found = find_explosion(step);
    REQUIRE(found.has_value());
    CHECK(found->gradient);
    CHECK(found->key.starts_with("encoder.layers.0.norm2"));
    CHECK(found->op.empty());  // no rule is to blame
    for (const ChainLink& link : found->inputs) CHECK(link.non_finite == 0);
  }
}

TEST_CASE("inspect explode: a rule that overflows is named, not another reader of the value") {
  const OneThread one;
  ModelStep step(small("softmax"));
  // Three projections read the norm; the weights of one overflow its gradient, whose cotangents are
  // not the largest.
  auto& attention = step.model().encoder.layers[0]->self_attention;
  attention.k_proj.weight.value().fill(0.0);
  attention.k_proj.weight.value().data<float>()[0] = 3e38F;
  attention.k_proj.add_forward_hook([](const Variable& y) {
    y.add_hook([](const Variable& g) { return g * 0.0 + 1e3; });
    return Variable();
  });
  // The value itself stays finite: the entry is met by zeros.
  step.model().encoder.layers[0]->norm1.add_forward_hook([](const Variable& y) { return y * 0.0; });
  const auto found = find_explosion(step);
  REQUIRE(found.has_value());
  CHECK(found->gradient);
  CHECK(found->op == "linear");
  CHECK(found->scope == "encoder.layers.0.self_attention.k_proj");
  CHECK(found->chain[0].key == "encoder.layers.0.self_attention.k_proj/linear");
}

TEST_CASE("inspect check: right gradients pass at both orders, a wrong one is named") {
  const OneThread one;
  for (const char* attention : {"softmax", "rmfa", "exact"}) {
    CAPTURE(attention);
    ModelStep step(small64(attention));
    CheckSettings s;
    s.order = 2;
    s.entries = 2;
    for (const std::string part :
         {"", "encoder.layers.0.self_attention", "decoder.layers.0.cross_attention.core",
          "decoder.layers.0.norm1/layer_norm", "loss/cross_entropy"}) {
      CAPTURE(part);
      s.part = part;
      const CheckResult r = check_gradients(step, s);
      CHECK(r.worst(1).relative() < 1e-5);
      CHECK(r.worst(2).relative() < 1e-4);
      bool moved = false;
      for (const CheckedEntry& e : r.entries) moved = moved || std::abs(e.numeric) > 1e-3;
      CHECK(moved);
    }
  }
  {
    ModelStep step(small64());
    CheckSettings s;
    s.part = "encoder.layers.0.feed_forward";
    step.model().encoder.layers[0]->feed_forward.linear1.add_forward_hook([](const Variable& y) {
      y.add_hook([](const Variable& g) { return g * 1.01; });
      return Variable();
    });
    const CheckedEntry worst = check_gradients(step, s).worst(1);
    CHECK(worst.relative() > 1e-3);
    CheckResult mixed;
    mixed.entries = {{"a", 0, 1, NAN, 1.0, 1.0, 0.0}, {"b", 0, 1, 1.0, 1.0, 1.0, 0.0}};
    CHECK(mixed.worst(1).key == "a");
    mixed.entries[0].analytic = mixed.entries[0].scale = INFINITY;
    CHECK(mixed.worst(1).key == "a");
    CHECK((worst.key.find("linear1") != std::string::npos ||
           worst.key.find("norm2") != std::string::npos));
    s.part = "no.such.module";
    CHECK_THROWS_WITH_AS(check_gradients(step, s), Contains("neither a module nor an op"), Error);
    ModelStep single(small());
    CHECK_THROWS_WITH_AS(check_gradients(single, s), Contains("float64"), Error);
  }
}

TEST_CASE("the inside of attention: estimates by degree, weights, denominators") {
  const OneThread one;
  // Features written out against a draw's own reference.
  const nn::DotProductKernel kernel = nn::dot_product_kernel("exp");
  for (const char* method : {"iid", "official", "h01", "optimal"}) {
    CAPTURE(method);
    nn::FeatureSettings f;
    f.method = nn::draw_method(method);
    f.features = 40;
    f.head_dim = 8;
    f.logit_scale = 3;
    const nn::FeatureDraw draw = nn::draw_features(kernel, f, DrawKey{3, 4, 0, 5}, DType::float64);
    const std::vector<double> q{.1, -.2, .3, .4, .5, -.1, .2, .6},
        k{.3, .1, -.4, .2, .1, .5, .1, .2};
    const auto phi_q = nn::reference_features(draw, q), phi_k = nn::reference_features(draw, k);
    double product = 0;
    for (size_t i = 0; i < phi_q.size(); ++i) product += phi_q[i] * phi_k[i];
    const KernelEstimate e = kernel_estimate(draw, 0, q, k);
    CHECK(e.total[0] == doctest::Approx(product));
    double sum = 0;
    for (const auto& degree : e.degrees) sum += degree[0];
    CHECK(sum == doctest::Approx(product));
  }
  for (const char* attention : {"rmfa", "softmax"}) {
    CAPTURE(attention);
    ModelStep step(small(attention));
    const auto record = record_step(step, true);
    AttentionViewSettings view;
    view.redraws = 400;
    view.head = 1;
    const Json list = attention_views(step, *record, view);
    REQUIRE(list.size() == 3);
    const Json& self = list[1];
    CHECK(self.at("name") == "decoder.layers.0.self_attention");
    CHECK(self.at("causal") == true);
    const size_t tokens = self.at("query_tokens").size();
    CHECK(self.at("query_tokens")[0] == "<bos>");
    for (const Json& mode : self.at("modes")) {
      const Json& exact = mode.at("exact").at("values");
      const Json& weights = mode.at("exact_weights").at("values");
      const Json& mean = mode.at("redraw").at("mean").at("values");
      const Json& deviation = mode.at("redraw").at("deviation").at("values");
      for (size_t i = 0; i < tokens; ++i) {
        double sum = 0;
        for (size_t j = 0; j < tokens; ++j) {
          const size_t at = i * tokens + j;
          if (j > i) {
            CHECK(exact[at].is_null());
            continue;
          }
          sum += weights[at].get<double>();
          const double t = mode.at("logits").at("values")[at];
          CHECK(exact[at].get<double>() == doctest::Approx(std::exp(t)).epsilon(1e-3));
          // The mean of 400 draws is the kernel, within chance.
          CHECK(std::abs(mean[at].get<double>() - exact[at].get<double>()) <
                6 * deviation[at].get<double>() / 20 + 1e-3);
        }
        CHECK(sum == doctest::Approx(1.0).epsilon(1e-3));
      }
      CHECK(mode.at("degrees")[0].at("degree") == 0);
    }
    // Rows of the model's own way through preSBN have norm 1.
    if (std::string(attention) == "rmfa")
      CHECK(self.at("modes")[0].at("used_by_the_model") == true);
    view.attention = "nothing";
    CHECK_THROWS_WITH_AS(attention_views(step, *record, view), Contains("encoder.layers.0"), Error);
    view.attention = "all";
    view.head = 7;
    CHECK_THROWS_WITH_AS(attention_views(step, *record, view), Contains("heads 0 to 1"), Error);
  }
}

TEST_CASE("what the model estimates is what the view takes apart") {
  const OneThread one;
  ModelStep step(small());
  const auto record = record_step(step, true);
  AttentionViewSettings view;
  view.attention = "decoder.layers.0.self_attention";
  view.redraws = 2;
  const Json mode = attention_views(step, *record, view)[0].at("modes")[0];
  // The composite names its causal kernel matrix.
  for (const GraphRecord::Op& op : record->graph.ops()) {
    if (op.node->outputs[0].meta->name != "kernel" ||
        !op.node->scope->starts_with("decoder.layers.0.self_attention"))
      continue;
    const Tensor kernel = op.outputs[0].select(0, 0).select(0, 0);
    const int64_t n = mode.at("estimate").at("rows");
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = 0; j <= i; ++j)
        CHECK(mode.at("estimate").at("values")[static_cast<size_t>(i * n + j)].get<double>() ==
              doctest::Approx(kernel.at({i, j})).epsilon(2e-3));
    return;
  }
  FAIL("no kernel matrix was recorded");
}

// The value of this name that was made in a scope or below it.
Tensor recorded(const RecordedStep& step, const std::string& scope, const std::string& name) {
  for (const GraphRecord::Op& op : step.graph.ops())
    if (op.node->outputs[0].meta->name == name && op.node->scope->starts_with(scope))
      return op.outputs[0];
  FAIL("no ", name, " in ", scope);
  return Tensor();
}

// f(t) of the exact core, hidden keys 0: what its denominators are sums of.
Tensor exact_kernel(const RecordedStep& step, const std::string& scope) {
  Tensor last;
  for (const GraphRecord::Op& op : step.graph.ops())
    if (op.node->op == "where" && op.node->scope->starts_with(scope) &&
        op.outputs[0].size(2) == op.outputs[0].size(3))
      last = op.outputs[0];
  REQUIRE(last.defined());
  return last;
}

TEST_CASE("inspect attention: the weights that the model itself recorded") {
  const OneThread one;
  const std::string name = "decoder.layers.0.self_attention";
  const auto of = [&](const std::vector<AttentionSharpness>& list) {
    for (const AttentionSharpness& a : list)
      if (a.attention == name) return a;
    FAIL("no ", name);
    return AttentionSharpness{};
  };
  SUBCASE("softmax: entropy, largest weight and logits of every head and sentence") {
    ModelStep step(small("softmax"));
    const auto record = record_step(step, true);
    const Tensor weights = recorded(*record, name, "weights");
    const Tensor scores = recorded(*record, name, "scores");
    double rows = 0, keys = 0, effective = 0, largest = 0, squares = 0, entries = 0;
    double least = INFINITY;
    for (int64_t b = 0; b < step.rows(); ++b)
      for (int64_t h = 0; h < 2; ++h)
        for (int64_t i = 1; i < std::ssize(step.target_tokens(b)); ++i) {
          double entropy = 0, top = 0, mean = 0, total = 0;
          for (int64_t j = 0; j <= i; ++j) {
            const double w = weights.at({b, h, i, j});
            entropy -= w * std::log(w);
            top = std::max(top, w);
            mean += scores.at({b, h, i, j}) / static_cast<double>(i + 1);
            total += std::exp(scores.at({b, h, i, j}));
          }
          least = std::min(least, total / static_cast<double>(i + 1));
          for (int64_t j = 0; j <= i; ++j) squares += std::pow(scores.at({b, h, i, j}) - mean, 2);
          rows += 1;
          entries += static_cast<double>(i + 1);
          keys += static_cast<double>(i + 1);
          effective += std::exp(entropy);
          largest += top;
        }
    const std::vector<AttentionSharpness> list = attention_sharpness(step, *record, 2);
    REQUIRE(list.size() == 3);
    const AttentionSharpness a = of(list);
    CHECK(a.logit_scale == 1.0);
    CHECK(a.keys == doctest::Approx(keys / rows));
    CHECK(a.effective_keys == doctest::Approx(effective / rows).epsilon(1e-4));
    CHECK(a.effective_keys < a.keys);
    CHECK(a.largest_weight == doctest::Approx(largest / rows).epsilon(1e-4));
    CHECK(a.least_denominator == doctest::Approx(least).epsilon(1e-4));
    CHECK(a.logit_deviation == doctest::Approx(std::sqrt(squares / entries)).epsilon(1e-4));
    CHECK(std::isnan(a.weight_error));
  }
  SUBCASE("RMFA: the error of the kernel that the model estimated") {
    StepSettings s = small();
    s.model.heads = 1;
    s.model.logit_scale = 3.0;
    s.sentences = 1;
    ModelStep step(s);
    const auto record = record_step(step, true);
    const Tensor kernel = recorded(*record, name, "kernel").select(0, 0).select(0, 0);
    AttentionViewSettings view;
    view.attention = name;
    view.redraws = 2;
    const Json mode = attention_views(step, *record, view)[0].at("modes")[0];
    REQUIRE(mode.at("used_by_the_model") == true);
    const Json& exact = mode.at("exact_weights").at("values");
    const auto n = std::ssize(step.target_tokens(0));
    double error = 0, beyond = 0;
    for (int64_t i = 1; i < n; ++i) {
      double total = 0;
      for (int64_t j = 0; j <= i; ++j) total += kernel.at({i, j});
      for (int64_t j = 0; j <= i; ++j) {
        const double w = exact[static_cast<size_t>(i * n + j)];
        error += std::pow(kernel.at({i, j}) / total - w, 2);
        beyond += std::pow(w - 1.0 / static_cast<double>(i + 1), 2);
      }
    }
    const AttentionSharpness own = of(attention_sharpness(step, *record, 0));
    CHECK(own.logit_scale == 3.0);
    CHECK(own.weight_error == doctest::Approx(error / beyond).epsilon(0.01));
    CHECK(of(attention_sharpness(step, *record, 8)).weight_error > 0.0);
  }
  SUBCASE("f(t) = t: no floor at f(0) = 0, and no weights where Σ f(t) is not above 0") {
    StepSettings s = small("exact");
    s.model.kernel = "poly:c=0,k=1";
    ModelStep step(s);
    const auto record = record_step(step, true);
    const Tensor kernel = exact_kernel(*record, name);
    double rows = 0, keys = 0, largest = 0;
    int64_t without = 0;
    for (int64_t b = 0; b < step.rows(); ++b)
      for (int64_t h = 0; h < 2; ++h)
        for (int64_t i = 1; i < std::ssize(step.target_tokens(b)); ++i) {
          double total = 0, top = 0;
          for (int64_t j = 0; j <= i; ++j) {
            total += kernel.at({b, h, i, j});
            top = std::max(top, kernel.at({b, h, i, j}));
          }
          if (total <= 0) {
            ++without;
            continue;
          }
          rows += 1;
          keys += static_cast<double>(i + 1);
          largest += top / total;
        }
    REQUIRE(without > 0);
    REQUIRE(rows > 0);
    const AttentionSharpness a = of(attention_sharpness(step, *record, 2));
    CHECK(a.without_weights == without);
    CHECK(a.keys == doctest::Approx(keys / rows));
    CHECK(a.largest_weight == doctest::Approx(largest / rows).epsilon(0.01));
    CHECK(std::isfinite(a.effective_keys));
    CHECK(std::isnan(a.least_denominator));
  }
  SUBCASE("RMFA with such a kernel: its error is over queries that have weights") {
    StepSettings s = small();
    s.model.kernel = "poly:c=0,k=1";
    ModelStep step(s);
    const AttentionSharpness a = of(attention_sharpness(step, *record_step(step, true), 2));
    CHECK(a.without_weights > 0);
    CHECK(std::isfinite(a.weight_error));
    CHECK(a.weight_error > 0.0);
  }
  SUBCASE("the command writes a row an attention") {
    const Folder folder;
    CHECK(inspect(tiny_model(folder / "out"), attention_command) == 0);
    const CsvTable table = read_csv(folder / "out/attention.csv");
    CHECK(table.numbers("effective_keys").size() == 3);
    CHECK(read_json(folder / "out/attention.json").at("redraws") == 4);
  }
  SUBCASE("a model with one draw is measured with it, unless told otherwise") {
    const Folder folder;
    std::vector<std::string> arguments = tiny_model(folder / "own");
    const auto redraws = std::find(arguments.begin(), arguments.end(), "--redraws");
    arguments.erase(redraws, redraws + 2);
    arguments.insert(arguments.end(), {"--redraw", "never"});
    CHECK(inspect(arguments, attention_command) == 0);
    CHECK(read_json(folder / "own/attention.json").at("redraws") == 0);
    *std::find(arguments.begin(), arguments.end(), folder / "own") = folder / "fresh";
    arguments.insert(arguments.end(), {"--redraws", "2"});
    CHECK(inspect(arguments, attention_command) == 0);
    CHECK(read_json(folder / "fresh/attention.json").at("redraws") == 2);
  }
}

TEST_CASE("inspect statistics: running statistics against those of each batch") {
  const OneThread one;
  StepSettings settings = small();
  settings.model.presbn = "auto";
  ModelStep step(settings);
  const std::vector<StatisticsCost> costs = statistics_cost(step);
  REQUIRE(costs.size() > 1);
  int64_t sentences = 0, tokens = 0;
  double running = 0, own = 0;
  for (const StatisticsCost& c : costs) {
    sentences += c.sentences;
    tokens += c.tokens;
    running += c.running * static_cast<double>(c.tokens);
    own += c.own * static_cast<double>(c.tokens);
    CHECK(c.running != c.own);  // running statistics are 0 and 1 before training
  }
  CHECK(sentences == 20);
  CHECK(costs.front().longest < costs.back().longest);
  const auto batches = ordered_batches(step.valid(), step.settings().batch_tokens);
  const Device device = step.settings().device();
  const auto total = static_cast<double>(tokens);
  CHECK(running / total == doctest::Approx(*validation_loss(step.model(), batches, device)));
  CHECK(own / total == doctest::Approx(*validation_loss(step.model(), batches, device, {}, true)));
  ModelStep softmax(small("softmax"));
  CHECK_THROWS_WITH_AS(statistics_cost(softmax), Contains("--presbn"), Error);
  const Folder folder;
  std::vector<std::string> arguments = tiny_model(folder / "out");
  std::erase(arguments, "--redraws");
  std::erase(arguments, "4");
  arguments.insert(arguments.end(), {"--presbn", "auto"});
  CHECK(inspect(arguments, statistics_command) == 0);
  const CsvTable table = read_csv(folder / "out/statistics.csv");
  CHECK(table.numbers("loss_own").size() == table.numbers("loss_running").size());
}

}  // namespace
}  // namespace macgrad::experiments
