// How RMFA is cut on the card, decided on the host from shapes and options only: features into
// chunks, sequences into ranges with a state each, the scratch memory behind both.
//
// A chunk is at most 64 features that share a block's shared memory with all their projections
// (features of high degree have many). After the random features come those of the linear block,
// sqrt(linear)·x, 64 dimensions a chunk. A draw without features has one empty chunk. Shape
// letters: B batch, H heads, T queries, S keys, d head dimension, dv values, M features, P
// projections.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>

#include "core/kernels.h"
#include "cuda/runtime.h"

namespace macgrad::cuda::rmfa {

inline constexpr int kTile = 64;       // tokens of a tile, features of a chunk
inline constexpr int kMaxLevels = 64;  // kernel arguments hold the tables: 4 KiB in all
inline constexpr int kMaxChunks = 512;
inline constexpr int kMaxWidth = 128;  // of d and dv
inline constexpr int kWaves = 4;       // blocks wanted a multiprocessor

/// Projections of a chunk: what a tile of tokens keeps in shared memory. A causal block holds more
/// tiles at once.
constexpr int most_columns(bool causal) {
  return causal ? 128 : 192;
}

/// The feature map without its arrays.
struct Map {
  int d = 0, dv = 0;
  int64_t P = 0;
  float constant = 0, root = 0;  // weight of degree 0; sqrt(linear)
  int levels = 0, random_chunks = 0, chunks = 0;
  int level[kMaxLevels] = {};
  int first[kMaxLevels] = {};  // column of Ω where a level begins
  int chunk_first[kMaxChunks + 1] = {};

  /// Features of level l among [begin, end).
  MACGRAD_HD int count(int l, int begin, int end) const {
    const int last = level[l] < end ? level[l] : end;
    return last > begin ? last - begin : 0;
  }
  /// Floats of a row of a state: dv values, the column of u, rounded up to 16 bytes.
  MACGRAD_HD int row() const { return (dv + 1 + 3) / 4 * 4; }
  /// Rows: those of the chunks, then the sums of the values and of u themselves.
  MACGRAD_HD int64_t state_size() const { return (int64_t{chunks} * kTile + 1) * row(); }
};

/// Chunks of the random features, or -1 when the table is too short for them.
inline int cut_features(Map& map, int features, int most) {
  int chunks = 0, begin = 0;
  do {
    if (chunks == kMaxChunks) return -1;
    int end = std::min(features, begin + kTile);
    const auto columns = [&] {
      int sum = 0;
      for (int l = 0; l < map.levels; ++l) sum += map.count(l, begin, end);
      return sum;
    };
    while (columns() > most) --end;
    map.chunk_first[chunks++] = begin;
    map.chunk_first[chunks] = begin = end;
  } while (begin < features);
  return chunks;
}

/// The reason why a draw of these levels is refused, or "".
inline std::string refusal(const RmfaArgs& args, int64_t d, int64_t dv) {
  if (d > kMaxWidth || dv > kMaxWidth) {
    return "the CUDA kernel takes head dimensions up to 128, not " +
           std::to_string(std::max(d, dv));
  }
  if (args.levels.size() > kMaxLevels) {
    return "the CUDA kernel takes degrees up to 64, not " + std::to_string(args.levels.size());
  }
  int64_t projections = 0;
  for (int64_t l : args.levels) projections += l;
  // A chunk that is not the last has at least 64 projections: 64 features, or no room for 64 more.
  constexpr int64_t most = int64_t{kMaxChunks - 1} * kTile;
  if (projections > most) {
    return "the CUDA kernel takes up to " + std::to_string(most) + " projections, not " +
           std::to_string(projections);
  }
  return "";
}

inline Map make_map(const RmfaArgs& args, int64_t d, int64_t dv) {
  Map map;
  map.d = static_cast<int>(d);
  map.dv = static_cast<int>(dv);
  map.constant = static_cast<float>(args.constant);
  map.root = static_cast<float>(std::sqrt(args.linear));
  map.levels = static_cast<int>(args.levels.size());
  for (int l = 0; l < map.levels; ++l) {
    map.level[l] = static_cast<int>(args.levels[static_cast<size_t>(l)]);
    map.first[l] = static_cast<int>(map.P);
    map.P += map.level[l];
  }
  const int features = map.levels > 0 ? map.level[0] : 0;
  map.random_chunks = cut_features(map, features, most_columns(args.causal));
  require(map.random_chunks > 0, "[rmfa] {} features need more than {} chunks", features,
          kMaxChunks);
  map.chunks = map.random_chunks;
  if (args.linear > 0) {
    if (features == 0) map.random_chunks = map.chunks = 0;
    map.chunks += (map.d + kTile - 1) / kTile;
  }
  if (map.chunks == 0) map.random_chunks = map.chunks = 1;
  return map;
}

/// Runs of tokens with a state each: `splits` equal parts of [0, split_end), then pieces of
/// `length` from `offset` on, both within [0, tokens).
struct Ranges {
  int splits = 1;
  int64_t split_length = 0, split_end = 0;
  int pieces = 0;
  int64_t length = 0, offset = 0, tokens = 0;

