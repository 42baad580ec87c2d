// Every metric counts sentence by sentence and scores sums of counts, so that the corpus, one
// sentence and a resample are the same code.
#include "macgrad/experiments/multi30k/score.h"

#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>

#include "macgrad/core/error.h"
#include "macgrad/experiments/common/arguments.h"
#include "macgrad/experiments/common/bleu.h"
#include "macgrad/experiments/common/chrf.h"
#include "macgrad/experiments/common/confidence.h"
#include "macgrad/experiments/common/progress.h"
#include "macgrad/experiments/common/text_files.h"
#include "macgrad/experiments/multi30k/commands.h"

namespace macgrad::experiments {
namespace {

using Lines = std::vector<std::string>;

// One metric of one system.
struct Counted {
  std::string name;
  double score = 0;
  Json parts = Json::object();
  std::string details;
  std::vector<double> sentences;
  ResampledScore resampled;
};

template <class Counts, class Count>
std::shared_ptr<std::vector<Counts>> count_all(const Lines& hypotheses,
                                               const std::vector<Lines>& references, Count count) {
  auto all = std::make_shared<std::vector<Counts>>();
  for (size_t i = 0; i < hypotheses.size(); ++i) {
    Lines own;
    for (const Lines& stream : references) own.push_back(stream[i]);
    all->push_back(count(hypotheses[i], own));
  }
  return all;
}

template <class Counts>
Counts sum(const std::vector<Counts>& all) {
  Counts total;
  for (const Counts& counts : all) total += counts;
  return total;
}

template <class Counts, class Score>
ResampledScore resampler(std::shared_ptr<std::vector<Counts>> all, Score score) {
  return [all, score](std::span<const size_t> drawn) {
    Counts total;
    for (const size_t i : drawn) total += (*all)[i];
    return score(total);
  };
}

Counted bleu(const Lines& hypotheses, const std::vector<Lines>& references,
             const BleuOptions& options) {
  const auto all = count_all<BleuCounts>(
      hypotheses, references,
      [&](const std::string& h, const Lines& r) { return count_bleu(h, r, options); });
  const Bleu total = bleu_of(sum(*all), options.smoothing);
  Counted counted;
  counted.name = "BLEU";
  counted.score = total.score;
  counted.parts = {{"precisions", total.precisions},
                   {"brevity_penalty", total.brevity_penalty},
                   {"hypothesis_length", total.hypothesis_length},
                   {"reference_length", total.reference_length}};
  const std::string text = format_bleu(total);
  counted.details = text.substr(text.find(' '));
  for (const BleuCounts& counts : *all)
    counted.sentences.push_back(bleu_of(counts, options.smoothing, true).score);
  counted.resampled = resampler(all, [smoothing = options.smoothing](const BleuCounts& counts) {
    return bleu_of(counts, smoothing).score;
  });
  return counted;
}

Counted chrf(const Lines& hypotheses, const std::vector<Lines>& references,
             const ChrfOptions& options) {
  const auto all = count_all<ChrfCounts>(
      hypotheses, references,
      [&](const std::string& h, const Lines& r) { return count_chrf(h, r, options); });
  Counted counted;
  counted.name = options.word_order == 0 ? "chrF2" : "chrF2++";
  counted.score = chrf_of(sum(*all));
  for (const ChrfCounts& counts : *all) counted.sentences.push_back(chrf_of(counts));
  counted.resampled = resampler(all, chrf_of);
  return counted;
}

// Lines of a file that is to stand beside `other` (path and lines), if that is given.
Lines read_beside(const std::string& path, const std::string& other, size_t lines) {
  Lines read = read_lines(path);
  require(!read.empty(), "{}: line 1: the file is empty", path);
  require(other.empty() || read.size() == lines,
          "unequal line counts: {} has {} lines, {} has {}; line {} of {} has no counterpart",
          other, lines, path, read.size(), std::min(lines, read.size()) + 1,
          lines > read.size() ? other : path);
  return read;
}

// bs and seed stand where sacreBLEU puts them: after the number of references.
std::string with_bootstrap(std::string signature, const ScoreSettings& s) {
  if (s.resamples == 0) return signature;
  const size_t end = signature.find('|', signature.find("nrefs:"));
  return signature.insert(end, fmt::format("|bs:{}|seed:{}", s.resamples, s.seed));
}

Json to_json(const Counted& counted, const std::vector<double>& resampled) {
  Json json{{"name", counted.name}, {"score", counted.score}};
  json.update(counted.parts);
  if (!resampled.empty()) {
    const Confidence confidence = confidence_of(resampled);
    json["mean"] = confidence.mean;
    json["half_width"] = confidence.half_width;
  }
  json["details"] = counted.details;
  return json;
}

std::string score_line(const std::string& prefix, const Json& score) {
  std::string line = fmt::format("{} = {:.2f}", prefix, score["score"].get<double>());
  if (score.contains("mean"))
    line += fmt::format(" (μ = {:.2f} ± {:.2f})", score["mean"].get<double>(),
                        score["half_width"].get<double>());
  return line + score["details"].get<std::string>() + "\n";
}

}  // namespace

Json score_files(const ScoreSettings& s) {
  require(!s.references.empty(), "--references: no file given");
  require(s.baseline.empty() || s.resamples > 0,
          "--baseline is compared by resampling; add --confidence");
  const Lines hypotheses = read_beside(s.hypotheses, "", 0);
  std::vector<Lines> references;
  for (const std::string& path : s.references)
    references.push_back(read_beside(path, s.hypotheses, hypotheses.size()));
  Lines baseline;
  if (!s.baseline.empty()) baseline = read_beside(s.baseline, s.hypotheses, hypotheses.size());

  Json json{{"hypotheses", s.hypotheses}, {"references", s.references}};
  if (!s.baseline.empty()) json["baseline"] = s.baseline;
  json["lines"] = hypotheses.size();
  for (const std::string& metric : s.metrics) {
    BleuOptions bleu_options;
    bleu_options.tokenizer = s.tokenize == "none" ? BleuTokenizer::none : BleuTokenizer::mteval13a;
    bleu_options.lowercase = s.lowercase;
    const ChrfOptions chrf_options{metric == "chrf++" ? 2 : 0, s.lowercase};
    const auto count = [&](const Lines& lines) {
      return metric == "bleu" ? bleu(lines, references, bleu_options)
                              : chrf(lines, references, chrf_options);
    };
    const auto resample = [&](const Counted& counted) {
      if (s.resamples == 0) return std::vector<double>();
      return bootstrap_scores(hypotheses.size(), counted.resampled, s.resamples, s.seed);
    };
    const Counted own = count(hypotheses);
    const std::vector<double> resampled = resample(own);
    Json entry = to_json(own, resampled);
    entry["signature"] =
        with_bootstrap(metric == "bleu" ? bleu_signature(references.size(), bleu_options)
                                        : chrf_signature(references.size(), chrf_options),
                       s);
    if (!baseline.empty()) {
      const Counted other = count(baseline);
      const std::vector<double> other_resampled = resample(other);
      entry["baseline"] = to_json(other, other_resampled);
      entry["difference"] = own.score - other.score;
      entry["p_value"] = paired_p_value(resampled, other_resampled, own.score - other.score);
    }
    if (s.sentences) entry["sentences"] = own.sentences;
    json["scores"].push_back(std::move(entry));
  }
  return json;
}

std::string score_text(const Json& json) {
  std::string text;
  const Json& scores = json["scores"];
  for (const Json& score : scores) {
    text += score_line(score["signature"].get<std::string>(), score);
    if (!score.contains("baseline")) continue;
    text += score_line("  baseline", score["baseline"]);
    text += fmt::format("  difference {:+.2f}, p = {:.4f}\n", score["difference"].get<double>(),
                        score["p_value"].get<double>());
  }
  if (scores.empty() || !scores[0].contains("sentences")) return text;
  text += "line";
  for (const Json& score : scores) text += "\t" + score["name"].get<std::string>();
  for (size_t i = 0; i < scores[0]["sentences"].size(); ++i) {
    text += fmt::format("\n{}", i + 1);
    for (const Json& score : scores)
      text += fmt::format("\t{:.2f}", score["sentences"][i].get<double>());
  }
  return text + "\n";
}

int score_command(int argc, const char* const* argv) {
  ScoreSettings s;
  bool json = false;
  bool confidence = false;
  return run_program(
      argc, argv, "multi30k score", "Scores translations as sacreBLEU does.",
      [&](Options& options) {
        options.text("--hypotheses", s.hypotheses, "Translations, one per line (also .gz)", "FILE");
        options.require("--hypotheses");
        options.paths("--references", s.references,
                      "Reference translations; several files count as alternatives", "FILE");
        options.require("--references");
        options.choice("--tokenize", s.tokenize, {"13a", "none"},
                       "Of BLEU: 13a for text as written, none for tokenised text");
        options.flag("--lowercase", s.lowercase, "Compare in lower case");
        options.words("--metrics", s.metrics, "Of bleu, chrf, chrf++", {"bleu", "chrf", "chrf++"});
        options.flag("--confidence", confidence, "95 % intervals from 1,000 resamples");
        options.text("--baseline", s.baseline,
                     "Another system's translations, for a paired test (with --confidence)",
                     "FILE");
        options.number("--seed", s.seed, "Of the resamples");
        options.flag("--sentences", s.sentences, "Also the scores of every sentence");
        options.flag("--json", json, "All figures as JSON");
        options.check([&] {
          if (!confidence && options.given("--seed"))
            throw UsageError("--seed has no effect without --confidence");
          if (options.given("--tokenize") &&
              std::find(s.metrics.begin(), s.metrics.end(), "bleu") == s.metrics.end())
            throw UsageError("--tokenize has no effect without bleu in --metrics");
        });
      },
      [&] {
        s.resamples = confidence ? 1000 : 0;
        Json scores = score_files(s);
        if (json) {
          for (Json& score : scores["scores"]) {
            score.erase("details");
            if (score.contains("baseline")) score["baseline"].erase("details");
          }
        }
        say("{}", json ? scores.dump(2) + "\n" : score_text(scores));
        return 0;
      });
}

}  // namespace macgrad::experiments
