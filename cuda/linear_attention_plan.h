// How linear attention on given features is cut on the card: features and values into chunks of 64,
// keys and queries into ranges of tokens with a state each, and the memory behind both. The host
// decides from shapes and options only.
//
// Causal attention works by blocks of 64 queries. Key range i after the `splits` of the keys that
// all queries see holds the keys that block i is the first to see, as on the CPU, so that both
// shift the same rows by the same numbers (core/cpu/linear_attention_problem.h). Every block has
// the state of all keys before it, which takes C·(dv+1) numbers per 64 queries, C rounded up to 64:
// dv/64 of the memory of phi_q where M is a multiple of 64. Blocks then need nothing of each other,
// and there are B·H·T/64 of them.
//
// Shape letters: B batch, H heads, T queries, S keys, M features, C columns (M, and one more for
// κ), dv values.
#pragma once

#include <algorithm>
#include <cstdint>

#include "macgrad/core/kernels/linear_attention.h"
#include "macgrad/cuda/rmfa_memory.h"

namespace macgrad::cuda::linear {

using rmfa::kLd;
using rmfa::kThreads;
using rmfa::kTile;
using rmfa::Ranges;

/// Statistics per block of queries (denominators.cuh).
inline constexpr int kSeenNumbers = 4;

/// Widths of a state and how they are cut.
struct Map {
  int M = 0, C = 0, dv = 0;
  bool log = false;

  /// Chunks of features and of values, one at least.
  MACGRAD_HD int chunks() const { return C > kTile ? (C + kTile - 1) / kTile : 1; }
  MACGRAD_HD int values() const { return dv > kTile ? (dv + kTile - 1) / kTile : 1; }
  /// Columns of chunk i of `columns`, and the same in whole steps of the tensor cores.
  MACGRAD_HD static int part(int columns, int i) {
    return columns - i * kTile < kTile ? columns - i * kTile : kTile;
  }
  MACGRAD_HD static int padded(int columns, int i) { return (part(columns, i) + 15) / 16 * 16; }
  /// Rows of a state, then the column of u.
  MACGRAD_HD int rows() const { return chunks() * kTile; }
  MACGRAD_HD int64_t state_size() const { return int64_t{rows()} * (dv + 1); }
};

inline Map make_map(const LinearAttentionOperands& in) {
  const int64_t M = in.phi_q->size(3), dv = in.v->size(3);
  require(M < (int64_t{1} << 24) && dv < (int64_t{1} << 24),
          "[linear_attention] {} features or {} values are too many", M, dv);
  Map map;
  map.M = static_cast<int>(M);
  map.C = map.M + (in.args.constant > 0.0);
  map.dv = static_cast<int>(dv);
  map.log = in.args.log_features;
  return map;
}

/// Both sides' ranges. A causal block of queries reads the sum of the key states before its own
/// keys; keys read the sum of the query states after their own block.
struct Cut {
  int blocks = 0;      // of queries; 0 unless causal
  int key_states = 0;  // no state includes the keys of the last block
  Ranges keys, queries;

  Cut(const Map& map, const LinearAttentionOperands& in)
      : Cut(map, in.phi_q->size(0) * in.phi_q->size(1), in.phi_q->size(2), in.phi_k->size(2),
            in.causal) {}
  Cut(const Map& map, int64_t heads, int64_t Tn, int64_t S, bool causal) {
    const int64_t per_range = heads * map.chunks() * map.values();
    const int64_t early = causal ? std::clamp<int64_t>(S - Tn, 0, S) : S;
    rmfa::split(keys, early, per_range, map.chunks());
    key_states = keys.splits;
    if (!causal) {
      rmfa::split(queries, Tn, per_range, map.chunks());
      return;
    }
    blocks = static_cast<int>(rmfa::tiles_of(Tn));
    key_states += std::max(0, blocks - 1);
    keys.pieces = blocks;
    keys.length = kTile;
    keys.offset = S - Tn;
    keys.tokens = S;
    queries.splits = 0;
    queries.pieces = blocks;
    queries.length = kTile;
    queries.tokens = Tn;
  }
};

/// Scratch memory of one call.
template <class T>
struct Memory {
  double* shifts = nullptr;   // (key ranges, heads, shift_columns)
  T* inner = nullptr;         // (blocks, heads, C): largest log φ_k of a causal block's keys
  double* weights = nullptr;  // (key states, heads): Σ w of the state's keys
  T* key_states = nullptr;    // (key states, heads, state)
  T* query_states = nullptr;  // backward: (query ranges, heads, state)
  double* floors = nullptr;   // backward: (query ranges, heads): Σ of what floors pull
  T* scalars = nullptr;       // backward: (heads, T, 3)
  double* seen = nullptr;     // forward: kSeenNumbers per block
  int shift_columns = 0;
  size_t bytes = 0;

  Memory(void* base, const Map& map, const Cut& cut, const LinearAttentionOperands& in,
         bool backward) {
    const int64_t heads = in.phi_q->size(0) * in.phi_q->size(1), Tn = in.phi_q->size(2);
    rmfa::Arena arena(base);
    shift_columns = map.log ? map.C : in.log_weight->defined() ? 1 : 0;
    shifts = arena.take<double>(cut.keys.count() * heads * shift_columns);
    if (map.log) inner = arena.take<T>(cut.blocks * heads * map.C);
    weights = arena.take<double>(cut.key_states * heads);
    key_states = arena.take<T>(cut.key_states * heads * map.state_size());
    if (backward) {
      query_states = arena.take<T>(cut.queries.count() * heads * map.state_size());
      floors = arena.take<double>(cut.queries.count() * heads);
      scalars = arena.take<T>(heads * Tn * 3);
    } else {
      seen = arena.take<double>(kSeenNumbers * heads * rmfa::tiles_of(Tn));
    }
    bytes = arena.bytes();
  }
};

inline size_t scratch_bytes(const LinearAttentionOperands& in, bool backward) {
  const Map map = make_map(in);
  const Cut cut(map, in);
  return in.phi_q->dtype() == DType::float64 ? Memory<double>(nullptr, map, cut, in, backward).bytes
                                             : Memory<float>(nullptr, map, cut, in, backward).bytes;
}

/// Shared memory of a block: three tiles and what belongs to their rows.
template <class T>
struct Tiles {
  alignas(128) T a[kTile * kLd];
  T b[kTile * kLd];
  T scores[kTile * kLd];
  double l[kTile];          // of a tile of keys; -inf: hidden
  double reference[kTile];  // of a row: what ℓ is shifted by inside its causal block
  double shift[kTile];
  double total[kTile];  // forward: Σ w of the visible keys
  T keep[kTile];        // what plain features of a query are multiplied by to read the state
  T den[kTile];         // forward: denominators; backward: of keys, what they pull
  T scale[kTile], u[kTile], pull[kTile];
  int live[kTile], lost[kTile];
  double reduce[kThreads / 32];
};

/// The operands that the kernels take.
inline Support supports(const LinearAttentionOperands& in) {
  const DType dtype = in.phi_q->dtype();
  if (dtype != DType::float32 && dtype != DType::float64)
    return {false, std::string("the CUDA kernel takes float32 and float64, not ") + name(dtype)};
  const std::string reason =
      shared_memory_refusal(dtype == DType::float64 ? sizeof(Tiles<double>) : sizeof(Tiles<float>));
  return {reason.empty(), reason};
}

}  // namespace macgrad::cuda::linear
