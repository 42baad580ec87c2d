// Walking N tensors of one shape together on the device: dimensions that lie evenly in memory are
// merged on the host, and a thread finds its element's offsets by dividing its index. The functions
// are plain arithmetic and are tested on the host.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "macgrad/core/host_device.h"
#include "macgrad/core/tensor.h"

namespace macgrad::cuda {

/// The largest part of a Strided: small enough for 32-bit indices, and a power of two, so that a
/// part of a consecutive run is as aligned as the whole.
inline constexpr int64_t kLargestPart = int64_t{1} << 30;

/// Extents and strides in elements, slowest dimension first, after merging. At most kLargestPart
/// elements.
template <int N>
struct Strided {
  int rank = 0;
  uint32_t count = 1;
  uint32_t extents[kMaxRank] = {};
  int64_t strides[N][kMaxRank] = {};

  /// Every operand is one run of consecutive elements.
  bool contiguous() const {
    if (rank > 1) return false;
    for (int k = 0; k < N; ++k)
      if (rank == 1 && strides[k][0] != 1) return false;
    return true;
  }
  /// Offsets of element `index` of the shape.
  MACGRAD_HD void offsets(uint32_t index, int64_t (&at)[N]) const {
    for (int k = 0; k < N; ++k) at[k] = 0;
    for (int d = rank - 1; d >= 0; --d) {
      const uint32_t rest = d > 0 ? index / extents[d] : 0;
      const uint32_t i = index - rest * extents[d];
      for (int k = 0; k < N; ++k) at[k] += static_cast<int64_t>(i) * strides[k][d];
      index = rest;
    }
  }
};

/// One launch: a Strided and where each operand starts (in elements from its first one).
template <int N>
struct StridedPart {
  Strided<N> shape;
  std::array<int64_t, N> start{};
};

/// The parts that cover `operands`, all of the last one's shape; more than one only for more than
/// `most` elements.
template <int N>
std::vector<StridedPart<N>> strided_parts(const std::array<const Tensor*, N>& operands,
                                          int64_t most = kLargestPart) {
  const Shape& shape = operands[N - 1]->shape();
  if (shape.numel() == 0) return {};
  std::vector<int64_t> extents;
  std::vector<std::array<int64_t, N>> strides;
  for (int d = 0; d < shape.rank(); ++d) {
    if (shape[d] == 1) continue;
    std::array<int64_t, N> s;
    for (size_t k = 0; k < N; ++k) s[k] = operands[k]->strides()[d];
    bool even = !extents.empty();
    for (size_t k = 0; k < N && even; ++k) even = strides.back()[k] == s[k] * shape[d];
    if (even) {
      extents.back() *= shape[d];
      strides.back() = s;
    } else {
      extents.push_back(shape[d]);
      strides.push_back(s);
    }
  }
  // Cut the slowest dimensions until a part is small enough.
  std::vector<StridedPart<N>> parts(1);
  size_t first = 0;
  int64_t count = shape.numel(), piece = extents.empty() ? 1 : extents[0];
  while (count > most) {
    const int64_t inner = count / extents[first];
    piece = std::max<int64_t>(1, most / inner);
    std::vector<StridedPart<N>> cut;
    for (const auto& part : parts)
      for (int64_t at = 0; at < extents[first]; at += piece) {
        StridedPart<N> next = part;
        for (size_t k = 0; k < N; ++k) next.start[k] += at * strides[first][k];
        next.shape.extents[0] = static_cast<uint32_t>(std::min(piece, extents[first] - at));
        cut.push_back(next);
      }
    parts = std::move(cut);
    if (inner * piece <= most) break;
    count = inner;
    ++first;
  }
  const bool was_cut = parts.size() > 1;
  for (auto& part : parts) {
    Strided<N>& s = part.shape;
    s.rank = static_cast<int>(extents.size() - first);
    for (size_t d = first; d < extents.size(); ++d) {
      if (!(was_cut && d == first)) s.extents[d - first] = static_cast<uint32_t>(extents[d]);
      for (size_t k = 0; k < N; ++k) s.strides[k][d - first] = strides[d][k];
      s.count *= s.extents[d - first];
    }
  }
  return parts;
}

}  // namespace macgrad::cuda
