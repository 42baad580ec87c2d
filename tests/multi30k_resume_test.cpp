// Runs that stop and go on: checkpoints that hold everything, resumption bit for bit, what --resume
// refuses, averages, presets, seeds.
#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <tuple>

#include "macgrad/core/safetensors.h"
#include "macgrad/experiments/common/output_files.h"
#include "macgrad/experiments/common/text_files.h"
#include "macgrad/experiments/multi30k/checkpoint.h"
#include "macgrad/experiments/multi30k/commands.h"
#include "macgrad/experiments/multi30k/data.h"
#include "macgrad/experiments/multi30k/presets.h"
#include "macgrad/experiments/multi30k/resume.h"
#include "macgrad/experiments/multi30k/run.h"
#include "macgrad/experiments/multi30k/run_files.h"
#include "macgrad/experiments/multi30k/run_to_end.h"
#include "macgrad/experiments/multi30k/seeds.h"
#include "macgrad/experiments/multi30k/training.h"
#include "macgrad/tests/errors.h"
#include "macgrad/tests/multi30k_settings.h"
#include "macgrad/tests/printed.h"
#include "macgrad/tests/temporary_folder.h"

namespace macgrad::experiments {
namespace {
namespace fs = std::filesystem;

using Folder = testing::TemporaryFolder;
using testing::contains;
using testing::error_of;
using testing::OneThread;
using testing::tiny;

bool go_on(const nn::StepReport&) {
  return true;
}

// Tensors of two files, and what their states say of losses, to the bit; seconds may differ.
void check_same_checkpoints(const std::string& a, const std::string& b) {
  const Safetensors one = load_safetensors(a), other = load_safetensors(b);
  REQUIRE(one.tensors.size() == other.tensors.size());
  for (const auto& [name, value] : one.tensors) {
    CAPTURE(name);
    REQUIRE(other.tensors.contains(name));
    const Tensor& second = other.tensors.at(name);
    REQUIRE(value.shape() == second.shape());
    CHECK(std::memcmp(value.raw(), second.raw(), value.bytes()) == 0);
  }
  const auto without_times = [](const Safetensors& file) {
    Json state = Json::parse(file.metadata.at("state"));
    for (const char* name : {"wall_seconds", "sittings"}) state.erase(name);
    state["done"].erase("seconds");
    for (Json& row : state["epochs"]) row.erase("seconds");
    return state;
  };
  CHECK(without_times(one) == without_times(other));
}

Multi30kSettings with_dropout(const std::string& attention, const std::string& redraw) {
  Multi30kSettings s = tiny(attention);
  s.dropout = 0.1;
  s.redraw = redraw;
  s.train_logit_scale = attention == "rmfa";
  s.average = 2;
  s.checkpoint_minutes = 0;
  s.max_updates = 20;
  s.epochs = 100;
  return s;
}

TEST_CASE("multi30k: 20 updates are 7 and 13 after a resume, bit for bit") {
  const OneThread one_thread;
  // 7 lies within an epoch, so that its place, its sums and the draws of an epoch count too.
  const std::tuple<const char*, const char*, const char*> kinds[] = {{"softmax", "step", "iid"},
                                                                     {"rmfa", "step", "iid"},
                                                                     {"rmfa", "epoch", "iid"},
                                                                     {"rmfa", "step", "optimal"},
                                                                     {"rmfa", "never", "optimal"}};
  for (const auto& [attention, redraw, draws] : kinds) {
    CAPTURE(attention);
    CAPTURE(redraw);
    CAPTURE(draws);
    const Folder folder;
    Multi30kSettings straight = with_dropout(attention, redraw);
    straight.draws = draws;
    if (straight.draws == "optimal") {
      straight.norm = "post";
      straight.vocabularies = "shared";
      straight.share_embeddings = true;
    }
    straight.common.out = folder / "straight";
    REQUIRE(run_multi30k(straight) == 0);
    const TranslationData data = load_translation_data(straight);
    const size_t epoch_updates = ordered_batches(data.train, straight.batch_tokens).size();
    Multi30kSettings halves = straight;
    halves.common.out = folder / "halves";
    for (const int64_t updates : {7, 12, 20}) {
      halves.max_updates = updates;
      REQUIRE(run_multi30k(halves, updates == 7 ? Start::fresh : Start::resume) == 0);
      const Json state =
          Json::parse(load_safetensors(checkpoint_path(halves.common.out)).metadata.at("state"));
      CHECK(state.at("updates") == updates);
      // An epoch has as many updates whatever its number.
      if (updates == 7) CHECK(state.at("done").at("updates") != epoch_updates);
    }
    check_same_checkpoints(folder / "straight/checkpoint.safetensors",
                           folder / "halves/checkpoint.safetensors");
    CHECK(read_lines(folder / "straight/translations-val.txt") ==
          read_lines(folder / "halves/translations-val.txt"));
    const Json a = read_json(folder / "straight/results.json"),
               b = read_json(folder / "halves/results.json");
    CHECK(a.at("scores") == b.at("scores"));
    CHECK(a.at("model") == b.at("model"));
    REQUIRE(b.at("sittings").size() == 3);
    CHECK(b.at("sittings")[2].at("from_update") == 12);
  }
}

TEST_CASE("multi30k: accumulated batches, subwords, two draws and early stopping resume alike") {
  const OneThread one_thread;
  const Folder folder;
  Multi30kSettings straight = with_dropout("rmfa", "step");
  straight.subwords = "bpe";
  straight.vocabulary_size = 320;
  straight.accumulate = 3;
  straight.eval_draws = 2;
  straight.patience = 3;
  straight.max_updates = 9;
  straight.common.out = folder / "straight";
  REQUIRE(run_multi30k(straight) == 0);
  Multi30kSettings halves = straight;
  halves.common.out = folder / "halves";
  for (const int64_t updates : {4, 9}) {
    halves.max_updates = updates;
    REQUIRE(run_multi30k(halves, updates == 4 ? Start::fresh : Start::resume) == 0);
  }
  check_same_checkpoints(folder / "straight/checkpoint.safetensors",
                         folder / "halves/checkpoint.safetensors");
  CHECK(read_json(folder / "straight/results.json").at("scores") ==
        read_json(folder / "halves/results.json").at("scores"));
}

TEST_CASE("multi30k: options given beside --resume stay with the run") {
  const OneThread one_thread;
  const Folder folder;
  Multi30kSettings s = tiny();
  s.epochs = 1;
  s.common.out = folder / "run";
  REQUIRE(run_multi30k(s) == 0);
  s.beam = 3;
  REQUIRE(run_multi30k(s, Start::resume) == 0);
  CHECK(checkpoint_settings(checkpoint_path(s.common.out)).beam == 3);

  const std::string out = s.common.out;
  const auto command = [](std::vector<std::string> words) {
    std::vector<const char*> arguments{"train"};
    for (const std::string& word : words) arguments.push_back(word.c_str());
    return train_command(static_cast<int>(arguments.size()), arguments.data());
  };
  // The checkpoint stands for its run; no name is not a new run.
  CHECK(command({"--resume", checkpoint_path(out)}) == 0);
  CHECK(command({"--resume", ""}) == 2);
  CHECK(command({"--resume="}) == 2);
}

TEST_CASE("multi30k: a finished run without epochs cannot be averaged afterwards") {
  const OneThread one_thread;
  const Folder folder;
  Multi30kSettings s = tiny();
  s.epochs = 1;
  s.common.out = folder / "run";
  folder.write("run/epochs/epoch-9.safetensors", "of a run before");
  folder.write("run/epochs/notes.txt", "mine");
  REQUIRE(run_multi30k(s) == 0);
  CHECK_FALSE(fs::exists(folder / "run/epochs/epoch-9.safetensors"));
  CHECK(fs::exists(folder / "run/epochs/notes.txt"));
  s.average = 2;
  CHECK(contains(error_of([&] { run_multi30k(s, Start::resume); }), "leave --average out"));
  // What is trained on the way can be.
  s.epochs = 2;
  REQUIRE(run_multi30k(s, Start::resume) == 0);
  CHECK(read_json(folder / "run/results.json").at("model").at("epochs") == Json({2}));
}

TEST_CASE("multi30k: a fresh run does not pass off what an earlier one left as its own") {
  const OneThread one_thread;
  const Folder folder;
  Multi30kSettings s = tiny();
  s.epochs = 1;
  s.common.out = folder / "run";
  REQUIRE(run_multi30k(s) == 0);
  CHECK_THROWS_WITH_AS(run_multi30k(s), doctest::Contains("continue it with --resume"), Error);
  const TranslationData data = load_translation_data(s);
  // Begun by another process since the first look: nothing is touched.
  CHECK_THROWS_WITH_AS(RunFiles(s, data, false), doctest::Contains("continue it with --resume"),
                       Error);
  CHECK(fs::exists(folder / "run/results.json"));
  fs::remove(folder / "run/checkpoint.safetensors");
  s.lr = 1e30;
  s.warmup = 0;
  s.clip = 0;
  CHECK_THROWS_AS(run_multi30k(s), NotFinite);
  CHECK_FALSE(fs::exists(folder / "run/results.json"));
  CHECK(contains(read_json(folder / "run/settings.json").at("failure"), "lower --lr"));
}

TEST_CASE("multi30k: a folder whose name is not UTF-8") {
  const OneThread one_thread;
  const Folder folder;
  Multi30kSettings s = tiny();
  s.epochs = 1;
  s.common.out = folder / "l\xe4ufe";
  REQUIRE(run_multi30k(s) == 0);
  CHECK(fs::exists(checkpoint_path(s.common.out)));
}

TEST_CASE("multi30k: a run whose curves cannot be drawn keeps its results") {
  const OneThread one_thread;
  const Folder folder;
  Multi30kSettings s = tiny();
  s.epochs = 1;
  s.common.out = folder / "run";
  folder.write("run/curves.gp/in-the-way", "");
  CHECK(run_multi30k(s) == 0);
  CHECK(fs::exists(folder / "run/results.json"));
}

TEST_CASE("multi30k: every loss after a resume is that of the straight run") {
  const OneThread one_thread;
  const Folder folder;
  const Multi30kSettings s = with_dropout("rmfa", "every:3");
  const TranslationData data = load_translation_data(s);
  std::vector<double> straight, resumed;
  const auto keep = [](std::vector<double>& losses, int64_t until) {
    return [&losses, until](const nn::StepReport& r) {
      losses.push_back(r.loss);
      losses.push_back(r.gradient_norm);
      return r.step < until;
    };
  };
  const auto train = [](Trainer& trainer, const auto& report, int64_t until) {
    for (int64_t epoch = trainer.place().epoch; trainer.updates() < until; ++epoch)
      trainer.train_epoch(epoch, report);
  };
  Trainer whole(s, data);
  train(whole, keep(straight, 20), 20);
  Trainer first(s, data);
  train(first, keep(resumed, 10), 10);
  RunState state;
  state.place = first.place();
  save_checkpoint(folder / "c", first.model(), first.optimizer(), state, s, Json());
  Trainer second(s, data);
  second.restore(load_checkpoint(folder / "c", second.model(), second.optimizer(), Json()).place);
  CHECK(second.updates() == 10);
  CHECK(second.optimizer().steps() == 10);
  train(second, keep(resumed, 20), 20);
  CHECK(straight == resumed);
}

TEST_CASE("multi30k: the state of a run in JSON, with numbers that are not finite") {
  RunState state;
  state.place = {3, 70, {5, 600, 0.1 + 0.2, 1.5, false, {9, 4, 0, 0.3}}, 2, 1};
  CHECK(state.add({1, 3.0, 2.5, NAN, 1.0, 100, 30}));
  CHECK_FALSE(state.add({2, 2.9, 2.5, 7.0, 1.0, 100, 60}));
  CHECK(state.epochs_without_improvement() == 1);
  state.epochs.back().train_loss = INFINITY;
  const RunState read = run_state_from_json(Json::parse(to_json(state).dump()));
  CHECK(to_json(read) == to_json(state));
  CHECK(read.place.done.loss_sum == 0.1 + 0.2);
  CHECK(std::isnan(read.epochs[0].bleu));
  CHECK(read.epochs[1].train_loss == INFINITY);
  CHECK(read.best_epoch == 1);
  const auto refused = [&](const char* name, const Json& value) {
    Json json = to_json(state);
    json[name] = value;
    return error_of([&] { run_state_from_json(json); });
  };
  CHECK(contains(refused("updates", -1), "updates is -1, out of range"));
  CHECK(contains(refused("updates", 4), "more updates in an epoch"));
  CHECK(contains(refused("epoch", 0), "counted from 1"));
  CHECK(contains(refused("epoch", 1e300), "not a whole number"));
  CHECK(contains(refused("epoch", 1), "epochs out of order"));
  CHECK(contains(refused("skipped_in_a_row", 3), "skipped"));
  CHECK(contains(refused("best_epoch", 4), "best epoch"));
  CHECK(contains(refused("wall_seconds", -1.0), "negative time"));
  RunState fresh;
  CHECK(run_state_from_json(to_json(fresh)).best_loss == INFINITY);
  CHECK_FALSE(fresh.add({1, 3.0, NAN}));
  CHECK(fresh.best_epoch == 0);
}

TEST_CASE("multi30k: what is no checkpoint of the run is refused by name") {
  const OneThread one_thread;
  const Folder folder;
  const Multi30kSettings s = tiny("rmfa");
  const TranslationData data = load_translation_data(s);
  Trainer trainer(s, data);
  const std::string path = folder / "c.safetensors";
  const Json crc{{"train", "00"}};
  save_checkpoint(path, trainer.model(), trainer.optimizer(), {}, s, crc);
  const auto load = [&](const std::string& file, const Json& facts) {
    return error_of([&] { load_checkpoint(file, trainer.model(), trainer.optimizer(), facts); });
  };
  CHECK(load(path, crc) == "");
  CHECK(to_json(checkpoint_settings(path)) == to_json(s));
  CHECK(contains(load(path, {{"train", "01"}}), "other data"));
  CHECK(contains(load(folder / "none", crc), folder / "none"));

  const std::string model = folder / "model.safetensors";
  save_model(model, trainer.model(), s);
  CHECK(contains(load(model, crc), "holds a model alone"));
  load_model(model, trainer.model());

  const std::string other = folder / "other.safetensors";
  save_safetensors(other, {{"x", Tensor::zeros(Shape{2})}});
  CHECK(contains(load(other, crc), other));
  CHECK(contains(load(other, crc), "not a checkpoint"));
  CHECK(contains(error_of([&] { checkpoint_settings(other); }), "not a checkpoint"));

  // The format of earlier versions.
  const std::string old = folder / "old.safetensors";
  save_safetensors(old, load_safetensors(path).tensors, {{"format", "macgrad multi30k 2"}});
  for (const std::string& message : {load(old, crc), error_of([&] { checkpoint_settings(old); }),
                                     error_of([&] { load_model(old, trainer.model()); }),
                                     error_of([&] { is_training_checkpoint(old); })}) {
    CHECK(contains(message, old));
    CHECK(contains(message, "\"macgrad multi30k 2\" of another version of multi30k"));
    CHECK(contains(message, "train again"));
  }

  std::ifstream whole(path, std::ios::binary);
  const std::string bytes{std::istreambuf_iterator<char>(whole), {}};
  for (const size_t length :
       {size_t{0}, size_t{5}, size_t{300}, bytes.size() / 2, bytes.size() - 1}) {
    CAPTURE(length);
    const std::string cut = folder.write("cut.safetensors", bytes.substr(0, length));
    CHECK(contains(load(cut, crc), cut));
    const std::string message = error_of([&] { checkpoint_settings(cut); });
    CHECK(contains(message, cut));
  }

  Multi30kSettings wider = s;
  wider.ffn = 48;
  Trainer wrong(wider, data);
  const std::string message =
      error_of([&] { load_checkpoint(path, wrong.model(), wrong.optimizer(), crc); });
  CHECK(contains(message, path));
  CHECK(contains(message, "misshapen"));
}

TEST_CASE(
    "multi30k: --resume refuses options that contradict the run, and a fresh run its folder") {
  const OneThread one_thread;
  const Folder folder;
  Multi30kSettings s = tiny();
  s.epochs = 1;
  s.common.out = folder / "run";
  REQUIRE(run_multi30k(s) == 0);
  CHECK(contains(error_of([&] { run_multi30k(s); }), "--resume"));
  const Multi30kSettings saved = checkpoint_settings(checkpoint_path(s.common.out));
  Multi30kSettings asked = saved;
  asked.epochs = 3;
  asked.patience = 2;
  asked.common.threads = 2;
  check_same_run(saved, asked, "RUN");
  asked.lr = 0.25;
  asked.common.seed = 9;
  asked.label_smoothing = 0.3;
  const std::string message = error_of([&] { check_same_run(saved, asked, "RUN"); });
  CHECK(contains(message, "RUN: other settings"));
  CHECK(contains(message, "--lr 0.25 (the run has 0.003)"));
  CHECK(contains(message, "--seed 9 (the run has 1)"));
  CHECK(contains(message, "--label-smoothing 0.3"));
  CHECK(contains(message, "What may change: --data, --epochs, --max-updates"));
  CHECK_FALSE(contains(message, "--epochs 3"));
  asked = saved;
  asked.schedule = "one-cycle";
  Multi30kSettings cycle = asked;
  cycle.epochs = 9;
  CHECK(contains(error_of([&] { check_same_run(asked, cycle, "RUN"); }), "one-cycle"));

  // Through the command line: more epochs go on, another rate does not.
  const auto command = [&](std::vector<const char*> words) {
    words.insert(words.begin(), "train");
    return train_command(static_cast<int>(words.size()), words.data());
  };
  const std::string out = folder / "run";
  CHECK(command({"--resume", out.c_str(), "--lr", "0.5"}) == 1);
  CHECK(command({"--resume", out.c_str(), "--out", "elsewhere"}) == 1);
  CHECK(command({"--resume", (folder / "none").c_str()}) == 1);
  CHECK(command({"--resume", out.c_str(), "--epochs", "2"}) == 0);
  CHECK(read_lines(folder / "run/metrics.csv").size() == 3);
  // About what was typed: the run is a toy, which nobody asked for here.
  const std::string preset = testing::printed(stderr, [&] {
    CHECK(command({"--resume", out.c_str(), "--preset", "quick"}) == 2);
  });
  CHECK(contains(preset, "--preset has no effect with --resume"));
  CHECK(command({"--resume", ""}) == 2);
}

TEST_CASE("multi30k: what a run has done is a limit for --resume, as for --seeds") {
  const OneThread one_thread;
  const Folder folder;
  Multi30kSettings s = tiny();
  s.common.out = folder / "run";
  REQUIRE(run_multi30k(s) == 0);
  const int64_t updates = checkpoint_state(checkpoint_path(s.common.out)).place.updates;
  const std::string results = folder / "run/results.json";
  const auto written = fs::last_write_time(results);
  const auto command = [&](const char* option, int64_t limit) {
    const std::string out = folder / "run", value = std::to_string(limit);
    const std::vector<const char*> words{"train", "--resume", out.c_str(), option, value.c_str()};
    return train_command(static_cast<int>(words.size()), words.data());
  };
  CHECK(command("--max-updates", updates - 1) == 1);
  CHECK(command("--epochs", 1) == 1);
  CHECK(fs::last_write_time(results) == written);
  s.max_updates = updates - 1;
  const std::string message = error_of([&] { run_multi30k(s, Start::resume); });
  CHECK(contains(message, fmt::format("has come to update {}, beyond --max-updates {}", updates,
                                      updates - 1)));
  CHECK(error_of([&] { run_to_end(s, "a run"); }) == message);
  s.max_updates = 0;
  s.epochs = 1;
  CHECK(contains(error_of([&] { run_multi30k(s, Start::resume); }),
                 "has come to epoch 2, beyond --epochs 1"));
  // Of several runs, before the first one trains.
  Multi30kSettings several = tiny();
  several.epochs = 1;
  several.common.out = folder / "several";
  REQUIRE(run_seeds(several, {2}) == 0);
  several.max_updates = 3;
  CHECK(contains(error_of([&] { run_seeds(several, {1, 2}); }), "beyond --max-updates 3"));
  several.max_updates = 0;
  several.average = 3;
  CHECK(contains(error_of([&] { run_seeds(several, {1, 2}); }), "kept no epochs"));
  CHECK_FALSE(fs::exists(folder / "several/seed-1"));
  // As many as there are is no contradiction.
  CHECK(command("--max-updates", updates) == 0);
}

TEST_CASE("multi30k: early stopping, the best epoch and the mean of the last ones") {
  const OneThread one_thread;
  const Folder folder;
  Multi30kSettings s = tiny();
  // Far too high a rate, for good: the loss goes up and down.
  s.schedule = "constant";
  s.lr = 1.0;
  s.warmup = 1;
  s.epochs = 30;
  s.patience = 2;
  s.average = 3;
  s.bleu_every = 2;
  s.common.out = folder / "run";
  REQUIRE(run_multi30k(s) == 0);
  const Json results = read_json(folder / "run/results.json");
  CHECK(results.at("ended_by") == "patience");
  const auto epochs = results.at("epochs").get<int64_t>();
  CHECK(epochs < 30);
  CHECK(results.at("best_epoch") == epochs - 2);
  CHECK(results.at("model").at("epochs") == Json({epochs - 2, epochs - 1, epochs}));
  size_t files = 0;
  for ([[maybe_unused]] const auto& file : fs::directory_iterator(folder / "run/epochs")) ++files;
  CHECK(files == 3);
  // BLEU of every second epoch alone.
  const std::vector<std::string> lines = read_lines(folder / "run/metrics.jsonl");
  CHECK(Json::parse(lines[0]).at("valid_bleu").is_null());
  CHECK(Json::parse(lines[1]).at("valid_bleu").is_number());

  const auto epoch = [&](int64_t e) {
    return load_safetensors(folder / fmt::format("run/epochs/epoch-{}.safetensors", e)).tensors;
  };
  CHECK(results.at("scores").at("val").at("crc32").at("source") ==
        results.at("data").at("crc32").at("valid_source"));
  const auto mean = load_safetensors(folder / "run/averaged.safetensors").tensors;
  const std::string name = "model/encoder.layers.0.feed_forward.linear1.weight";
  const auto a = epoch(epochs - 2).at(name).to_vector<float>(),
             b = epoch(epochs - 1).at(name).to_vector<float>(),
             c = epoch(epochs).at(name).to_vector<float>(), m = mean.at(name).to_vector<float>();
  for (size_t i = 0; i < m.size(); ++i)
    REQUIRE(m[i] == static_cast<float>((double{a[i]} + double{b[i]} + double{c[i]}) / 3.0));
  const auto best = load_safetensors(folder / "run/best.safetensors").tensors.at(name);
  CHECK(best.to_vector<float>() == a);
}

TEST_CASE("multi30k: averages keep the buffers of the last epoch") {
  const OneThread one_thread;
  const Folder folder;
  const Multi30kSettings s = tiny("rmfa");
  const TranslationData data = load_translation_data(s);
  Trainer trainer(s, data);
  const std::string first = folder / "1", second = folder / "2", mean = folder / "mean";
  trainer.train_epoch(1, go_on);
  save_model(first, trainer.model(), s);
  trainer.train_epoch(2, go_on);
  save_model(second, trainer.model(), s);
  average_models({first, second}, mean, trainer.model(), s);
  std::map<std::string, bool> trained;
  for (const auto& [name, parameter] : trainer.model().named_parameters())
    trained["model/" + name] = true;
  const auto a = load_safetensors(first).tensors, b = load_safetensors(second).tensors,
             m = load_safetensors(mean).tensors;
  size_t buffers = 0, moved = 0;
  for (const auto& [name, value] : m) {
    if (trained.contains(name)) continue;
    ++buffers;
    moved += max_abs_difference(a.at(name), b.at(name)) > 0;
    CHECK(max_abs_difference(value, b.at(name)) == 0.0);
  }
  CHECK(buffers > 0);
  CHECK(moved > 0);
  Multi30kSettings wider = s;
  wider.ffn = 48;
  Trainer other(wider, data);
  save_model(first, other.model(), wider);
  CHECK_THROWS_WITH_AS(average_models({first, second}, mean, trainer.model(), s),
                       doctest::Contains(second.c_str()), Error);
}

TEST_CASE("multi30k: presets are defaults, and options beside them win") {
  Multi30kSettings s;
  apply_preset(s, "transformer-tiny");
  CHECK(s.preset == "transformer-tiny");
  CHECK(s.layers == 4);
  CHECK(s.batch_tokens == 8192);
  CHECK(s.adam_eps == 1e-8);
  CHECK(s.norm == "post");
  for (const std::string& name : preset_names()) {
    Multi30kSettings one;
    apply_preset(one, name);
    check_settings(one);
    CHECK(to_json(settings_from_json(to_json(one))) == to_json(one));
  }
  Multi30kSettings published;
  apply_preset(published, "paper");
  CHECK(published.logit_scale == 1.0);
  CHECK(published.presbn == "auto");
  CHECK(published.draws == "iid");
  CHECK(published.features == 128);
  CHECK(published.redraw == "step");
  CHECK_THROWS_WITH_AS(apply_preset(s, "huge"), doctest::Contains("transformer-tiny"), Error);
  Options options("multi30k");
  declare_options(options, s);
  options.parse(
      "--preset transformer-tiny --lr 1e-3 --test test_2018_flickr --separate-embeddings");
  CHECK(s.lr == 1e-3);
  CHECK(s.test == std::vector<std::string>{"test_2018_flickr"});
  CHECK_FALSE(s.share_embeddings);
  CHECK(s.warmup == 2000);
}

TEST_CASE("multi30k: several seeds, their mean, and none run twice") {
  const OneThread one_thread;
  const Folder folder;
  Multi30kSettings s = tiny();
  s.epochs = 1;
  s.common.out = folder / "runs";
  REQUIRE(run_seeds(s, {3, 5}) == 0);
  const Json summary = read_json(folder / "runs/summary.json");
  std::vector<double> losses;
  for (const char* seed : {"3", "5"})
    losses.push_back(read_json(folder / (std::string("runs/seed-") + seed + "/results.json"))
                         .at("scores")
                         .at("val")
                         .at("loss"));
  CHECK(losses[0] != losses[1]);
  const Json& loss = summary.at("scores").at("val").at("loss");
  CHECK(loss.at("mean").get<double>() == doctest::Approx((losses[0] + losses[1]) / 2));
  CHECK(loss.at("standard_deviation").get<double>() ==
        doctest::Approx(std::abs(losses[0] - losses[1]) / std::sqrt(2.0)));
  CHECK(read_lines(folder / "runs/summary.csv").size() == 4);  // loss, BLEU, chrF

  const auto written = fs::last_write_time(folder / "runs/seed-3/results.json");
  REQUIRE(run_seeds(s, {3, 5, 7}) == 0);
  CHECK(fs::last_write_time(folder / "runs/seed-3/results.json") == written);
  CHECK(read_json(folder / "runs/summary.json").at("seeds") == Json({3, 5, 7}));
  // Seeds of earlier commands count, those of other settings do not.
  REQUIRE(run_seeds(s, {5}) == 0);
  CHECK(read_json(folder / "runs/summary.json").at("seeds") == Json({3, 5, 7}));
  fs::create_directory(folder / "runs/seed-x");
  Multi30kSettings other = s;
  other.common.out = folder / "other";
  other.dropout = 0.2;
  other.common.seed = 9;
  REQUIRE(run_seeds(other, {9}) == 0);
  fs::rename(folder / "other/seed-9", folder / "runs/seed-9");
  REQUIRE(run_seeds(s, {3}) == 0);
  CHECK(read_json(folder / "runs/summary.json").at("seeds") == Json({3, 5, 7}));
  // A seed that diverges is listed and stops no other.
  Multi30kSettings wild = s;
  wild.lr = 1e30;
  wild.warmup = 0;
  wild.clip = 0;
  wild.common.out = folder / "wild";
  CHECK(run_seeds(wild, {3, 5}) == 1);
  const Json failed = read_json(folder / "wild/summary.json").at("failed");
  REQUIRE(failed.size() == 2);
  CHECK(failed[1].at("seed") == 5);
  CHECK(contains(failed[1].at("reason"), "lower --lr"));

  s.lr = 0.1;
  CHECK_THROWS_WITH_AS(run_seeds(s, {3}), doctest::Contains("--lr"), Error);
  CHECK_THROWS_WITH_AS(run_seeds(s, {3, 3}), doctest::Contains("twice"), Error);
}

TEST_CASE("multi30k: <pad> gets no gradient from where it stands, and the warm-up its start") {
  const OneThread one_thread;
  for (const std::string attention : {"softmax", "rmfa"}) {
    Multi30kSettings s = tiny(attention);
    s.warmup_from = 1e-7;
    s.qkv_gain = std::sqrt(0.5);
    const TranslationData data = load_translation_data(s);
    Trainer trainer(s, data);
    Multi30kSettings plain = s;
    plain.qkv_gain = 1.0;
    Trainer other(plain, data);
    const auto largest = [](Trainer& t, const std::string& projection) {
      const auto state = t.model().state_dict();
      double most = 0;
      for (const float v :
           state.at("encoder.layers.0.self_attention." + projection).to_vector<float>())
        most = std::max(most, std::abs(double{v}));
      return most;
    };
    CHECK(largest(trainer, "v_proj.weight") ==
          doctest::Approx(std::sqrt(0.5) * largest(other, "v_proj.weight")));
    CHECK(largest(trainer, "out_proj.weight") == largest(other, "out_proj.weight"));
    double lr = 0;
    trainer.train_epoch(1, [&](const nn::StepReport& r) {
      lr = r.lr;
      return false;
    });
    CHECK(lr == doctest::Approx(1e-7 + (s.lr - 1e-7) / 10));
    const std::vector<float> gradient =
        trainer.model().source_embedding.weight.grad().value().to_vector<float>();
    const auto width = static_cast<size_t>(s.d_model);
    double pad = 0, all = 0;
    for (size_t i = 0; i < gradient.size(); ++i) {
      all = std::max(all, std::abs(double{gradient[i]}));
      if (i / width == static_cast<size_t>(Vocabulary::kPad))
        pad = std::max(pad, std::abs(double{gradient[i]}));
    }
    CHECK(all > 0);
    CHECK(pad == 0);
  }
}

}  // namespace
}  // namespace macgrad::experiments
