// The translation experiment: options and what they refuse, data, the training loop, evaluation,
// checkpoints, and a whole small run with the files it leaves.
#include <doctest/doctest.h>
#include <unistd.h>

#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>

#include "macgrad/experiments/common/output_files.h"
#include "macgrad/experiments/common/text_files.h"
#include "macgrad/experiments/multi30k/checkpoint.h"
#include "macgrad/experiments/multi30k/commands.h"
#include "macgrad/experiments/multi30k/evaluation.h"
#include "macgrad/experiments/multi30k/run.h"
#include "macgrad/experiments/multi30k/split_scores.h"
#include "macgrad/experiments/multi30k/training.h"
#include "macgrad/experiments/multi30k/translator.h"
#include "macgrad/tests/composites_allowed.h"
#include "macgrad/tests/errors.h"
#include "macgrad/tests/multi30k_settings.h"
#include "macgrad/tests/temporary_folder.h"

namespace macgrad::experiments {
namespace {
namespace fs = std::filesystem;

using Folder = testing::TemporaryFolder;
using testing::contains;
using testing::OneThread;
using testing::tiny;

// The message of parsing `line`, "" when it is accepted.
std::string parse_error(const std::string& line, Multi30kSettings s = {}) {
  Options options("multi30k");
  declare_options(options, s);
  try {
    options.parse(line);
    check_settings(s);
  } catch (const std::exception& error) {
    return error.what();
  }
  return "";
}

std::string check_error(const std::function<void(Multi30kSettings&)>& change) {
  Multi30kSettings s;
  change(s);
  try {
    check_settings(s);
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

// Column `name` of a CSV file.
std::vector<double> column(const std::string& path, const std::string& name) {
  const std::vector<std::string> lines = read_lines(path);
  std::vector<double> values;
  size_t at = std::string::npos;
  for (const std::string& line : lines) {
    std::istringstream cells(line);
    std::string cell;
    for (size_t i = 0; std::getline(cells, cell, ','); ++i) {
      if (&line == &lines.front() && cell == name) at = i;
      if (&line != &lines.front() && i == at) values.push_back(std::stod(cell));
    }
  }
  return values;
}

TEST_CASE("multi30k: options that go together are accepted") {
  CHECK(parse_error("") == "");
  CHECK(parse_error("--attention rmfa --ppsbn --kernel inv --features 64 --draws optimal "
                    "--redraw every:5 --eval-draws 3 --presbn row --denominator none") == "");
  CHECK(parse_error("--attention rmfa --ppsbn --denominator floor:0.25") == "");
  CHECK(parse_error("--beam 5 --length-penalty 0.6") == "");
  CHECK(parse_error("--attention rmfa --ppsbn --kernel inv --logit-scale 0") == "");
  CHECK(parse_error("--attention exact --kernel log --ppsbn --train-logit-scale") == "");
  CHECK(parse_error("--text raw --source en --target de --attention-dropout 0.1") == "");
}

TEST_CASE("multi30k: options that do not go together say what to do") {
  CHECK(contains(parse_error("--attention rmfa --kernel inv"), "needs --ppsbn"));
  CHECK(contains(parse_error("--features 64"), "use --attention rmfa"));
  CHECK(contains(parse_error("--attention exact --draws iid"), "use --attention rmfa"));
  CHECK(contains(parse_error("--kernel inv"), "--attention exact"));
  CHECK(contains(parse_error("--presbn row"), "add --ppsbn"));
  CHECK(
      contains(parse_error("--attention rmfa --attention-dropout 0.1"), "use --attention softmax"));
  CHECK(contains(parse_error("--toy --text raw"), "--toy"));
  CHECK(contains(parse_error("--attention rmfa --redraw sometimes"), "every:K"));
  for (const char* denominator : {"ceiling", "floor:", "floor:-1", "floor:0.1x", "floor:inf"})
    CHECK(contains(parse_error(std::string("--attention rmfa --denominator ") + denominator),
                   "floor:DELTA"));
  CHECK(contains(parse_error("--attention rmfa --kernel gauss"), "trigh"));
  CHECK(contains(parse_error("--source en --target en"), "two languages"));
  CHECK(contains(parse_error("--heads 3"), "multiple of the heads"));
  CHECK(contains(parse_error("--attention rmfa --kernel inv --ppsbn --logit-scale 6"),
                 "below 5.657"));
  CHECK(contains(parse_error("--dropout 1"), "--dropout"));
  CHECK(contains(parse_error("--share-embeddings --vocabularies separate"),
                 "or --separate-embeddings"));
  CHECK(contains(parse_error("--precision tf32"), "known: float32, float64, bf16"));
  CHECK(contains(parse_error("--beam 0"), "--beam"));
  CHECK(contains(parse_error("--beam 1 --length-penalty 2"), "--beam 2 or more"));
  CHECK(contains(parse_error("--length-penalty -1"), "--length-penalty"));
  CHECK(check_error([](Multi30kSettings& s) { s.lr = INFINITY; }) == "--lr inf must be finite");
  CHECK(contains(parse_error("--attention rmfa --redraw never --eval-draws 2"),
                 "--eval-draws 2 with --redraw never"));
  CHECK(contains(parse_error("--attention rmfa --draws optimal --features 1"),
                 "--features 1 is too small for --draws optimal"));
  CHECK(contains(parse_error("--attention rmfa --draws h01 --features 33"), "use at least 34"));
  CHECK(contains(check_error([](Multi30kSettings& s) { s.adam_beta1 = NAN; }), "--adam-beta1"));
}

TEST_CASE("multi30k: commands") {
  const char* bogus[] = {"multi30k", "bogus"};
  CHECK(multi30k_command(2, bogus) == 2);
  const char* idle[] = {"multi30k", "translate", "--checkpoint",     "none",
                        "--beam",   "1",         "--length-penalty", "2"};
  CHECK(multi30k_command(8, idle) == 2);
  const char* help[] = {"multi30k", "--help"};
  CHECK(multi30k_command(2, help) == 0);
  Multi30kSettings s;
  s.test = {"test_2016_flickr"};
  Options options("multi30k");
  declare_options(options, s);
  options.parse("--test none");
  CHECK(s.test.empty());
}

TEST_CASE("multi30k: defaults of --toy and settings in JSON") {
  Multi30kSettings s;
  make_toy(s);
  CHECK(s.toy);
  CHECK(s.d_model < Multi30kSettings{}.d_model);
  const Json json = to_json(s);
  CHECK(json.at("toy") == true);
  CHECK(json.at("attention") == "softmax");
  CHECK(json.at("common").at("seed") == 1);
  CHECK(s.bleu().tokenizer == BleuTokenizer::none);
  Multi30kSettings raw;
  raw.text = "raw";
  CHECK(raw.bleu().tokenizer == BleuTokenizer::mteval13a);
  s.kernel = "inv";
  s.common.seed = ~uint64_t{0};
  CHECK(to_json(settings_from_json(to_json(s))) == to_json(s));
  Json changed = to_json(s);
  changed.erase("kernel");
  CHECK_THROWS_WITH_AS(settings_from_json(changed), doctest::Contains("kernel"), Error);
}

TEST_CASE("multi30k: raw text is split, references stay as written") {
  const Folder folder;
  fs::create_directories(folder / "data/task1/raw");
  const auto put = [&](const std::string& name, const std::string& text) {
    std::ofstream(folder / ("data/task1/raw/" + name)) << text;
  };
  put("train.de", "Ein Hund.\nEin Hund, ein Ball.\n");
  put("train.en", "A dog.\nA dog, a ball.\n");
  put("val.de", "Ein Ball.\n");
  put("val.en", "A ball!\n");
  Multi30kSettings s;
  s.data = folder / "";
  s.text = "raw";
  s.subwords = "word";
  s.min_frequency = 1;
  const TranslationData d = load_translation_data(s);
  CHECK(d.references == std::vector<std::string>{"A ball!"});
  CHECK(d.target.decode(d.train.target[1]) == "A dog , a ball .");
  CHECK(d.target.decode(d.valid.target[0]) == "A ball <unk>");
  CHECK(d.facts().at("unknown_share").at("valid_target") == doctest::Approx(1.0 / 3));
  // zlib.crc32(b"A ball!\n") of Python.
  CHECK(d.facts().at("crc32").at("valid_target") == "f2b15228");
  s.text = "tok";
  CHECK_THROWS_AS(load_translation_data(s), Error);
}

TEST_CASE("multi30k: training lowers both losses, with softmax and with RMFA and ppSBN") {
  const OneThread one_thread;
  for (const std::string attention : {"softmax", "rmfa"}) {
    CAPTURE(attention);
    const Multi30kSettings s = tiny(attention);
    const TranslationData data = load_translation_data(s);
    Trainer trainer(s, data);
    const auto valid = ordered_batches(data.valid, s.batch_tokens);
    const double before = *validation_loss(trainer.model(), valid, s.device());
    int64_t reports = 0;
    const auto report = [&](const nn::StepReport& r) {
      CHECK(r.step == ++reports);
      CHECK(std::isfinite(r.loss));
      CHECK(r.gradient_norm > 0);
      return true;
    };
    const EpochSummary first = trainer.train_epoch(1, report);
    const double middle = *validation_loss(trainer.model(), valid, s.device());
    const EpochSummary second = trainer.train_epoch(2, report);
    const double after = *validation_loss(trainer.model(), valid, s.device());
    CHECK(first.updates + second.updates == trainer.total_updates());
    CHECK(trainer.finished());
    CHECK(second.loss() < first.loss());
    CHECK(middle < before - 0.3);
    CHECK(after < middle - 0.1);
    // The same as the number of target words and ends of sentences.
    int64_t tokens = 0;
    for (const auto& sentence : data.train.target)
      tokens += static_cast<int64_t>(sentence.size()) + 1;
    CHECK(first.tokens == tokens);
    if (attention == "rmfa") {
      CHECK(std::isfinite(first.denominators.smallest_ratio));
    } else {
      CHECK(first.denominators.floored == 0);
    }
  }
}

TEST_CASE("multi30k: validation loss does not depend on how sentences are batched") {
  const OneThread one_thread;
  const Multi30kSettings s = tiny();
  const TranslationData data = load_translation_data(s);
  Trainer trainer(s, data);
  const double one =
      *validation_loss(trainer.model(), ordered_batches(data.valid, 100000), s.device());
  const double many = *validation_loss(trainer.model(), ordered_batches(data.valid, 1), s.device());
  CHECK(one == doctest::Approx(many).epsilon(1e-5));
  // Without training every word is about as likely as another.
  CHECK(one == doctest::Approx(std::log(static_cast<double>(data.target.size()))).epsilon(0.3));
  CHECK(trainer.model().training());
  CHECK_FALSE(validation_loss(trainer.model(), ordered_batches(data.valid, 512), s.device(),
                              [] { return true; }));
}

TEST_CASE("multi30k: translations stand in the order of the corpus") {
  const OneThread one_thread;
  Multi30kSettings s = tiny();
  s.d_model = 32;
  s.lr = 1e-2;
  s.epochs = 8;
  const TranslationData data = load_translation_data(s);
  Trainer trainer(s, data);
  for (int64_t epoch = 1; !trainer.finished(); ++epoch)
    trainer.train_epoch(epoch, [](const nn::StepReport&) { return true; });
  const std::vector<std::string> lines(data.valid_source.begin(), data.valid_source.begin() + 7);
  const auto translated = [&](const std::vector<std::string>& some, int64_t tokens) {
    return translate(trainer.model(), data.codecs(), some, tokens, s.device());
  };
  const auto alone = [&](size_t i) { return translated({lines[i]}, 1)->front(); };
  const auto all = translated(lines, 1);
  REQUIRE(all);
  // A model that says the same of every sentence would show no order.
  CHECK(std::set<std::string>(all->begin(), all->end()).size() >= 5);
  for (size_t i = 0; i < all->size(); ++i) CHECK((*all)[i] == alone(i));
  CHECK(translated(lines, 512) == all);
}

TEST_CASE("multi30k: a scoring that is stopped leaves no file, whenever it is") {
  const OneThread one_thread;
  const Multi30kSettings s = tiny();
  const TranslationData data = load_translation_data(s);
  Trainer trainer(s, data);
  const Folder folder;
  const RunDirectory out(folder / "run", "multi30k");
  int asked = 0;
  const Stop never = [&] {
    ++asked;
    return false;
  };
  REQUIRE(final_scores(trainer.model(), data, {}, s, out, never));
  REQUIRE(fs::exists(folder / "run/translations-val.txt"));
  fs::remove(folder / "run/translations-val.txt");
  REQUIRE(asked > 1);
  for (int at = 1; at <= asked; ++at) {
    int count = 0;
    const Stop stop = [&] { return ++count >= at; };
    CHECK_FALSE(final_scores(trainer.model(), data, {}, s, out, stop).has_value());
    CHECK_FALSE(fs::exists(folder / "run/translations-val.txt"));
  }
}

TEST_CASE("multi30k: accumulated batches make the update of the large batch") {
  const OneThread one_thread;
  Multi30kSettings large = tiny();
  large.batch_tokens = 1 << 20;
  Multi30kSettings small = tiny();
  small.accumulate = 1000;
  const TranslationData data = load_translation_data(large);
  std::vector<nn::StepReport> reports;
  for (const Multi30kSettings& s : {large, small}) {
    Trainer trainer(s, data);
    const EpochSummary e = trainer.train_epoch(1, [&](const nn::StepReport& r) {
      reports.push_back(r);
      return true;
    });
    CHECK(e.updates == 1);
  }
  CHECK(reports[0].count == reports[1].count);
  CHECK(reports[0].loss == doctest::Approx(reports[1].loss).epsilon(1e-5));
  CHECK(reports[0].gradient_norm == doctest::Approx(reports[1].gradient_norm).epsilon(1e-4));
}

TEST_CASE("multi30k: stopping, the limit of updates and losses that are not finite") {
  const OneThread one_thread;
  Multi30kSettings s = tiny();
  const TranslationData data = load_translation_data(s);
  {
    Trainer trainer(s, data);
    const EpochSummary e =
        trainer.train_epoch(1, [](const nn::StepReport& r) { return r.step < 3; });
    CHECK(e.stopped);
    CHECK(e.updates == 3);
  }
  s.max_updates = 2;
  {
    Trainer trainer(s, data);
    CHECK(trainer.train_epoch(1, [](const nn::StepReport&) { return true; }).updates == 2);
    CHECK(trainer.finished());
  }
  {
    Trainer trainer(s, data);
    trainer.model().parameters().front()->value().fill(std::nan(""));
    CHECK_THROWS_WITH_AS(trainer.train_epoch(1, [](const nn::StepReport&) { return true; }),
                         doctest::Contains("update 1 (epoch 1)"), NotFinite);
  }
  s.schedule = "one-cycle";
  CHECK_THROWS_WITH_AS(Trainer(s, data), doctest::Contains("--warmup 10"), Error);
}

TEST_CASE("multi30k: --precision bf16 follows the losses of float32, and its checkpoint is exact") {
  const OneThread one_thread;
  const testing::CompositesAllowed attention_in_bfloat16;
  const Folder folder;
  for (const std::string attention : {"softmax", "rmfa"}) {
    CAPTURE(attention);
    Multi30kSettings s = tiny(attention);
    s.epochs = 4;
    s.logit_scale = 1.0;  // denominators of 32 features stay away from 0
    const TranslationData data = load_translation_data(s);
    const auto losses = [&](Trainer& trainer) {
      std::vector<double> list;
      for (int64_t epoch = 1; epoch <= s.epochs; ++epoch)
        trainer.train_epoch(epoch, [&](const nn::StepReport& r) {
          list.push_back(r.loss);
          return true;
        });
      return list;
    };
    Trainer single(s, data);
    const std::vector<double> expected = losses(single);
    s.common.precision = "bf16";
    Trainer low(s, data);
    for (const auto& [name, p] : low.model().named_parameters())
      CHECK(p->dtype() == DType::bfloat16);
    const std::vector<double> got = losses(low);
    REQUIRE(got.size() == expected.size());
    CHECK(expected.back() < expected.front() - 0.7);
    double worst = 0;
    for (size_t i = 0; i < got.size(); ++i)
      worst = std::max(worst, std::abs(got[i] - expected[i]) / expected[i]);
    CHECK(worst <= 0.02);

    const std::string file = folder / "bf16.safetensors";
    save_checkpoint(file, low.model(), low.optimizer(), RunState{}, s, Json::object());
    Trainer other(s, data);
    load_checkpoint(file, other.model(), other.optimizer(), Json::object());
    const auto saved = low.optimizer().state_dict(), read = other.optimizer().state_dict();
    for (const auto& [name, value] : saved) CHECK(max_abs_difference(value, read.at(name)) == 0.0);
    const auto model = low.model().state_dict(), read_model = other.model().state_dict();
    for (const auto& [name, value] : model)
      CHECK(max_abs_difference(value, read_model.at(name)) == 0.0);
    s.common.precision = "float32";
    Trainer wrong(s, data);
    CHECK_THROWS_WITH_AS(load_checkpoint(file, wrong.model(), wrong.optimizer(), Json::object()),
                         doctest::Contains("in the precision in which it was saved"), Error);
  }
}

// A run of `s` in folder/run, and the model it saved.
struct SavedRun {
  SavedRun(Multi30kSettings s, const Folder& folder) {
    s.common.out = folder / "run";
    REQUIRE(run_multi30k(s) == 0);
    checkpoint = folder / "run/checkpoint.safetensors";
  }
  std::string checkpoint;
};

TEST_CASE("multi30k translate: a saved model translates as the one that was trained") {
  const OneThread one_thread;
  for (const std::string attention : {"softmax", "rmfa"}) {
    CAPTURE(attention);
    const Folder folder;
    Multi30kSettings s = tiny(attention);
    s.epochs = 4;
    s.lr = 1e-2;
    if (attention == "rmfa") {
      s.subwords = "bpe";
      s.vocabulary_size = 320;
    }
    const SavedRun run(s, folder);
    const std::vector<std::string> expected = read_lines(folder / "run/translations.txt");
    std::vector<std::string> lines = load_translation_data(s).valid_source;
    Translator translator(run.checkpoint, kCpu);
    CHECK(translator.translate(lines, {}) == expected);
    CHECK(std::set<std::string>(expected.begin(), expected.end()).size() > 3);
    // Lines without words stay where they are.
    const auto some = translator.translate({"", lines[4], " ", lines[1]}, {});
    CHECK(some == std::vector<std::string>{"", expected[4], "", expected[1]});
    CHECK(translator.translate({}, {}).empty());
    // The same through files, with the command's own beam.
    std::ofstream(folder / "in.txt") << lines[0] << "\n\n" << lines[2] << "\r\n";
    const std::string in = folder / "in.txt", out = folder / "out.txt";
    const std::vector<const char*> arguments = {"translate", "--checkpoint", run.checkpoint.c_str(),
                                                "--input",   in.c_str(),     "--output",
                                                out.c_str(), "--threads",    "1"};
    REQUIRE(translate_command(static_cast<int>(arguments.size()), arguments.data()) == 0);
    CHECK(read_lines(out) == translator.translate({lines[0], "", lines[2]}, {.beam = 5}));
  }
}

TEST_CASE("multi30k translate: what is missing or does not fit is said") {
  const OneThread one_thread;
  const Folder folder;
  Multi30kSettings s = tiny();
  s.epochs = 1;
  const SavedRun run(s, folder);
  const auto error = [&] {
    try {
      Translator(run.checkpoint, kCpu);
    } catch (const Error& e) {
      return std::string(e.what());
    }
    return std::string();
  };
  CHECK(error() == "");
  fs::rename(folder / "run/target.vocab", folder / "run/elsewhere");
  CHECK(contains(error(), "target.vocab: missing"));
  // A vocabulary of another corpus.
  Vocabulary::build({"one two three"}, 1).save(folder / "run/target.vocab");
  CHECK(contains(error(), "do the vocabularies beside it belong to it"));
  CHECK(contains(error(), "checkpoint.safetensors"));
  // Before anything is loaded: a file that cannot be written.
  const std::string lost = folder / "none/out.txt", known = folder.path();
  for (const std::string& out : {lost, known}) {
    const std::vector<const char*> arguments = {"translate", "--checkpoint", "none", "--output",
                                                out.c_str()};
    CHECK(translate_command(static_cast<int>(arguments.size()), arguments.data()) == 1);
    CHECK_THROWS_WITH_AS(check_writable(out), doctest::Contains(out.c_str()), Error);
  }
  CHECK_NOTHROW(check_writable(folder / "new.txt"));
  std::ofstream(run.checkpoint) << "not a checkpoint";
  CHECK(contains(error(), "checkpoint.safetensors"));
  fs::remove(run.checkpoint);
  CHECK(contains(error(), "checkpoint.safetensors"));
}

TEST_CASE("multi30k: a run leaves metrics, settings, translations and a checkpoint") {
  const OneThread one_thread;
  const Folder folder;
  Multi30kSettings s = tiny("rmfa");
  s.valid_bleu_sentences = 10;
  s.common.out = folder / "run";
  REQUIRE(run_multi30k(s) == 0);
  const std::string csv = folder / "run/metrics.csv";
  CHECK(
      read_lines(csv).front() ==
      "epoch,train_loss,valid_loss,valid_perplexity,valid_bleu,seconds,tokens_per_second,updates");
  const auto loss = column(csv, "valid_loss"), perplexity = column(csv, "valid_perplexity");
  REQUIRE(loss.size() == 2);
  CHECK(loss[1] < loss[0]);
  CHECK(perplexity[1] == doctest::Approx(std::exp(loss[1])));
  CHECK(column(csv, "epoch") == std::vector<double>{1, 2});
  CHECK(column(csv, "tokens_per_second")[0] > 0);
  CHECK(read_lines(folder / "run/translations.txt").size() == 10);
  const Json json = read_json(folder / "run/settings.json");
  CHECK(json.at("state") == "complete");
  CHECK(json.at("settings").at("attention") == "rmfa");
  CHECK(contains(json.at("bleu").at("signature"), "tok:none"));
  CHECK(json.at("build").contains("commit"));
  CHECK(fs::exists(folder / "run/checkpoint.safetensors"));
  const Json results = read_json(folder / "run/results.json");
  CHECK(results.at("model").at("file") == "best.safetensors");
  CHECK(results.at("scores").at("val").at("loss") == doctest::Approx(loss[1]));
  CHECK(results.at("scores").at("val").at("sentences") == 20);
  CHECK(read_lines(folder / "run/translations-val.txt").size() == 20);
  const std::vector<std::string> lines = read_lines(folder / "run/metrics.jsonl");
  REQUIRE(lines.size() == 2);
  CHECK(Json::parse(lines[1]).at("valid_loss") == loss[1]);
  CHECK(fs::exists(folder / "run/source.vocab"));
  CHECK(fs::exists(folder / "run/curves.gp"));
}

}  // namespace
}  // namespace macgrad::experiments
