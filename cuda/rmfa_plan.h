// How RMFA is cut on the card: features into chunks, sequences into ranges with a state each, the
// scratch memory behind both.
//
// A chunk is at most 64 features that share a block's shared memory with all their projections
// (features of high degree have many). After the random features come those of the linear block,
// sqrt(linear)·x, 64 dimensions a chunk. A draw without features has one empty chunk.
//
// The host decides from shapes and options only. Which features a chunk holds is found on the
// device, because a recorded step meets other draws at each replay (RmfaArgs::layout); the host
// knows a bound of the number of chunks. Shape letters: B batch, H heads, T queries, S keys, d head
// dimension, dv values, M features, P projections.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>

#include "macgrad/core/kernels/rmfa.h"
#include "macgrad/cuda/runtime.h"

namespace macgrad::cuda::rmfa {

inline constexpr int kTile = 64;  // tokens of a tile, features of a chunk
inline constexpr int kMaxLevels = kRmfaLayoutLevels;
inline constexpr int kMaxWidth = 128;  // of d and dv
inline constexpr int kWaves = 4;       // blocks wanted a multiprocessor

/// Projections of a chunk: what a tile of tokens keeps in shared memory. A causal block holds more
/// tiles at once. At least kMaxLevels: a feature has room.
constexpr int most_columns(bool causal) {
  return causal ? 128 : 192;
}

/// What the host fixes of the feature map.
struct Map {
  int d = 0, dv = 0;
  int64_t width = 0;  // of Ω
  int chunks = 0;     // at most

  /// Floats of a row of a state: dv values, the column of u, rounded up to 16 bytes.
  MACGRAD_HD int row() const { return (dv + 1 + 3) / 4 * 4; }
  /// Rows: those of the chunks, then the sums of the values and of u themselves.
  MACGRAD_HD int64_t state_size() const { return (int64_t{chunks} * kTile + 1) * row(); }
};

/// What a draw is made of, from the host or from device memory.
struct Draw {
  float constant = 0, root = 0;  // weight of degree 0; sqrt(linear)
  int level[kMaxLevels] = {};    // features of each level, zeros beyond

  MACGRAD_HD int features() const { return level[0]; }
  /// Features of level l among [begin, end).
  MACGRAD_HD int count(int l, int begin, int end) const {
    const int last = level[l] < end ? level[l] : end;
    return last > begin ? last - begin : 0;
  }
};

/// What kernels read of a draw beside its chunks.
struct Layout {
  float constant, root;
  int chunks;  // of this draw
};

/// The features of one chunk.
struct alignas(16) Chunk {
  int linear;
  int first, count;     // features (or dimensions of x)
  int columns, levels;  // projections, and the levels they belong to
  int offset[kMaxLevels + 1];
  int degree[kTile];
  int column[most_columns(false)];  // of Ω

