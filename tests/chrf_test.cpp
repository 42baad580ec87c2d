// chrF and chrF++ against figures of sacreBLEU (fixtures/chrf.json, made by fixtures/make_chrf.py)
// to 1e-9, and lower case against Python's.
#include <doctest/doctest.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "macgrad/core/error.h"
#include "macgrad/experiments/common/chrf.h"
#include "macgrad/experiments/common/lower_case.h"
#include "macgrad/experiments/common/output_files.h"

namespace macgrad::experiments {
namespace {

TEST_CASE("corpus and sentence chrF and chrF++ equal sacreBLEU's") {
  const Json fixture = read_json(MACGRAD_FIXTURES "/chrf.json");
  CHECK(fixture["cases"].size() > 30);
  for (const Json& example : fixture["cases"]) {
    const auto hypotheses = example["hypotheses"].get<std::vector<std::string>>();
    const auto references = example["references"].get<std::vector<std::vector<std::string>>>();
    CHECK(example["figures"].size() == 6);
    for (const Json& figures : example["figures"]) {
      ChrfOptions options;
      options.word_order = figures["word_order"];
      options.lowercase = figures["lowercase"];
      CAPTURE(example["name"].get<std::string>());
      CAPTURE(options.word_order);
      CAPTURE(options.lowercase);
      const double score = corpus_chrf(hypotheses, references, options);
      CHECK(std::abs(score - figures["score"].get<double>()) <= 1e-9);
      for (std::size_t i = 0; i < figures["sentences"].size(); ++i) {
        CAPTURE(i);
        std::vector<std::string> own;
        for (const auto& stream : references) own.push_back(stream[i]);
        const double got = chrf_of(count_chrf(hypotheses[i], own, options));
        CHECK(std::abs(got - figures["sentences"][i].get<double>()) <= 1e-9);
      }
      CHECK(chrf_signature(references.size(), options) ==
            "macgrad-chrf|" + figures["signature"].get<std::string>() + "|compat:sacrebleu-2.x");
    }
  }
}

TEST_CASE("chrF refuses references that do not fit") {
  CHECK_THROWS_WITH_AS(corpus_chrf({"a"}, {}), "chrf: no references", Error);
  CHECK_THROWS_WITH_AS(corpus_chrf({"a", "b"}, {{"a"}}),
                       "chrf: 2 hypotheses, but 1 sentences in reference 1", Error);
  CHECK_THROWS_WITH_AS(count_chrf("a", {}), "chrf: no references", Error);
  CHECK_THROWS_WITH_AS(count_chrf("a", {"a"}, {.word_order = 3}),
                       "chrf: word order 3 is not 0, 1 or 2", Error);
  CHECK(corpus_chrf({}, {{}}) == 0);
}

TEST_CASE("lower case of every kind of letter") {
  CHECK(lower_case("AbZ 1-2 @[`{") == "abz 1-2 @[`{");
  CHECK(lower_case("ÄÖÜẞ ß ÉŁŽ") == "äöüß ß éłž");
  CHECK(lower_case("ŸĀāĂ ǅ Ⱥ") == "ÿāāă ǆ ⱥ");
  CHECK(lower_case("ЖЯ Ω K 𐐀 Ａ") == "жя ω k 𐐨 ａ");
  CHECK(lower_case("İ") == "i\xCC\x87");
  // A sigma is final after a letter, and before none; an apostrophe is no end of the word.
  CHECK(lower_case("ΟΣ ΣΑΣ Σ ΑΣ'Α ΑΣ' 1Σ") == "ος σας σ ασ'α ας' 1σ");
  CHECK(lower_case("A\xFFZ\xC3") == "a\xFFz\xC3");
}

}  // namespace
}  // namespace macgrad::experiments
