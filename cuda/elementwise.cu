// Elementwise kernels over any strides, from the functor lists of core/scalar_ops.h. Contiguous
// operands go 16 bytes at a time; others find their offsets by division (strided.h).
#include "macgrad/core/kernels/elementwise.h"
#include "macgrad/cuda/device_code.cuh"
#include "macgrad/cuda/launch.h"
#include "macgrad/cuda/strided.h"

namespace macgrad::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kPerThread = 4;  // elements of a strided kernel's thread

// ---- contiguous: kLane elements a load

template <class T>
inline constexpr int kLane = static_cast<int>(16 / sizeof(T));

template <class T, int lane>
struct alignas(sizeof(T) * lane) Pack {
  T v[lane];
};

bool aligned(const void* p) {
  return reinterpret_cast<uintptr_t>(p) % 16 == 0;
}

template <class T, class R, class F>
__global__ void unary_contiguous(const T* __restrict__ x, R* __restrict__ y, int64_t n, F f) {
  constexpr int lane = kLane<T>;
  const int64_t packs = n / lane;
  for (int64_t i = thread_index(); i < packs; i += thread_count()) {
    const auto in = reinterpret_cast<const Pack<T, lane>*>(x)[i];
    Pack<R, lane> out;
#pragma unroll
    for (int j = 0; j < lane; ++j) out.v[j] = static_cast<R>(f(load(&in.v[j])));
    reinterpret_cast<Pack<R, lane>*>(y)[i] = out;
  }
  const int64_t rest = packs * lane + thread_index();
  if (rest < n) y[rest] = static_cast<R>(f(load(x + rest)));
}

template <class T, class R, class F>
__global__ void binary_contiguous(const T* __restrict__ a, const T* __restrict__ b,
                                  R* __restrict__ y, int64_t n, F f) {
  constexpr int lane = kLane<T>;
  const int64_t packs = n / lane;
  for (int64_t i = thread_index(); i < packs; i += thread_count()) {
    const auto left = reinterpret_cast<const Pack<T, lane>*>(a)[i];
    const auto right = reinterpret_cast<const Pack<T, lane>*>(b)[i];
    Pack<R, lane> out;
#pragma unroll
    for (int j = 0; j < lane; ++j)
      out.v[j] = static_cast<R>(f(load(&left.v[j]), load(&right.v[j])));
    reinterpret_cast<Pack<R, lane>*>(y)[i] = out;
  }
  const int64_t rest = packs * lane + thread_index();
  if (rest < n) y[rest] = static_cast<R>(f(load(a + rest), load(b + rest)));
}

// ---- any strides

template <class T, class R, class F>
__global__ void unary_strided(const T* x, R* y, Strided<2> shape, F f) {
  const auto count = static_cast<int64_t>(shape.count);
  for (int64_t i = thread_index(); i < count; i += thread_count()) {
    int64_t at[2];
    shape.offsets(static_cast<uint32_t>(i), at);
    y[at[1]] = static_cast<R>(f(load(x + at[0])));
  }
}

template <class T, class R, class F>
__global__ void binary_strided(const T* a, const T* b, R* y, Strided<3> shape, F f) {
  const auto count = static_cast<int64_t>(shape.count);
  for (int64_t i = thread_index(); i < count; i += thread_count()) {
    int64_t at[3];
    shape.offsets(static_cast<uint32_t>(i), at);
    y[at[2]] = static_cast<R>(f(load(a + at[0]), load(b + at[1])));
  }
}

template <class T>
__global__ void where_strided(const bool* c, const T* a, const T* b, T* y, Strided<4> shape) {
  const auto count = static_cast<int64_t>(shape.count);
  for (int64_t i = thread_index(); i < count; i += thread_count()) {
    int64_t at[4];
    shape.offsets(static_cast<uint32_t>(i), at);
    y[at[3]] = c[at[0]] ? a[at[1]] : b[at[2]];
  }
}

LaunchShape over(int64_t elements, int64_t per_thread) {
  return {blocks_strided(elements, kThreads * per_thread), kThreads};
}

template <class T, class R, class F>
void unary(const Tensor& x, const Tensor& y, F f) {
  const T* px = x.data<T>();
  R* py = y.data<R>();
  for (const auto& [shape, start] : strided_parts<2>({&x, &y})) {
    const T* from = px + start[0];
    R* to = py + start[1];
    if (shape.contiguous() && aligned(from) && aligned(to)) {
      launch(unary_contiguous<T, R, F>, over(shape.count, kLane<T>), from, to,
             static_cast<int64_t>(shape.count), f);
    } else {
      launch(unary_strided<T, R, F>, over(shape.count, kPerThread), from, to, shape, f);
    }
  }
}

template <class T, class R, class F>
void binary(const Tensor& a, const Tensor& b, const Tensor& y, F f) {
  const T* pa = a.data<T>();
  const T* pb = b.data<T>();
  R* py = y.data<R>();
  for (const auto& [shape, start] : strided_parts<3>({&a, &b, &y})) {
    const T *left = pa + start[0], *right = pb + start[1];
    R* to = py + start[2];
    if (shape.contiguous() && aligned(left) && aligned(right) && aligned(to)) {
      launch(binary_contiguous<T, R, F>, over(shape.count, kLane<T>), left, right, to,
             static_cast<int64_t>(shape.count), f);
    } else {
      launch(binary_strided<T, R, F>, over(shape.count, kPerThread), left, right, to, shape, f);
    }
  }
}

template <class F>
void compare(const char* op, const Tensor& a, const Tensor& b, const Tensor& y, F f) {
  if (a.dtype() == DType::int64) return binary<int64_t, bool>(a, b, y, f);
  dispatch_floating(a.dtype(), op, [&]<class T>() { binary<T, bool>(a, b, y, f); });
}

}  // namespace

#define MACGRAD_DEFINE(op, ...)                                                              \
  void op(In x, Out y) {                                                                     \
    dispatch_floating(x->dtype(), #op, [&]<class T>() { unary<T, T>(x, y, scalar::op{}); }); \
  }
MACGRAD_UNARY_OPS(MACGRAD_DEFINE)
#undef MACGRAD_DEFINE
#define MACGRAD_DEFINE(op, ...)                                                                  \
  void op(In a, In b, Out y) {                                                                   \
    dispatch_floating(a->dtype(), #op, [&]<class T>() { binary<T, T>(a, b, y, scalar::op{}); }); \
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
  const bool* pc = condition->data<bool>();
  dispatch_any(a->dtype(), [&]<class T>() {
    const T* pa = a->data<T>();
    const T* pb = b->data<T>();
    T* py = y->data<T>();
    for (const auto& [shape, start] : strided_parts<4>({&condition.t, &a.t, &b.t, &y.t}))
      launch(where_strided<T>, over(shape.count, kPerThread), pc + start[0], pa + start[1],
             pb + start[2], py + start[3], shape);
  });
}

}  // namespace macgrad::cuda
