// `multi30k score`: its lines and figures against those that sacreBLEU 2.6 prints for the same
// texts, intervals against its own, paired tests against what they are defined to be, errors that
// name file and line.
#include <doctest/doctest.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "macgrad/experiments/common/confidence.h"
#include "macgrad/experiments/common/output_files.h"
#include "macgrad/experiments/multi30k/score.h"
#include "macgrad/tests/errors.h"
#include "macgrad/tests/temporary_folder.h"

namespace macgrad::experiments {
namespace {

using Folder = testing::TemporaryFolder;

ScoreSettings example(const Folder& folder) {
  ScoreSettings s;
  s.hypotheses = folder.write(
      "h", "A dog runs in the park .\nTwo men are talking .\nHe said: \"1,000.50\"!\n");
  s.references = {
      folder.write("r1", "A dog is running in the park .\nTwo men talk .\nHe said \"1,000.50\".\n"),
      folder.write(
          "r2",
          "The dog runs through the park .\r\ntwo men are talking .\r\nhe says: 1,000.50!\r\n")};
  return s;
}

std::string joined(const std::vector<std::string>& lines) {
  std::string text;
  for (const std::string& line : lines) text += line + "\n";
  return text;
}

std::string error_of(const ScoreSettings& s) {
  return testing::error_of([&] { score_files(s); });
}

TEST_CASE("score: lines, figures and sentences are sacreBLEU's") {
  const Folder folder;
  ScoreSettings s = example(folder);
  s.metrics = {"bleu", "chrf", "chrf++"};
  CHECK(score_text(score_files(s)) ==
        "macgrad-bleu|nrefs:2|case:mixed|eff:no|tok:13a|smooth:exp|compat:sacrebleu-2.x = 49.01 "
        "100.0/75.0/38.5/20.0 (BP = 1.000 ratio = 1.056 hyp_len = 19 ref_len = 18)\n"
        "macgrad-chrf|nrefs:2|case:mixed|eff:yes|nc:6|nw:0|space:no|compat:sacrebleu-2.x = 70.23\n"
        "macgrad-chrf|nrefs:2|case:mixed|eff:yes|nc:6|nw:2|space:no|compat:sacrebleu-2.x = "
        "69.39\n");
  s.metrics = {"bleu"};
  s.tokenize = "none";
  s.lowercase = true;
  CHECK(score_text(score_files(s)) ==
        "macgrad-bleu|nrefs:2|case:lc|eff:no|tok:none|smooth:exp|compat:sacrebleu-2.x = 65.19 "
        "86.7/75.0/55.6/50.0 (BP = 1.000 ratio = 1.000 hyp_len = 15 ref_len = 15)\n");

  s = example(folder);
  s.sentences = true;
  const Json json = score_files(s);
  const std::vector<std::vector<double>> expected{
      {53.7284965911771, 75.98356856515926, 33.437015248821105},
      {51.3937649423006, 93.00541370394312, 73.10055582877688}};
  for (std::size_t m = 0; m < 2; ++m)
    for (std::size_t i = 0; i < 3; ++i)
      CHECK(std::abs(json["scores"][m]["sentences"][i].get<double>() - expected[m][i]) <= 1e-9);
  CHECK(score_text(json).ends_with(
      "line\tBLEU\tchrF2\n1\t53.73\t51.39\n2\t75.98\t93.01\n3\t33.44\t73.10\n"));
}

TEST_CASE("score: intervals agree with sacreBLEU's up to the draws") {
  const Json fixture = read_json(MACGRAD_FIXTURES "/bleu.json");
  std::vector<std::string> hypotheses;
  std::vector<std::vector<std::string>> references;
  for (const Json& example : fixture["cases"]) {
    if (example["name"] != "random") continue;
    example["hypotheses"].get_to(hypotheses);
    example["references"].get_to(references);
  }
  REQUIRE(hypotheses.size() == 150);
  const Folder folder;
  ScoreSettings s;
  s.hypotheses = folder.write("h", joined(hypotheses));
  s.references = {folder.write("r1", joined(references[0])),
                  folder.write("r2", joined(references[1]))};
  s.baseline = s.hypotheses;
  s.resamples = 1000;
  const Json json = score_files(s);
  // sacreBLEU's 1,000 resamples: 59.09 ± 2.57 and 57.03 ± 2.42. Means of 1,000 vary by ±0.04 (one
  // standard deviation), ends of the interval by about ±0.15.
  CHECK(std::abs(json["scores"][0]["mean"].get<double>() - 59.09) < 0.25);
  CHECK(std::abs(json["scores"][0]["half_width"].get<double>() - 2.57) < 0.4);
  CHECK(std::abs(json["scores"][1]["mean"].get<double>() - 57.03) < 0.25);
  CHECK(std::abs(json["scores"][1]["half_width"].get<double>() - 2.42) < 0.4);
  // A system against itself.
  CHECK(json["scores"][0]["difference"] == 0);
  CHECK(json["scores"][0]["p_value"] == 1);
  CHECK(json["scores"][0]["signature"].get<std::string>().starts_with(
      "macgrad-bleu|nrefs:2|bs:1000|seed:1|case:mixed"));
  CHECK(score_files(s) == json);
  s.seed = 2;
  CHECK(score_files(s)["scores"][0]["mean"] != json["scores"][0]["mean"]);
  s.baseline = s.references[0];
  const std::string text = score_text(score_files(s));
  CHECK(text.find("\n  baseline = 100.00 (μ = 100.00 ± 0.00) 100.0/100.0") != std::string::npos);
  CHECK(text.find("\n  difference -40.76, p = 0.0010\n") != std::string::npos);
}

TEST_CASE("score: a resample is the corpus of its sentences") {
  const auto mean = [](std::span<const std::size_t> drawn) {
    double sum = 0;
    for (const std::size_t i : drawn) sum += static_cast<double>(i);
    return sum / static_cast<double>(drawn.size());
  };
  // The mean of 400 uniform draws of 0 … 399: normal with standard deviation 115.5/20.
  const std::vector<double> scores = bootstrap_scores(400, mean, 4000, 3);
  const Confidence c = confidence_of(scores);
  CHECK(std::abs(c.mean - 199.5) < 0.4);
  CHECK(std::abs(c.half_width - 1.96 * 5.773) < 0.6);
  // 10 above the baseline of the same resamples: the spread of the difference is 0.
  std::vector<double> better = scores;
  for (double& score : better) score += 10;
  CHECK(paired_p_value(better, scores, 10) == 1.0 / 4001);
  // Unpaired resamples: a difference of one spread (√2·5.77) is no evidence, of four is.
  const std::vector<double> other = bootstrap_scores(400, mean, 4000, 4);
  CHECK(std::abs(paired_p_value(scores, other, 8.165) - 0.317) < 0.04);
  CHECK(paired_p_value(scores, other, 33) < 0.002);
  CHECK_THROWS_AS(bootstrap_scores(0, mean, 10, 1), Error);
  CHECK_THROWS_AS(paired_p_value(scores, {1.0}, 1), Error);
}

TEST_CASE("score: wrong files are named with the line") {
  const Folder folder;
  ScoreSettings s = example(folder);
  const std::string good = s.hypotheses;
  s.hypotheses = folder / "absent";
  CHECK(error_of(s).find("absent: cannot open") != std::string::npos);
  s.hypotheses = folder.write("short", "one\n");
  CHECK(error_of(s) == "unequal line counts: " + s.hypotheses + " has 1 lines, " + s.references[0] +
                           " has 3; line 2 of " + s.references[0] + " has no counterpart");
  s.hypotheses = folder.write("broken", "one\ntwo\nthr\xFF\n");
  CHECK(error_of(s).find("broken: line 3: byte 4 (0xFF) is not valid UTF-8") != std::string::npos);
  s.hypotheses = folder.write("empty", "");
  CHECK(error_of(s).find("empty: line 1: the file is empty") != std::string::npos);
  s.hypotheses = good;
  s.baseline = good;
  CHECK(error_of(s).find("--confidence") != std::string::npos);
  s.resamples = 10;
  s.baseline = folder / "short";
  CHECK(error_of(s).find("line 2 of " + good + " has no counterpart") != std::string::npos);
}

}  // namespace
}  // namespace macgrad::experiments
