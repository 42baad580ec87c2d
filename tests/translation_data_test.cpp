// The data of the translation experiment: subwords and words, shared and separate, in both text
// forms, their files beside a checkpoint, test splits, empty lines, and the options of all this.
#include <doctest/doctest.h>

#include <cmath>
#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>

#include "macgrad/experiments/common/bleu.h"
#include "macgrad/experiments/common/csv.h"
#include "macgrad/experiments/common/output_files.h"
#include "macgrad/experiments/common/text_files.h"
#include "macgrad/experiments/multi30k/data.h"
#include "macgrad/experiments/multi30k/evaluation.h"
#include "macgrad/experiments/multi30k/run.h"
#include "macgrad/experiments/multi30k/training.h"
#include "macgrad/experiments/multi30k/translator.h"
#include "macgrad/tests/errors.h"
#include "macgrad/tests/temporary_folder.h"

namespace macgrad::experiments {
namespace {
using Lines = std::vector<std::string>;
using testing::contains;
using testing::error_of;

std::string joined(const Lines& lines) {
  std::string text;
  for (const std::string& line : lines) text += line + "\n";
  return text;
}

// A corpus of the public layout: train, val and one test split, tokenised and raw.
class Corpus : public testing::TemporaryFolder {
 public:
  Corpus() {
    const Lines animals{"dog", "cat", "bird", "horse"}, tiere{"hund", "vogel", "fisch", "wolf"};
    const Lines places{"house", "river", "wall", "tree"}, orte{"haus", "fluss", "feld", "baum"};
    Lines de, en;
    for (size_t i = 0; i < 16; ++i) {
      en.push_back("a " + animals[i % 4] + " near the " + places[i / 4] + " .");
      de.push_back("ein " + tiere[i % 4] + " vor dem " + orte[i / 4] + " .");
    }
    put("tok", "train", de, en);
    put("tok", "val", {"ein hund vor dem baum .", "ein wolf ."},
        {"a dog near the tree .", "a cat ."});
    put("tok", "test_2016_flickr", {"ein fisch ."}, {"a caf\xC3\xA9 ."});
    put("raw", "train", {"Ein Hund, ein Haus.", "Ein Wolf."}, {"A dog, a house.", "A cat."});
    put("raw", "val", {"Ein  Hund."}, {"A dog (a cat)!"});
  }
  void put(const std::string& form, const std::string& split, const Lines& de,
           const Lines& en) const {
    const std::string stem =
        "data/task1/" + form + "/" + split + (form == "tok" ? ".lc.norm.tok." : ".");
    write(stem + "de", joined(de));
    write(stem + "en", joined(en));
  }
  Multi30kSettings settings() const {
    Multi30kSettings s;
    s.data = path();
    s.vocabulary_size = 320;
    s.min_frequency = 1;
    return s;
  }
};

// The message of parsing `line`, "" when it is accepted.
std::string parse_error(const std::string& line) {
  Multi30kSettings s;
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

TEST_CASE("translation data: subwords are joint, words are not, unless asked") {
  const Corpus corpus;
  Multi30kSettings s = corpus.settings();
  CHECK(s.subwords == "bpe");
  CHECK(s.shared_vocabulary());
  const TranslationData joint = load_translation_data(s);
  CHECK(joint.source.has_subwords());
  CHECK(joint.source.size() <= 320);
  CHECK(joint.source.size() == joint.target.size());
  CHECK(joint.source.encode("a dog ein hund") == joint.target.encode("a dog ein hund"));
  CHECK(joint.facts().at("shared_vocabulary") == true);
  CHECK(joint.facts().at("tokens_a_sentence").at("train_source").at("mean") >= 6);
  for (size_t i = 0; i < joint.valid.size(); ++i)
    CHECK(joint.target.decode(joint.valid.target[i]) == joint.references[i]);

  s.vocabularies = "separate";
  const TranslationData apart = load_translation_data(s);
  // Each language has learnt its own words only.
  CHECK(apart.source.encode("ein").size() < apart.source.encode("near").size());
  CHECK(apart.target.encode("near").size() < apart.target.encode("ein").size());

  s.subwords = "word";
  s.vocabularies = "auto";
  CHECK_FALSE(s.shared_vocabulary());
  const TranslationData words = load_translation_data(s);
  CHECK(words.target.decode(words.target.encode("ein dog")) == "<unk> dog");
  s.vocabularies = "shared";
  const TranslationData shared = load_translation_data(s);
  CHECK(shared.target.decode(shared.target.encode("ein dog")) == "ein dog");
  CHECK(shared.source.size() == shared.target.size());
}

TEST_CASE("translation data: raw text comes back as written from subwords") {
  const Corpus corpus;
  Multi30kSettings s = corpus.settings();
  s.text = "raw";
  s.vocabulary_size = 300;
  const TranslationData d = load_translation_data(s);
  CHECK(d.target.decode(d.valid.target[0]) == "A dog (a cat)!");
  CHECK(d.source.decode(d.valid.source[0]) == "Ein  Hund.");
  s.vocabulary_size = 100;
  CHECK(contains(error_of([&] { load_translation_data(s); }), "at least 2"));
}

TEST_CASE("translation data: codecs lie beside the checkpoint and come back") {
  const Corpus corpus;
  for (const std::string subwords : {"bpe", "word"}) {
    for (const std::string vocabularies : {"shared", "separate"}) {
      CAPTURE(subwords);
      CAPTURE(vocabularies);
      const testing::TemporaryFolder folder;
      Multi30kSettings s = corpus.settings();
      s.subwords = subwords;
      s.vocabularies = vocabularies;
      const TranslationData d = load_translation_data(s);
      save_codecs(s, d.codecs(), folder.path());
      CHECK(folder.entries() == (vocabularies == "shared" ? 1 : 2));
      const TextCodecs back = load_codecs(s, folder.path());
      for (const char* line : {"a dog near the tree .", "ein hund , unbekannt"}) {
        CHECK(back.source.encode(line) == d.source.encode(line));
        CHECK(back.target.encode(line) == d.target.encode(line));
      }
      // A run that goes on reads them instead of learning again.
      const Corpus other;
      other.put("tok", "train", {"anders ."}, {"different ."});
      Multi30kSettings moved = s;
      moved.data = other.path();
      const TranslationData again = load_translation_data(moved, folder.path());
      CHECK(again.valid.target == d.valid.target);
    }
  }
  const testing::TemporaryFolder empty;
  CHECK(
      contains(error_of([&] { load_codecs(corpus.settings(), empty.path()); }), "subwords.model"));
}

TEST_CASE("translation data: test splits, in both directions") {
  const Corpus corpus;
  Multi30kSettings s = corpus.settings();
  const TextCodecs codecs = load_translation_data(s).codecs();
  const TranslationSplit test = load_split(s, codecs, "test_2016_flickr");
  CHECK(test.text.source == Lines{"ein fisch ."});
  CHECK(test.pairs.source[0] == codecs.source.encode("ein fisch ."));
  CHECK(test.pairs.size() == 1);
  std::swap(s.source, s.target);
  CHECK(load_split(s, codecs, "test_2016_flickr").text.target == Lines{"ein fisch ."});
  CHECK(load_translation_data(s).references.front() == "ein hund vor dem baum .");
  CHECK(contains(error_of([&] { load_split(s, codecs, "test_2017_mscoco"); }),
                 "test_2017_mscoco.lc.norm.tok.en: no such file"));
  s.toy = true;
  CHECK(
      contains(error_of([&] { load_split(s, codecs, "test_2016_flickr"); }), "--toy has no split"));
}

TEST_CASE("translation data: pairs with an empty side are not trained on, but translated") {
  const Corpus corpus;
  corpus.put("tok", "train", {"ein hund .", "", " \xC2\xA0", "ein wolf .", "ein vogel ."},
             {"a dog .", "a cat .", "a bird .", "", "a bird ."});
  corpus.put("tok", "val", {"ein hund .", ""}, {"a dog .", "a cat ."});
  Multi30kSettings s = corpus.settings();
  s.vocabulary_size = 290;
  const TranslationData d = load_translation_data(s);
  CHECK(d.train.size() == 2);
  CHECK(d.target.decode(d.train.target[1]) == "a bird .");
  CHECK(d.facts().at("train_pairs_dropped") == 3);
  CHECK(d.valid.size() == 2);
  CHECK(d.references.size() == 2);
  CHECK(d.valid.source[1].empty());
  CHECK(d.facts().at("valid_pairs_empty") == 1);
  // zlib.crc32 of the whole file, dropped lines included: b"a dog .\na cat .\na bird .\n\na bird
  // .\n".
  CHECK(d.facts().at("crc32").at("train_target") == "e809cb04");

  // A batch of an empty source alone is validated like any other; its translation is an empty line.
  s.layers = 1;
  s.d_model = 16;
  s.heads = 2;
  s.ffn = 16;
  s.warmup = 1;
  s.share_embeddings = true;
  Trainer trainer(s, d);
  CHECK_FALSE(trainer.model().target_embedding);
  CHECK_FALSE(trainer.model().output);
  trainer.train_epoch(1, [](const nn::StepReport&) { return true; });
  const auto batches = ordered_batches(d.valid, 1);
  CHECK(std::isfinite(*validation_loss(trainer.model(), batches, s.device())));
  const auto lines =
      translate(trainer.model(), d.codecs(), d.valid_source, s.batch_tokens, s.device());
  REQUIRE(lines->size() == 2);
  CHECK(lines->back().empty());

  corpus.put("tok", "train", {"", "ein"}, {"a", ""});
  CHECK(contains(error_of([&] { load_translation_data(s); }), "every pair has an empty side"));
}

TEST_CASE("translation data: a run translates lines without words as multi30k translate does") {
  const Corpus corpus;
  const Lines source{
      "ein hund vor dem baum .", "", "ein wolf .", "   ", " \xC2\xA0", "ein vogel ."};
  const Lines target{"a dog near the tree .", "", "a cat .", "", "", "a bird ."};
  corpus.put("tok", "val", source, target);
  corpus.put("tok", "test_2016_flickr", source, target);
  for (const std::string subwords : {"bpe", "word"}) {
    CAPTURE(subwords);
    const testing::TemporaryFolder folder;
    Multi30kSettings s = corpus.settings();
    s.subwords = subwords;
    s.layers = 1;
    s.d_model = 16;
    s.heads = 2;
    s.ffn = 16;
    s.dropout = 0.0;
    s.lr = 1e-2;
    s.warmup = 1;
    s.epochs = 3;
    s.test = {"test_2016_flickr"};
    s.common.threads = 1;
    s.common.out = folder / "run";
    // After epochs greedily; at the end as --beam says.
    for (const int64_t beam : {1, 4}) {
      CAPTURE(beam);
      s.beam = beam;
      std::filesystem::remove_all(s.common.out);
      REQUIRE(run_multi30k(s) == 0);
      Translator translator(folder / "run/best.safetensors", kCpu);
      const Lines translated = translator.translate(source, {beam, s.length_penalty});
      for (const size_t blank : {1, 3, 4}) CHECK(translated[blank].empty());
      for (const size_t words : {0, 2, 5}) CHECK_FALSE(translated[words].empty());
      const Json scores = read_json(folder / "run/results.json").at("scores");
      for (const std::string split : {"val", "test_2016_flickr"}) {
        CHECK(read_lines(folder / ("run/translations-" + split + ".txt")) == translated);
        CHECK(scores.at(split).at("bleu").get<double>() ==
              corpus_bleu(translated, {target}, s.bleu()).score);
      }
      Translator last(folder / "run/checkpoint.safetensors", kCpu);
      CHECK(read_lines(folder / "run/translations.txt") == last.translate(source, {}));
      CHECK(read_csv(folder / "run/metrics.csv").numbers("valid_bleu").back() ==
            corpus_bleu(last.translate(source, {}), {target}, s.bleu()).score);
    }
  }
}

TEST_CASE("translation data: options of subwords and vocabularies") {
  CHECK(parse_error("--subwords bpe --vocabulary-size 8000 --share-embeddings") == "");
  CHECK(parse_error("--subwords word --min-frequency 3 --vocabularies shared "
                    "--share-embeddings") == "");
  CHECK(parse_error("--subwords bpe --vocabularies separate") == "");
  CHECK(contains(parse_error("--min-frequency 3"), "add --subwords word"));
  CHECK(contains(parse_error("--subwords word --vocabulary-size 100"), "add --subwords bpe"));
  CHECK(contains(parse_error("--subwords word --share-embeddings"), "--vocabularies shared"));
  CHECK(
      contains(parse_error("--vocabularies separate --share-embeddings"), "--vocabularies shared"));
  CHECK(contains(parse_error("--subwords letters"), "--subwords"));
}

TEST_CASE("translation data: settings from a file have the command line's bounds") {
  const Json valid = to_json(Multi30kSettings{});
  const auto refusal = [&](const char* name, const Json& value) {
    Json json = valid;
    json[name] = value;
    return error_of([&] { check_settings(settings_from_json(json)); });
  };
  CHECK(refusal("heads", 8) == "");
  CHECK(contains(refusal("heads", 0), "--heads"));
  CHECK(contains(refusal("layers", -1), "--layers"));
  CHECK(contains(refusal("d_model", int64_t{1} << 50), "--d-model"));
  CHECK(contains(refusal("heads", 1.5), "heads is 1.5, not a whole"));
  CHECK(contains(refusal("heads", 1e300), "heads"));
  CHECK(contains(refusal("lr", nullptr), "number"));
  CHECK(contains(refusal("dropout", 1.0), "dropout"));
  CHECK(contains(refusal("label_smoothing", -0.5), "--label-smoothing"));
  CHECK(contains(refusal("subwords", "letters"), "bpe"));
  CHECK(contains(refusal("vocabularies", "both"), "separate"));
  CHECK(contains(refusal("text", "html"), "raw"));
}

}  // namespace
}  // namespace macgrad::experiments
