// The two evaluations, which return nothing when the run is stopped between
// batches. The validation loss averages over the evaluation draws of RMFA.
#include "macgrad/experiments/multi30k/evaluation.h"

#include <algorithm>

#include "macgrad/experiments/common/unicode.h"
#include "macgrad/nn/loss.h"

namespace macgrad::experiments {
namespace {

// Words a translation of each source may have.
std::vector<int64_t> length_limits(const PaddedIds& source) {
  std::vector<int64_t> limits;
  for (int64_t row = 0; row < source.rows; ++row) {
    const auto start = source.ids.begin() + row * source.width;
    const int64_t length = source.width - std::count(start, start + source.width, Vocabulary::kPad);
    limits.push_back(length + length / 2 + 10);
  }
  return limits;
}

}  // namespace

std::optional<double> validation_loss(nn::Transformer& model, const std::vector<Batch>& batches,
                                      Device device, const Stop& stop, bool own_statistics) {
  const NoGrad no_grad;
  const nn::EvalScope evaluation(model);
  std::optional<nn::OwnStatisticsScope> own;
  if (own_statistics) own.emplace(model);
  const int draws = model.eval_draws();
  double sum = 0.0;
  int64_t tokens = 0;
  for (const Batch& batch : batches) {
    if (stop && stop()) return std::nullopt;
    const BatchTensors b = to_tensors(batch, device);
    // The loss is linear in log-probabilities: their average has the average of the losses.
    for (int e = 0; e < draws; ++e) {
      model.use_eval_draw(e);
      const Variable logits =
          model.forward(b.source, b.source_valid, b.input, b.input_valid, b.places);
      sum += nn::token_loss(logits, b.output, Vocabulary::kPad).sum.item() / draws;
    }
    tokens += batch.target_tokens;
  }
  return sum / static_cast<double>(std::max<int64_t>(1, tokens));
}

std::optional<std::vector<std::string>> translate(nn::Transformer& model, const TextCodecs& codecs,
                                                  const std::vector<std::string>& lines,
                                                  int64_t batch_tokens, Device device,
                                                  const nn::SearchSettings& search,
                                                  const Stop& stop) {
  EncodedPairs pairs;           // without targets
  std::vector<size_t> numbers;  // of their lines
  for (size_t i = 0; i < lines.size(); ++i) {
    if (split_words(lines[i]).empty()) continue;
    std::vector<int64_t> ids = codecs.source.encode(lines[i]);
    if (ids.empty()) continue;
    pairs.source.push_back(std::move(ids));
    pairs.target.emplace_back();
    numbers.push_back(i);
  }
  const nn::SpecialTokens special{
      Vocabulary::kBos, Vocabulary::kEos, {Vocabulary::kPad, Vocabulary::kBos}};
  std::vector<std::string> translations(lines.size());
  for (const Batch& batch : ordered_batches(pairs, batch_tokens)) {
    if (stop && stop()) return std::nullopt;
    const auto found =
        nn::beam_search(model, ids_of(batch.source, device), valid_of(batch.source, device),
                        length_limits(batch.source), special, search);
    for (size_t row = 0; row < found.size(); ++row)
      translations[numbers[batch.indices[row]]] = codecs.target.decode(found[row].front().tokens);
  }
  return translations;
}

}  // namespace macgrad::experiments
