// Scratch memory of a kernel, cut into its parts.
#pragma once

#include <cstddef>
#include <cstdint>

namespace macgrad::cpu {

/// Hands out 64-byte aligned pieces of one buffer; on a null base it only counts.
class Arena {
 public:
  explicit Arena(void* base) {
    const auto address = reinterpret_cast<uintptr_t>(base);
    base_ = base ? reinterpret_cast<char*>((address + kAlign - 1) / kAlign * kAlign) : nullptr;
  }
  template <class U>
  U* take(int64_t count) {
    char* here = base_ ? base_ + used_ : nullptr;
    used_ += (static_cast<size_t>(count) * sizeof(U) + kAlign - 1) / kAlign * kAlign;
    return reinterpret_cast<U*>(here);
  }
  /// Bytes a buffer needs for what was taken, alignment of its base included.
  size_t bytes() const { return used_ + kAlign; }

 private:
  static constexpr size_t kAlign = 64;
  char* base_ = nullptr;
  size_t used_ = 0;
};

}  // namespace macgrad::cpu
