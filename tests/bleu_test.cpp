// BLEU against figures of sacreBLEU (fixtures/bleu.json, made by fixtures/make_bleu.py) to 1e-9.
#include <doctest/doctest.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "macgrad/core/error.h"
#include "macgrad/experiments/common/bleu.h"
#include "macgrad/experiments/common/output_files.h"

namespace macgrad::experiments {
namespace {

const Json& fixture() {
  static const Json json = read_json(MACGRAD_FIXTURES "/bleu.json");
  return json;
}

void check_same(const Bleu& got, const Json& expected) {
  const auto near = [](double a, double b) { return std::abs(a - b) <= 1e-9; };
  CHECK_MESSAGE(near(got.score, expected["score"]), got.score, " against ",
                expected["score"].get<double>());
  for (std::size_t n = 0; n < 4; ++n) {
    CHECK(near(got.precisions[n], expected["precisions"][n]));
    CHECK(got.matches[n] == expected["matches"][n]);
    CHECK(got.totals[n] == expected["totals"][n]);
  }
  CHECK(near(got.brevity_penalty, expected["brevity_penalty"]));
  CHECK(got.hypothesis_length == expected["hypothesis_length"]);
  CHECK(got.reference_length == expected["reference_length"]);
}

TEST_CASE("13a tokens equal sacreBLEU's") {
  CHECK(fixture()["tokens_13a"].size() > 100);
  for (const Json& pair : fixture()["tokens_13a"]) {
    CAPTURE(pair.dump());
    CHECK(tokenize_13a(pair[0].get<std::string>()) == pair[1].get<std::string>());
  }
}

TEST_CASE("corpus and sentence BLEU equal sacreBLEU's") {
  for (const Json& example : fixture()["cases"]) {
    const auto hypotheses = example["hypotheses"].get<std::vector<std::string>>();
    const auto references = example["references"].get<std::vector<std::vector<std::string>>>();
    CHECK(example["figures"].size() == 6);
    for (const Json& figures : example["figures"]) {
      BleuOptions options;
      options.tokenizer =
          figures["tokenizer"] == "none" ? BleuTokenizer::none : BleuTokenizer::mteval13a;
      options.smoothing =
          figures["smoothing"] == "none" ? BleuSmoothing::none : BleuSmoothing::exponential;
      options.lowercase = figures["case"] == "lc";
      CAPTURE(example["name"].get<std::string>());
      CAPTURE(figures["tokenizer"].get<std::string>());
      CAPTURE(figures["smoothing"].get<std::string>());
      CAPTURE(options.lowercase);
      check_same(corpus_bleu(hypotheses, references, options), figures["corpus"]);
      for (std::size_t i = 0; i < figures["sentences"].size(); ++i) {
        CAPTURE(i);
        std::vector<std::string> own;
        for (const auto& stream : references) own.push_back(stream[i]);
        check_same(sentence_bleu(hypotheses[i], own, options), figures["sentences"][i]);
      }
      const std::string signature = "macgrad-bleu|nrefs:" + figures["nrefs"].get<std::string>() +
                                    "|case:" + figures["case"].get<std::string>() +
                                    "|eff:no|tok:" + figures["tokenizer"].get<std::string>() +
                                    "|smooth:" + figures["smoothing"].get<std::string>() +
                                    "|compat:sacrebleu-2.x";
      CHECK(bleu_signature(references.size(), options) == signature);
    }
  }
}

TEST_CASE("BLEU refuses references that do not fit") {
  CHECK_THROWS_WITH_AS(corpus_bleu({"a"}, {}), "bleu: no references", Error);
  CHECK_THROWS_WITH_AS(corpus_bleu({"a", "b"}, {{"a"}}),
                       "bleu: 2 hypotheses, but 1 sentences in reference 1", Error);
  CHECK_THROWS_WITH_AS(sentence_bleu("a", {}), "bleu: no references", Error);
}

TEST_CASE("an empty corpus scores 0") {
  const Bleu bleu = corpus_bleu({}, {{}});
  CHECK(bleu.score == 0);
  CHECK(format_bleu(bleu) ==
        "0.00 0.0/0.0/0.0/0.0 (BP = 1.000 ratio = 0.000 hyp_len = 0 ref_len = 0)");
}

}  // namespace
}  // namespace macgrad::experiments
