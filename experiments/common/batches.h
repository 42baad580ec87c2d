// Sentence pairs as padded batches. Pairs of like length share a batch, so that little of it is
// padding; which pairs, and the order of the batches, is a pure function of (seed, epoch). Last the
// batches as tensors.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "macgrad/core/tensor.h"
#include "macgrad/experiments/common/text_codec.h"
#include "macgrad/experiments/common/text_files.h"

namespace macgrad::experiments {

/// Token ids without <bos> and <eos>.
struct EncodedPairs {
  std::vector<std::vector<std::int64_t>> source;
  std::vector<std::vector<std::int64_t>> target;
  std::size_t size() const { return source.size(); }
};
EncodedPairs encode_pairs(const ParallelText& text, const TextCodec& source,
                          const TextCodec& target);

/// Row-major (rows, width), rows filled up with Vocabulary::kPad.
struct PaddedIds {
  std::vector<std::int64_t> ids;
  std::int64_t rows = 0;
  std::int64_t width = 0;
};

struct Batch {
  PaddedIds source;                  // (B, S): words, <eos>
  PaddedIds target_input;            // (B, T): <bos>, words: what the decoder reads
  PaddedIds target_output;           // (B, T): words, <eos>: what it must predict
  std::vector<std::size_t> indices;  // the pairs' numbers, one a row
  std::int64_t target_tokens = 0;    // without padding
};

/// Every pair exactly once; rows * max(S, T), padding included, is at most `tokens`, and a pair
/// that is longer is a batch of its own. Throws if `tokens` is not positive or the two sides differ
/// in size.
std::vector<Batch> shuffled_batches(const EncodedPairs& pairs, std::int64_t tokens,
                                    std::uint64_t seed, std::uint64_t epoch);

/// The same in a fixed order (by length, then by number), for validation and translation.
std::vector<Batch> ordered_batches(const EncodedPairs& pairs, std::int64_t tokens);

/// (rows, width), and true where a token stands.
Tensor ids_of(const PaddedIds& block, Device device);
Tensor valid_of(const PaddedIds& block, Device device);

/// A batch on a device. Masks are true at tokens.
struct BatchTensors {
  Tensor source, source_valid;  // (B, S)
  Tensor input, input_valid;    // (B, T), what the decoder reads
  Tensor places;                // (P), b*T + t of each token it must predict; undefined: all places
  Tensor output;                // (P), those tokens; without places (B, T) with padding
  int64_t tokens = 0;           // of output that are no padding

  // A batch of nn::TrainingStep.
  std::vector<Tensor*> tensors() {
    return {&source, &source_valid, &input, &input_valid, &places, &output};
  }
  int64_t count() const { return tokens; }
};
/// With places on the CPU, where padding then costs no logits; without on other devices, where
/// steps of one batch shape are recorded once.
BatchTensors to_tensors(const Batch& batch, Device device);

}  // namespace macgrad::experiments