  MACGRAD_HD int count() const { return splits + pieces; }
  MACGRAD_HD int64_t clamp(int64_t t) const { return t < 0 ? 0 : t > tokens ? tokens : t; }
  MACGRAD_HD void get(int i, int64_t& begin, int64_t& end) const {
    if (i < splits) {
      begin = i * split_length;
      end = begin + split_length < split_end ? begin + split_length : split_end;
      if (begin > end) begin = end;
    } else {
      begin = clamp(offset + (i - splits) * length);
      end = clamp(offset + (i - splits + 1) * length);
    }
  }
};

inline int64_t tiles_of(int64_t tokens) {
  return (tokens + kTile - 1) / kTile;
}
/// Parts of a sequence: enough blocks for the card, and states no larger than the operands.
inline int64_t parts_of(int64_t tokens, int64_t blocks_a_part, int chunks) {
  const int64_t wanted = (int64_t{card().multiprocessors} * kWaves + blocks_a_part - 1) /
                         std::max<int64_t>(1, blocks_a_part);
  return std::clamp<int64_t>(std::min(wanted, (tiles_of(tokens) + chunks - 1) / chunks), 1, 4096);
}
/// Tokens of each of `parts` parts, whole tiles.
inline int64_t length_of(int64_t tokens, int64_t parts) {
  return std::max<int64_t>(1, (tiles_of(tokens) + parts - 1) / parts) * kTile;
}

inline void split(Ranges& ranges, int64_t tokens, int64_t blocks_a_part, int chunks) {
  ranges.split_end = tokens;
  ranges.split_length = length_of(tokens, parts_of(tokens, blocks_a_part, chunks));
  ranges.splits = static_cast<int>(
      std::max<int64_t>(1, (tokens + ranges.split_length - 1) / ranges.split_length));
}

/// The cut of both sides. Full: a head's states are summed, the last is read. Causal: queries walk
/// segments; segment i starts with the keys' state `first_segment` + i (a running sum) and, in
/// reverse, with the queries' state i + 1 (a running sum from the end).
struct Cut {
  int segments = 0;  // causal only
  int64_t length = 0;
  int first_segment = 0;
  Ranges keys, queries;

  Cut(const Map& map, int64_t heads, int64_t Tn, int64_t S, bool causal) {
    const int64_t blocks = heads * map.chunks;
    if (!causal) {
      split(keys, S, blocks, map.chunks);
      split(queries, Tn, blocks, map.chunks);
      return;
    }
    length = length_of(Tn, parts_of(Tn, heads, map.chunks));
    segments = static_cast<int>(std::max<int64_t>(1, (Tn + length - 1) / length));
    split(keys, std::clamp<int64_t>(S - Tn, 0, S), blocks, map.chunks);
    first_segment = keys.splits - 1;
    keys.pieces = segments - 1;
    keys.length = length;
    keys.offset = S - Tn;
    keys.tokens = S;
    queries.splits = 0;
    queries.pieces = segments + 1;
    queries.length = length;
    queries.tokens = Tn;
  }
};

/// Hands out 256-byte aligned pieces of a buffer; on a null base it only counts.
class Arena {
 public:
  explicit Arena(void* base) : base_(static_cast<char*>(base)) {}
  template <class U>
  U* take(int64_t count) {
    char* here = base_ ? base_ + used_ : nullptr;
    used_ += (static_cast<size_t>(count) * sizeof(U) + 255) / 256 * 256;
    return reinterpret_cast<U*>(here);
  }
  size_t bytes() const { return used_; }

 private:
  char* base_;
  size_t used_ = 0;
};

}  // namespace macgrad::cuda::rmfa
