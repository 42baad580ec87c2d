#include "macgrad/experiments/multi30k/split_scores.h"

#include <nlohmann/json.hpp>

#include "macgrad/experiments/common/bleu.h"
#include "macgrad/experiments/common/chrf.h"
#include "macgrad/experiments/common/progress.h"

namespace macgrad::experiments {

std::optional<SplitScore> score_translations(nn::Transformer& model, const TextCodecs& codecs,
                                             const std::vector<std::string>& source,
                                             const std::vector<std::string>& references,
                                             const Multi30kSettings& settings,
                                             const nn::SearchSettings& search, const Stop& stop) {
  auto lines =
      translate(model, codecs, source, settings.batch_tokens, settings.device(), search, stop);
  if (!lines) return std::nullopt;
  const double bleu = corpus_bleu(*lines, {references}, settings.bleu()).score;
  return SplitScore{std::move(*lines), bleu};
}

std::vector<std::pair<std::string, TranslationSplit>> load_tests(const Multi30kSettings& settings,
                                                                 const TranslationData& data) {
  std::vector<std::pair<std::string, TranslationSplit>> tests;
  for (const std::string& split : settings.test)
    tests.emplace_back(split, load_split(settings, data.codecs(), split));
  return tests;
}

std::optional<Json> final_scores(nn::Transformer& model, const TranslationData& data,
                                 const std::vector<std::pair<std::string, TranslationSplit>>& tests,
                                 const Multi30kSettings& settings, const RunDirectory& out,
                                 const Stop& stop) {
  Json scores = Json::object();
  // Written together with the scores: an interrupted scoring leaves those of before whole.
  std::vector<std::pair<std::string, std::vector<std::string>>> files;
  const auto score = [&](const std::string& split, const EncodedPairs& pairs,
                         const std::vector<std::string>& source,
                         const std::vector<std::string>& references, const Checksums& crc32) {
    const auto loss = validation_loss(model, ordered_batches(pairs, settings.batch_tokens),
                                      settings.device(), stop);
    if (!loss) return false;
    const auto scored = score_translations(model, data.codecs(), source, references, settings,
                                           {settings.beam, settings.length_penalty}, stop);
    if (!scored) return false;
    const std::string file = fmt::format("translations-{}.txt", split);
    files.emplace_back(file, scored->translations);
    const double chrf = corpus_chrf(scored->translations, {references}, {});
    say("{}: BLEU {:.2f}, chrF {:.2f}, loss {:.4f}\n", split, scored->bleu, chrf, *loss);
    std::fflush(stdout);
    scores[split] = {{"bleu", scored->bleu},
                     {"chrf", chrf},
                     {"loss", *loss},
                     {"sentences", pairs.size()},
                     {"signature", bleu_signature(1, settings.bleu())},
                     {"chrf_signature", chrf_signature(1, {})},
                     {"crc32", {{"source", crc32.source}, {"target", crc32.target}}},
                     {"translations", file}};
    return true;
  };
  if (!score("val", data.valid, data.valid_source, data.references, data.valid_crc32))
    return std::nullopt;
  for (const auto& [split, test] : tests)
    if (!score(split, test.pairs, test.text.source, test.text.target, test.crc32))
      return std::nullopt;
  for (const auto& [file, translations] : files) write_lines(out.file(file), translations);
  return scores;
}

}  // namespace macgrad::experiments
