// Pairs are shuffled, stably sorted by length and cut greedily into batches whose rows times width
// stay within the token budget; the batches are then shuffled. One SplitMix64 of (seed, epoch)
// makes both shuffles.
#include "macgrad/experiments/common/batches.h"

#include <algorithm>
#include <numeric>

#include "macgrad/core/error.h"
#include "macgrad/experiments/common/shuffle.h"

namespace macgrad::experiments {
namespace {

// Both sides carry one special word more than their words.
std::int64_t padded_width(const EncodedPairs& pairs, std::size_t i) {
  return static_cast<std::int64_t>(std::max(pairs.source[i].size(), pairs.target[i].size())) + 1;
}

PaddedIds empty_block(std::size_t rows, std::int64_t width) {
  PaddedIds block;
  block.rows = static_cast<std::int64_t>(rows);
  block.width = width;
  block.ids.assign(rows * static_cast<std::size_t>(width), Vocabulary::kPad);
  return block;
}

Batch make_batch(const EncodedPairs& pairs, std::vector<std::size_t> indices) {
  std::size_t source_length = 0;
  std::size_t target_length = 0;
  for (std::size_t i : indices) {
    source_length = std::max(source_length, pairs.source[i].size() + 1);
    target_length = std::max(target_length, pairs.target[i].size() + 1);
  }
  Batch batch;
  batch.source = empty_block(indices.size(), static_cast<std::int64_t>(source_length));
  batch.target_input = empty_block(indices.size(), static_cast<std::int64_t>(target_length));
  batch.target_output = batch.target_input;
  for (std::size_t row = 0; row < indices.size(); ++row) {
    const auto& source = pairs.source[indices[row]];
    const auto& target = pairs.target[indices[row]];
    const auto start = [row](PaddedIds& block) {
      return block.ids.begin() + static_cast<std::int64_t>(row) * block.width;
    };
    *std::copy(source.begin(), source.end(), start(batch.source)) = Vocabulary::kEos;
    *start(batch.target_input) = Vocabulary::kBos;
    std::copy(target.begin(), target.end(), start(batch.target_input) + 1);
    *std::copy(target.begin(), target.end(), start(batch.target_output)) = Vocabulary::kEos;
    batch.target_tokens += static_cast<std::int64_t>(target.size()) + 1;
  }
  batch.indices = std::move(indices);
  return batch;
}

// Cuts `order`, sorted by rising length, greedily into batches within the budget.
std::vector<std::vector<std::size_t>> cut(const EncodedPairs& pairs,
                                          const std::vector<std::size_t>& order,
                                          std::int64_t tokens) {
  std::vector<std::vector<std::size_t>> plan;
  for (std::size_t i : order) {
    const std::int64_t width = padded_width(pairs, i);
    const bool fits =
        !plan.empty() && (static_cast<std::int64_t>(plan.back().size()) + 1) * width <= tokens;
    if (!fits) plan.emplace_back();
    plan.back().push_back(i);
  }
  return plan;
}

std::vector<std::size_t> numbered(const EncodedPairs& pairs, std::int64_t tokens) {
  require(tokens >= 1, "batches: {} tokens must be positive", tokens);
  if (pairs.source.size() != pairs.target.size()) {
    throw Error("batches: {} source sentences, {} target sentences", pairs.source.size(),
                pairs.target.size());
  }
  std::vector<std::size_t> order(pairs.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  return order;
}

// Stable, so that the order among pairs of equal lengths is kept: shuffled before, they meet other
// pairs every epoch. (Sorting by both lengths would pad a little less, but fix the company.)
void sort_by_length(const EncodedPairs& pairs, std::vector<std::size_t>& order) {
  const auto longest = [&](std::size_t i) {
    return std::max(pairs.source[i].size(), pairs.target[i].size());
  };
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return longest(a) < longest(b); });
}

std::vector<Batch> fill(const EncodedPairs& pairs, std::vector<std::vector<std::size_t>> plan) {
  std::vector<Batch> batches;
  batches.reserve(plan.size());
  for (auto& indices : plan) batches.push_back(make_batch(pairs, std::move(indices)));
  return batches;
}

}  // namespace

EncodedPairs encode_pairs(const ParallelText& text, const TextCodec& source,
                          const TextCodec& target) {
  EncodedPairs pairs;
  for (const std::string& line : text.source) pairs.source.push_back(source.encode(line));
  for (const std::string& line : text.target) pairs.target.push_back(target.encode(line));
  return pairs;
}

std::vector<Batch> shuffled_batches(const EncodedPairs& pairs, std::int64_t tokens,
                                    std::uint64_t seed, std::uint64_t epoch) {
  std::vector<std::size_t> order = numbered(pairs, tokens);
  SplitMix random(seed, epoch);
  shuffle(order, random);
  sort_by_length(pairs, order);
  std::vector<std::vector<std::size_t>> plan = cut(pairs, order, tokens);
  shuffle(plan, random);
  return fill(pairs, std::move(plan));
}

std::vector<Batch> ordered_batches(const EncodedPairs& pairs, std::int64_t tokens) {
  std::vector<std::size_t> order = numbered(pairs, tokens);
  sort_by_length(pairs, order);
  return fill(pairs, cut(pairs, order, tokens));
}

Tensor ids_of(const PaddedIds& block, Device device) {
  return Tensor::from_vector(block.ids, Shape{block.rows, block.width}, device);
}

Tensor valid_of(const PaddedIds& block, Device device) {
  std::vector<bool> valid;
  valid.reserve(block.ids.size());
  for (const int64_t id : block.ids) valid.push_back(id != Vocabulary::kPad);
  return Tensor::from_vector(valid, Shape{block.rows, block.width}, device);
}

BatchTensors to_tensors(const Batch& batch, Device device) {
  std::vector<int64_t> places, tokens;
  const auto& wanted = batch.target_output.ids;
  for (size_t i = 0; i < wanted.size(); ++i) {
    if (wanted[i] == Vocabulary::kPad) continue;
    places.push_back(static_cast<int64_t>(i));
    tokens.push_back(wanted[i]);
  }
  BatchTensors result{ids_of(batch.source, device),
                      valid_of(batch.source, device),
                      ids_of(batch.target_input, device),
                      valid_of(batch.target_input, device),
                      Tensor(),
                      Tensor(),
                      static_cast<int64_t>(tokens.size())};
  if (device.type == DeviceType::cpu) {
    const Shape shape{result.tokens};
    result.places = Tensor::from_vector(places, shape);
    result.output = Tensor::from_vector(tokens, shape);
  } else {
    result.output = ids_of(batch.target_output, device);
  }
  return result;
}

}  // namespace macgrad::experiments
