// How a reduction of the middle dimension of (A, R, N) is cut into blocks. An output is shared by
// `lanes` threads, which take every lanes-th row each; R is cut into pieces when the outputs alone
// do not fill the card, or when a thread would add too many rows one after the other. Plain
// arithmetic, tested on the host.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>

#include "macgrad/core/host_device.h"

namespace macgrad::cuda {

struct ReduceTiling {
  static constexpr int kLeastThreads = 32;
  static constexpr int kMostThreads = 256;
  static constexpr int kRowsAThread = 64;  // longest chain of additions, without pieces
  static constexpr int kFewRowsAThread = 4;

  int64_t outer = 0, rows = 0, n = 0;
  bool along = false;  // N = 1: neighbouring threads take neighbouring rows, else columns
  int pack = 1;        // elements a load: rows (along) or columns
  int lanes = 1;       // threads of an output
  int across = 1;      // outputs, or packs of outputs, of a block
  int64_t pieces = 1, piece_rows = 0;
  int64_t tiles = 1;  // blocks side by side: over A (along) or over N

  int threads() const { return std::max(kLeastThreads, lanes * across); }
  int64_t blocks() const { return along ? tiles * pieces : outer * tiles * pieces; }

  /// What a thread works on: of the rows [begin, end), those (or those packs of rows) that are
  /// `lane` from begin on, every lanes-th; row r lies at x[start + r·N]. Its output, or the first
  /// of a pack, is place `output` of (A, pieces, N), -1 where the thread has none.
  struct Place {
    int lane;
    int64_t start, begin, end, output;
  };
  MACGRAD_HD Place place(int64_t block, int thread) const {
    Place p{};
    int64_t a, column = 0;
    const int64_t piece = block % pieces, tile = block / pieces % tiles;
    bool inside = thread < lanes * across;
    if (along) {
      p.lane = thread % lanes;
      a = tile * across + thread / lanes;
      inside = inside && a < outer;
    } else {
      p.lane = thread / across;
      column = (tile * across + thread % across) * pack;
      a = block / pieces / tiles;
      inside = inside && column < n;
    }
    p.start = a * rows * n + column;
    p.output = inside ? (a * pieces + piece) * n + column : -1;
    p.begin = inside ? piece * piece_rows : 0;
    const int64_t end = p.begin + piece_rows;
    p.end = inside ? (end < rows ? end : rows) : 0;
    return p;
  }
};

/// The cut of (outer, rows, n) for a card of `processors`; one piece where `whole` asks for it.
/// Loads take `pack` elements where the shape and `address_fits` allow it.
inline ReduceTiling reduce_tiling(int64_t outer, int64_t rows, int64_t n, int pack,
                                  bool address_fits, int processors, bool whole) {
  ReduceTiling t;
  t.outer = outer, t.rows = rows, t.n = n;
  t.along = n == 1;
  t.pack = address_fits && (t.along ? outer == 1 || rows % pack == 0 : n % pack == 0) ? pack : 1;
  const auto power = [](int64_t value, int most) {
    return static_cast<int>(
        std::bit_ceil(static_cast<uint64_t>(std::clamp<int64_t>(value, 1, most))));
  };
  constexpr int most = ReduceTiling::kMostThreads;
  if (t.along) {
    t.lanes = power((rows + t.pack - 1) / t.pack, most);
    t.across = most / t.lanes;
    t.tiles = (outer + t.across - 1) / t.across;
  } else {
    const int columns = power((n + t.pack - 1) / t.pack, most);
    t.lanes = power(rows, most / std::min(columns, ReduceTiling::kLeastThreads));
    t.across = std::min(columns, most / t.lanes);
    t.tiles = (n + int64_t{t.across} * t.pack - 1) / (int64_t{t.across} * t.pack);
  }
  // Rows that the lanes of an output take in one go.
  const int64_t stride = int64_t{t.lanes} * (t.along ? t.pack : 1);
  const int64_t filling = 4 * processors / std::max<int64_t>(1, t.blocks());
  const int64_t needed =
      (rows + stride * ReduceTiling::kRowsAThread - 1) / (stride * ReduceTiling::kRowsAThread);
  const int64_t useful = rows / (stride * ReduceTiling::kFewRowsAThread);
  if (!whole) t.pieces = std::max<int64_t>(1, std::max(needed, std::min(filling, useful)));
  // Pieces of whole strides, so that packs stay aligned.
  t.piece_rows = (rows + t.pieces - 1) / t.pieces;
  t.piece_rows = std::max<int64_t>(1, (t.piece_rows + stride - 1) / stride) * stride;
  t.pieces = std::max<int64_t>(1, (rows + t.piece_rows - 1) / t.piece_rows);
  return t;
}

}  // namespace macgrad::cuda
