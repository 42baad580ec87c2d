// Shared memory of the RMFA kernels and the operands they support. A launch and `supports` take the
// size of a block's shared memory from the same functions, so a call that is supported can be
// launched. Shape letters: d head dimension, dv values; W is 1 where both are at most 64, else 2.
#pragma once

#include "macgrad/cuda/rmfa_plan.h"

namespace macgrad::cuda::rmfa {

inline constexpr int kThreads = 128;
inline constexpr int kLd = kTile + 4;  // stride of a tile of 64 columns: 16-byte rows, other banks
/// Stride of a tile that holds d or dv columns.
template <int W>
inline constexpr int kWide = kTile* W + 4;

/// Tiles of a kernel, whose last member is the first element of `products`: kTile rows of
/// most_columns + 4.
template <class Tiles>
constexpr size_t bytes_with_products(bool causal) {
  return sizeof(Tiles) + sizeof(float) * kTile * (static_cast<size_t>(most_columns(causal)) + 4);
}

// W = 1: x, Ω and v 17 KiB each, products 49 KiB (33 KiB causal), the rest 2 KiB: two blocks.
template <int W>
struct StateMemory {
  float x[kTile * kWide<W>];
  float stage[kTile * W * kLd];
  float v[kTile * kWide<W>];
  float u[kTile];
  float halves[kTile];
  Chunk chunk;
  alignas(16) float products[1];

  static constexpr size_t bytes(bool causal) { return bytes_with_products<StateMemory>(causal); }
};

// W = 1: x, Ω (or the state) and v 17 KiB each, products 49 KiB (33 KiB causal, and features of q
// 17 KiB): 101 KiB and 2 KiB for the rest, two blocks.
template <int W, bool causal>
struct OutputMemory {
  float x[kTile * kWide<W>];  // then scores, then sums on their way out
  union {
    float stage[kTile * W * kLd];
    float state[kTile * kWide<W>];
  };
  float v[causal ? kTile * kWide<W> : 4];
  float features[causal ? kTile * kLd : 4];  // of q
  float fsum[kTile];
  float u[kTile];
  float totals[kTile * W + 4];  // the state's last row
  float inverse[kTile];
  int live[kTile];
  double reduce[kThreads / 32];
  Chunk chunk;
  alignas(16) float products[1];

  static constexpr size_t bytes() { return bytes_with_products<OutputMemory>(causal); }
};

// W = 1: x, Ω (or the state), G and, causal, the features of k and cotangents 17 KiB each, products
// 49 KiB (33 KiB causal): 101 or 119 KiB, and 2 KiB for the rest.
template <int W, bool causal>
struct QueryMemory {
  float x[kTile * kWide<W>];  // q, k or v
  union {
    float stage[kTile * W * kLd];
    float state[kTile * kWide<W>];
  };
  float g[kTile * kWide<W>];
  float features[causal ? kTile * kLd : 4];    // of k
  float cotangents[causal ? kTile * kLd : 4];  // of the kernel's values
  float fsum[kTile], ug[kTile], uk[kTile], scratch[kTile];
  int live[kTile];
  Chunk chunk;
  alignas(16) float products[1];

  static constexpr size_t bytes() { return bytes_with_products<QueryMemory>(causal); }
};

// W = 1: x, Ω (or the state), v and the features of k 17 KiB each, products 49 KiB; causal the
// features of q, cotangents and G as well and products 33 KiB: 118 or 153 KiB.
template <int W, bool causal>
struct KeyMemory {
  float x[kTile * kWide<W>];  // k or q; causal then the kernel's values
  union {
    float stage[kTile * W * kLd];
    float state[kTile * kWide<W>];
  };
  float v[kTile * kWide<W>];
  float features[kTile * kLd];  // of k
  float g[causal ? kTile * kWide<W> : 4];
  float query_features[causal ? kTile * kLd : 4];
  float cotangents[causal ? kTile * kLd : 4];
  float fsum[kTile], ug[kTile], uk[kTile], scratch[kTile];
  float totals[kTile * W];
  int live[kTile];
  Chunk chunk;
  alignas(16) float products[1];

  /// `in_causal`: the call's; keys before all queries are not causal themselves.
  static constexpr size_t bytes(bool in_causal) {
    return bytes_with_products<KeyMemory>(in_causal);
  }
};

/// Calls f.template operator()<W>() for these widths.
template <class F>
auto with_width(int64_t d, int64_t dv, F&& f) {
  if (d <= kTile && dv <= kTile) return f.template operator()<1>();
  return f.template operator()<2>();
}

/// Most shared memory per block that the kernels of a call take.
inline size_t most_shared_bytes(int64_t d, int64_t dv, bool causal, bool backward) {
  return with_width(d, dv, [&]<int W>() {
    const size_t states = StateMemory<W>::bytes(causal);
    if (!backward) {
      return std::max(states,
                      causal ? OutputMemory<W, true>::bytes() : OutputMemory<W, false>::bytes());
    }
    const size_t early = std::max(states, KeyMemory<W, false>::bytes(causal));
    if (!causal) return std::max(early, QueryMemory<W, false>::bytes());
    return std::max({early, QueryMemory<W, true>::bytes(), KeyMemory<W, true>::bytes(true)});
  });
}

/// Why a draw of these levels is not supported, or "".
inline std::string refusal(const RmfaArgs& args, int64_t d, int64_t dv, bool backward) {
  if (d > kMaxWidth || dv > kMaxWidth) {
    return "the CUDA kernel takes head dimensions up to 128, not " +
           std::to_string(std::max(d, dv));
  }
  if (args.levels.size() > kMaxLevels) {
    return "the CUDA kernel takes degrees up to 64, not " + std::to_string(args.levels.size());
  }
  return shared_memory_refusal(most_shared_bytes(d, dv, args.causal, backward));
}

/// Of a call of the forward or the backward pass.
inline Support supports(const RmfaOperands& in, bool backward) {
  const DType dtype = in.q->dtype();
  if (dtype != DType::float32 && dtype != DType::bfloat16) {
    return {false, std::string("the CUDA kernel takes float32 and bfloat16, not ") + name(dtype)};
  }
  if (in.k->dtype() != dtype || in.v->dtype() != dtype) return {false, "operands differ in dtype"};
  if (!in.args.levels.empty() && in.args.levels[0] > 0 &&
      (in.omega->dtype() != dtype || in.weight->dtype() != dtype)) {
    return {false, "the draw's dtype differs from the operands'"};
  }
  const std::string reason = refusal(in.args, in.q->size(3), in.v->size(3), backward);
  return {reason.empty(), reason};
}

}  // namespace macgrad::cuda::rmfa
