// Validation loss and translations of a model, in evaluation mode.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "macgrad/experiments/multi30k/data.h"
#include "macgrad/nn/decoding.h"

namespace macgrad::experiments {

/// Asked between batches; true ends the work early.
using Stop = std::function<bool()>;

/// Cross entropy a target token in nats, <eos> counted, without label smoothing; with several
/// evaluation draws that of the averaged log-probabilities. preSBN with batch statistics takes the
/// running ones, or with `own_statistics` those of each batch. Nothing when stopped.
std::optional<double> validation_loss(nn::Transformer& model, const std::vector<Batch>& batches,
                                      Device device, const Stop& stop = {},
                                      bool own_statistics = false);

/// Translations of lines as read, one per line: what a run's BLEU is measured on and what `multi30k
/// translate` prints. A line without words gives an empty one. Others end at <eos> or after 1.5·S +
/// 10 words, S the words of the source and <eos>; <pad> and <bos> never appear in one. Greedy
/// unless `search` says otherwise; batches hold at most `batch_tokens`. Nothing when stopped.
std::optional<std::vector<std::string>> translate(nn::Transformer& model, const TextCodecs& codecs,
                                                  const std::vector<std::string>& lines,
                                                  int64_t batch_tokens, Device device,
                                                  const nn::SearchSettings& search = {},
                                                  const Stop& stop = {});

}  // namespace macgrad::experiments
