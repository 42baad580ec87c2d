// Elementwise loops over any strides. Dimensions that lie evenly in all operands are merged first,
// so that the inner loop is long; it has fast forms for contiguous and broadcast operands, which
// g++ vectorises (vector_math.h).

#include <algorithm>
#include <array>

#include "macgrad/core/cpu/parallel.h"
#include "macgrad/core/cpu/strided.h"
#include "macgrad/core/kernels/elementwise.h"

namespace macgrad::cpu {
namespace {

template <class T, class F, class R>
void unary_row(const T* x, int64_t sx, R* y, int64_t sy, int64_t n, F f) {
  using C = compute_t<T>;
  if (sx == 1 && sy == 1) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) y[i] = static_cast<R>(f(static_cast<C>(x[i])));
  } else {
    for (int64_t i = 0; i < n; ++i) y[i * sy] = static_cast<R>(f(static_cast<C>(x[i * sx])));
  }
}

template <class T, class F, class R>
void binary_row(const T* a, int64_t sa, const T* b, int64_t sb, R* y, int64_t sy, int64_t n, F f) {
  using C = compute_t<T>;
  if (sa == 1 && sb == 1 && sy == 1) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i)
      y[i] = static_cast<R>(f(static_cast<C>(a[i]), static_cast<C>(b[i])));
  } else if (sa == 1 && sb == 0 && sy == 1) {
    const C v = static_cast<C>(b[0]);
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) y[i] = static_cast<R>(f(static_cast<C>(a[i]), v));
  } else if (sa == 0 && sb == 1 && sy == 1) {
    const C v = static_cast<C>(a[0]);
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) y[i] = static_cast<R>(f(v, static_cast<C>(b[i])));
  } else {
    for (int64_t i = 0; i < n; ++i)
      y[i * sy] = static_cast<R>(f(static_cast<C>(a[i * sa]), static_cast<C>(b[i * sb])));
  }
}

template <class F>
void unary(const char* op, const Tensor& x, const Tensor& y, F f) {
  const auto plan = plan_loops<2>({&x, &y});
  dispatch_floating(x.dtype(), op, [&]<class T>() {
    const T* px = x.data<T>();
    T* py = y.data<T>();
    run_loops(plan, [&](const std::array<int64_t, 2>& at, int64_t n) {
      unary_row(px + at[0], plan.inner[0], py + at[1], plan.inner[1], n, f);
    });
  });
}

template <class R, class T, class F>
void binary_typed(const Tensor& a, const Tensor& b, const Tensor& y, F f) {
  const auto plan = plan_loops<3>({&a, &b, &y});
  const T* pa = a.data<T>();
  const T* pb = b.data<T>();
  R* py = y.data<R>();
  run_loops(plan, [&](const std::array<int64_t, 3>& at, int64_t n) {
    binary_row(pa + at[0], plan.inner[0], pb + at[1], plan.inner[1], py + at[2], plan.inner[2], n,
               f);
  });
}

template <class F>
void binary(const char* op, const Tensor& a, const Tensor& b, const Tensor& y, F f) {
  dispatch_floating(a.dtype(), op, [&]<class T>() { binary_typed<T, T>(a, b, y, f); });
}

template <class F>
void compare(const char* op, const Tensor& a, const Tensor& b, const Tensor& y, F f) {
  if (a.dtype() == DType::int64) return binary_typed<bool, int64_t>(a, b, y, f);
  dispatch_floating(a.dtype(), op, [&]<class T>() { binary_typed<bool, T>(a, b, y, f); });
}

}  // namespace

#define MACGRAD_DEFINE(op, ...)     \
  void op(In x, Out y) {            \
    unary(#op, x, y, scalar::op{}); \
  }
MACGRAD_UNARY_OPS(MACGRAD_DEFINE)
#undef MACGRAD_DEFINE
#define MACGRAD_DEFINE(op, ...)         \
  void op(In a, In b, Out y) {          \
    binary(#op, a, b, y, scalar::op{}); \
  }
MACGRAD_BINARY_OPS(MACGRAD_DEFINE)
#undef MACGRAD_DEFINE
#define MACGRAD_DEFINE(op, ...)          \
  void op(In a, In b, Out y) {           \
    compare(#op, a, b, y, scalar::op{}); \
  }
MACGRAD_COMPARE_OPS(MACGRAD_DEFINE)
#undef MACGRAD_DEFINE

void where(In condition, In a, In b, Out y) {
  const auto plan = plan_loops<4>({&condition.t, &a.t, &b.t, &y.t});
  const bool* pc = condition->data<bool>();
  dispatch_any(a->dtype(), [&]<class T>() {
    const T* pa = a->data<T>();
    const T* pb = b->data<T>();
    T* py = y->data<T>();
    const auto s = plan.inner;
    run_loops(plan, [&](const std::array<int64_t, 4>& at, int64_t n) {
      const bool* c = pc + at[0];
      const T* x = pa + at[1];
      const T* z = pb + at[2];
      T* out = py + at[3];
      for (int64_t i = 0; i < n; ++i) out[i * s[3]] = c[i * s[0]] ? x[i * s[1]] : z[i * s[2]];
    });
  });
}

}  // namespace macgrad::cpu
