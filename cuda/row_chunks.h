// How kernels that sum over rows cut them into chunks, a block each. Plain arithmetic, tested on
// the host.
#pragma once

#include <algorithm>
#include <cstdint>

namespace macgrad::cuda {

struct RowChunks {
  int64_t rows = 1;    // of a chunk
  int64_t chunks = 0;  // that cover all rows
};

/// A block has `in_hand` rows at once and goes round several times: at least four, so that its
/// partial result costs little beside its rows, unless that leaves multiprocessors idle; and as
/// often as it takes for `waves` blocks a multiprocessor, over all `groups` of rows, to be enough.
inline RowChunks row_chunks(int64_t rows, int64_t in_hand, int64_t groups, int multiprocessors,
                            int waves) {
  if (rows <= 0) return {};
  const auto rounds_for = [&](int64_t blocks) {  // when a group has so many
    const int64_t at_once = std::max<int64_t>(1, blocks / groups) * in_hand;
    return (rows + at_once - 1) / at_once;
  };
  const int64_t rounds = std::max(rounds_for(int64_t{multiprocessors} * waves),
                                  std::min<int64_t>(4, rounds_for(multiprocessors)));
  return {rounds * in_hand, (rows + rounds * in_hand - 1) / (rounds * in_hand)};
}

}  // namespace macgrad::cuda