  /// K of a product over the features: whole steps of the tensor cores.
  MACGRAD_HD int padded() const { return (count + 15) / 16 * 16; }
};

/// Chunks of the random features, each as long as 64 features and `most` projections allow; where
/// number `index` begins and ends, if there is one. Runs of features of one degree at a time.
MACGRAD_HD inline int cut_features(const Draw& draw, int most, int index, int& begin, int& end) {
  int chunks = 0, at = 0, degree = kMaxLevels;
  do {
    const int first = at;
    int room = most;
    while (at < draw.features()) {
      while (draw.level[degree - 1] <= at) --degree;
      int run = draw.level[degree - 1] - at;
      if (run > first + kTile - at) run = first + kTile - at;
      if (run > room / degree) run = room / degree;
      if (run == 0) break;
      at += run;
      room -= run * degree;
    }
    if (chunks == index) begin = first, end = at;
    ++chunks;
  } while (at < draw.features());
  return chunks;
}

/// Chunks of the linear block.
MACGRAD_HD inline int linear_chunks(int d) {
  return (d + kTile - 1) / kTile;
}

/// Writes chunk `index` of a draw, if there is one; returns their number. Thread `thread` of
/// `threads` writes its share and may read only that.
MACGRAD_HD inline int fill_chunk(const Draw& draw, int d, int most, int index, Chunk& chunk,
                                 int thread, int threads) {
  int begin = 0, end = 0;
  const int of_x = draw.root > 0.0f ? linear_chunks(d) : 0;
  const int random =
      draw.features() == 0 && of_x > 0 ? 0 : cut_features(draw, most, index, begin, end);
  if (index >= random + of_x) return random + of_x;
  const bool linear = index >= random;
  if (linear) {
    begin = (index - random) * kTile;
    end = d - begin < kTile ? d : begin + kTile;
  }
  const auto count = [&](int l) {
    return linear || l == kMaxLevels ? 0 : draw.count(l, begin, end);
  };
  if (thread == 0) {
    chunk.linear = linear;
    chunk.first = begin;
    chunk.count = end - begin;
    int l = 0, columns = 0;
    for (; count(l) > 0; ++l) {
      chunk.offset[l] = columns;
      columns += count(l);
    }
    chunk.offset[l] = chunk.columns = columns;
    chunk.levels = l;
  }
  for (int m = thread; m < kTile; m += threads) {
    int l = 0;
    while (count(l) > m) ++l;
    chunk.degree[m] = l;
  }
  for (int c = thread; c < most_columns(false); c += threads) {
    int l = 0, offset = 0, first = 0;
    for (; count(l) > 0 && offset + count(l) <= c; ++l) {
      offset += count(l);
      first += draw.level[l];
    }
    chunk.column[c] = count(l) > 0 ? first + begin + c - offset : 0;
  }
  return random + of_x;
}

/// The most chunks that draws of up to `features` features and `projections` projections have. One
/// that is not the last is full: of features, which have a projection each, or of projections, with
/// no room for a degree of kMaxLevels; and leaves the last a feature.
inline int64_t most_chunks(int64_t features, int64_t projections, int most) {
  int64_t full = 0;
  const int64_t F = features - 1, P = projections - 1;
  for (int64_t a = 0; a * kTile <= std::min(F, P); ++a)
    full = std::max(full, a + std::min(F - a * kTile, (P - a * kTile) / (most - kMaxLevels + 1)));
  return full + 1;
}

inline Draw make_draw(const RmfaArgs& args) {
  Draw draw;
  draw.constant = static_cast<float>(args.constant);
  draw.root = static_cast<float>(std::sqrt(args.linear));
  for (size_t l = 0; l < args.levels.size(); ++l) draw.level[l] = static_cast<int>(args.levels[l]);
  return draw;
}

/// `width` of omega and `features` of weight bound the draws to come when args.layout is there.
inline Map make_map(const RmfaArgs& args, int64_t d, int64_t dv, int64_t width, int64_t features) {
  Map map;
  map.d = static_cast<int>(d);
  map.dv = static_cast<int>(dv);
  map.width = width;
  if (!args.layout.defined() && (args.levels.empty() || args.levels[0] == 0)) features = 0;
  const int of_x = args.linear > 0 ? linear_chunks(map.d) : 0;
  int64_t random = of_x > 0 ? 0 : 1;
  if (features > 0) {
    int begin, end;
    random = args.layout.defined()
                 ? most_chunks(features, width, most_columns(args.causal))
                 : cut_features(make_draw(args), most_columns(args.causal), -1, begin, end);
  }
  require(random < (int64_t{1} << 24), "[rmfa] {} projections are too many", width);
  map.chunks = static_cast<int>(random) + of_x;
  return map;
}
inline Map make_map(const RmfaOperands& in) {
  return make_map(in.args, in.q->size(3), in.v->size(3),
                  in.omega->defined() ? in.omega->size(-1) : 0,
                  in.weight->defined() ? in.weight->size(0) : 0);
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
