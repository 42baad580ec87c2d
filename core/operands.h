// Operands of compute kernels: roles of tensors, and structs of named operands whose members the
// slots (core/kernel.h) visit one by one, so that a list of operands is written once.
#pragma once

#include <span>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>

#include "macgrad/core/tensor.h"

namespace macgrad {

// Roles of tensor operands. An undefined tensor in an In or Out means "absent" where a kernel
// documents it.
struct In {
  In(const Tensor& tensor) : t(tensor) {}
  const Tensor& t;
  const Tensor* operator->() const { return &t; }
  operator const Tensor&() const { return t; }
};
struct Out {
  Out(const Tensor& tensor) : t(tensor) {}
  const Tensor& t;
  const Tensor* operator->() const { return &t; }
  operator const Tensor&() const { return t; }
};
struct InOut {
  InOut(const Tensor& tensor) : t(tensor) {}
  const Tensor& t;
  const Tensor* operator->() const { return &t; }
  operator const Tensor&() const { return t; }
};
struct InList {
  InList(std::span<const Tensor> tensors) : list(tensors) {}
  InList(const Tensors& tensors) : list(tensors) {}
  std::span<const Tensor> list;
};
struct InOutList {
  InOutList(std::span<const Tensor> tensors) : list(tensors) {}
  InOutList(const Tensors& tensors) : list(tensors) {}
  std::span<const Tensor> list;
};
/// Memory that the slot allocates for the duration of the call.
struct Scratch {
  Tensor buffer;  // int64, at least scratch_bytes
  void* data() const { return buffer.defined() ? buffer.raw() : nullptr; }
};

/// Whether a kernel takes these operands; the reason is shown when it does not.
struct Support {
  bool ok = true;
  std::string reason;
  explicit operator bool() const { return ok; }
};

/// An aggregate of 4 to 11 operands, marked by `using KernelOperands = void;`. Members are roles,
/// other operand structs, plain arguments and references to them.
template <class T>
concept OperandStruct = requires {
  typename std::remove_cvref_t<T>::KernelOperands;
};

namespace detail {

// Converts to any member: only used to count members.
struct AnyOperand {
  template <class T>
  operator T() const;
};

template <class S, size_t... I>
constexpr bool initialised_by(std::index_sequence<I...>) {
  return requires {
    S{((void)I, AnyOperand{})...};
  };
}
template <class S, size_t most = 16>
consteval size_t member_count() {
  if constexpr (initialised_by<S>(std::make_index_sequence<most>{})) {
    return most;
  } else {
    return member_count<S, most - 1>();
  }
}

/// References to the members, in order.
template <OperandStruct S>
auto members(const S& s) {
  constexpr size_t n = member_count<S>();
  if constexpr (n == 4) {
    const auto& [a, b, c, d] = s;
    return std::tie(a, b, c, d);
  } else if constexpr (n == 5) {
    const auto& [a, b, c, d, e] = s;
    return std::tie(a, b, c, d, e);
  } else if constexpr (n == 6) {
    const auto& [a, b, c, d, e, f] = s;
    return std::tie(a, b, c, d, e, f);
  } else if constexpr (n == 7) {
    const auto& [a, b, c, d, e, f, g] = s;
    return std::tie(a, b, c, d, e, f, g);
  } else if constexpr (n == 8) {
    const auto& [a, b, c, d, e, f, g, h] = s;
    return std::tie(a, b, c, d, e, f, g, h);
  } else if constexpr (n == 9) {
    const auto& [a, b, c, d, e, f, g, h, i] = s;
    return std::tie(a, b, c, d, e, f, g, h, i);
  } else if constexpr (n == 10) {
    const auto& [a, b, c, d, e, f, g, h, i, j] = s;
    return std::tie(a, b, c, d, e, f, g, h, i, j);
  } else {
    static_assert(n == 11, "operand structs have 4 to 11 members; extend members()");
    const auto& [a, b, c, d, e, f, g, h, i, j, k] = s;
    return std::tie(a, b, c, d, e, f, g, h, i, j, k);
  }
}

/// Calls f with each operand, those inside structs included.
template <class F, class T>
void for_each_operand(const T& operand, F&& f) {
  if constexpr (OperandStruct<T>) {
    std::apply([&](const auto&... member) { (for_each_operand(member, f), ...); },
               members(operand));
  } else {
    f(operand);
  }
}

}  // namespace detail
}  // namespace macgrad
