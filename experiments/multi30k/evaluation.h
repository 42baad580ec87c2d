// Validation loss and translations of a model, in evaluation mode.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "experiments/common/batches.h"
#include "nn/decoding.h"

namespace macgrad::experiments {

/// Asked between batches; true ends the work early.
using Stop = std::function<bool()>;

/// Cross entropy a target token in nats, <eos> counted, without label smoothing; with several
/// evaluation draws that of the averaged log-probabilities. preSBN with batch statistics takes the
/// running ones, or with `own_statistics` those of each batch. Nothing when stopped.
std::optional<double> validation_loss(nn::Transformer& model, const std::vector<Batch>& batches,
                                      Device device, const Stop& stop = {},
                                      bool own_statistics = false);

/// Translations of `count` sentences, greedy unless `search` says otherwise; batches hold the
/// indices 0 … count-1. A translation ends at <eos> or after 1.5·S + 10 words, S the words of its
/// source and <eos>; <pad> and <bos> never stand in one. Nothing when stopped.
std::optional<std::vector<std::string>> translate(nn::Transformer& model, const TextCodec& target,
                                                  const std::vector<Batch>& batches, size_t count,
                                                  Device device, const Stop& stop = {},
                                                  const nn::SearchSettings& search = {});

/// The first `count` pairs (0: all).
EncodedPairs first_pairs(const EncodedPairs& pairs, int64_t count);

}  // namespace macgrad::experiments
