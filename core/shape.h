// Shape: up to kMaxRank extents (or strides) without heap allocation, and the arithmetic on
// shapes that every op needs: counting, broadcasting, normalising a dimension.
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>
#include <vector>

#include "macgrad/core/error.h"

namespace macgrad {

inline constexpr int kMaxRank = 8;

class Shape {
 public:
  Shape() = default;
  Shape(std::initializer_list<int64_t> extents)
      : Shape(std::span(extents.begin(), extents.size())) {}
  explicit Shape(std::span<const int64_t> extents);
  explicit Shape(const std::vector<int64_t>& extents) : Shape(std::span(extents)) {}

  /// `rank` extents, all equal to `value`.
  static Shape filled(int rank, int64_t value);

  int rank() const { return rank_; }
  int64_t operator[](int dim) const { return extents_[static_cast<size_t>(dim)]; }
  int64_t& operator[](int dim) { return extents_[static_cast<size_t>(dim)]; }
  /// Extent with a negative dimension counted from the end; throws when out of range.
  int64_t at(int dim) const;
  int64_t back() const { return at(-1); }
  int64_t numel() const;

  const int64_t* begin() const { return extents_.data(); }
  const int64_t* end() const { return extents_.data() + rank_; }
  operator std::span<const int64_t>() const { return {begin(), static_cast<size_t>(rank_)}; }

  /// This shape with `extent` put before dimension `dim` (0 <= dim <= rank).
  Shape inserted(int dim, int64_t extent) const;
  /// This shape without dimension `dim`.
  Shape erased(int dim) const;
  /// This shape with dimension `dim` set to `extent`.
  Shape with(int dim, int64_t extent) const;
  void push_back(int64_t extent);

  friend bool operator==(const Shape& a, const Shape& b) {
    if (a.rank_ != b.rank_) return false;
    for (int i = 0; i < a.rank_; ++i)
      if (a[i] != b[i]) return false;
    return true;
  }

  /// "(2, 3, 4)".
  std::string text() const;

 private:
  std::array<int64_t, kMaxRank> extents_{};
  int rank_ = 0;
};

/// Row-major strides in elements.
Shape contiguous_strides(const Shape& shape);

/// Dimension counted from the front; throws unless -rank <= dim < rank.
int normalize_dim(int dim, int rank, const char* op);

/// NumPy broadcasting of two shapes; throws an Error naming `op` and both shapes.
Shape broadcast_shapes(const Shape& a, const Shape& b, const char* op);

/// True when a tensor of shape `from` can be expanded to `to`.
bool broadcasts_to(const Shape& from, const Shape& to);

}  // namespace macgrad

template <>
struct fmt::formatter<macgrad::Shape> : fmt::formatter<std::string> {
  auto format(const macgrad::Shape& s, fmt::format_context& ctx) const {
    return fmt::formatter<std::string>::format(s.text(), ctx);
  }
};
