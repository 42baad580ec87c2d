// Extents and the rules of broadcasting.
#include "macgrad/core/shape.h"

#include <fmt/ranges.h>

#include <algorithm>

namespace macgrad {

Shape::Shape(std::span<const int64_t> extents) {
  require(extents.size() <= kMaxRank, "a shape of rank {} exceeds the largest rank {}",
          extents.size(), kMaxRank);
  std::copy(extents.begin(), extents.end(), extents_.begin());
  rank_ = static_cast<int>(extents.size());
}

Shape Shape::filled(int rank, int64_t value) {
  Shape s;
  for (int i = 0; i < rank; ++i) s.push_back(value);
  return s;
}

int64_t Shape::at(int dim) const {
  return (*this)[normalize_dim(dim, rank_, "shape")];
}

int64_t Shape::numel() const {
  int64_t n = 1;
  for (int64_t e : *this) n *= e;
  return n;
}

Shape Shape::inserted(int dim, int64_t extent) const {
  Shape s = *this;
  s.push_back(extent);
  std::rotate(s.extents_.begin() + dim, s.extents_.begin() + rank_, s.extents_.begin() + s.rank_);
  return s;
}

Shape Shape::erased(int dim) const {
  Shape s = *this;
  std::copy(begin() + dim + 1, end(), s.extents_.begin() + dim);
  s.extents_[static_cast<size_t>(--s.rank_)] = 0;
  return s;
}

Shape Shape::with(int dim, int64_t extent) const {
  Shape s = *this;
  s[dim] = extent;
  return s;
}

void Shape::push_back(int64_t extent) {
  require(rank_ < kMaxRank, "a shape of rank {} exceeds the largest rank {}", rank_ + 1, kMaxRank);
  extents_[static_cast<size_t>(rank_++)] = extent;
}

std::string Shape::text() const {
  return fmt::format("({})", fmt::join(begin(), end(), ", "));
}

Shape contiguous_strides(const Shape& shape) {
  Shape strides = shape;
  int64_t step = 1;
  for (int i = shape.rank() - 1; i >= 0; --i) {
    strides[i] = step;
    step *= shape[i];
  }
  return strides;
}

int normalize_dim(int dim, int rank, const char* op) {
  require(dim >= -rank && dim < rank, "[{}] dimension {} is out of range for rank {}", op, dim,
          rank);
  return dim < 0 ? dim + rank : dim;
}

Shape broadcast_shapes(const Shape& a, const Shape& b, const char* op) {
  const int rank = std::max(a.rank(), b.rank());
  Shape out = Shape::filled(rank, 1);
  for (int i = 1; i <= rank; ++i) {
    const int64_t x = i <= a.rank() ? a[a.rank() - i] : 1;
    const int64_t y = i <= b.rank() ? b[b.rank() - i] : 1;
    require(x == y || x == 1 || y == 1, "[{}] shapes {} and {} do not broadcast", op, a, b);
    out[rank - i] = x == 1 ? y : x;
  }
  return out;
}

bool broadcasts_to(const Shape& from, const Shape& to) {
  if (from.rank() > to.rank()) return false;
  for (int i = 1; i <= from.rank(); ++i) {
    const int64_t x = from[from.rank() - i];
    if (x != 1 && x != to[to.rank() - i]) return false;
  }
  return true;
}

}  // namespace macgrad
