// Elementwise formulas, each once, as functors that g++ and nvcc both compile. The lists below,
// whose further arguments are passed on to X, make the slots, the CPU loops and the CUDA kernels. A
// new op is a functor and a name in a list here, a gradient line in autograd/ops_elementwise.cpp,
// its declaration in autograd/ops.h and a row in tests/op_cases.
#pragma once

#include "macgrad/core/vector_math.h"

namespace macgrad {

// clang-format off
#define MACGRAD_UNARY_OPS(X, ...) \
  X(neg, __VA_ARGS__) \
  X(abs, __VA_ARGS__) \
  X(sign, __VA_ARGS__) \
  X(exp, __VA_ARGS__) \
  X(expm1, __VA_ARGS__) \
  X(log, __VA_ARGS__) \
  X(log1p, __VA_ARGS__) \
  X(sqrt, __VA_ARGS__) \
  X(rsqrt, __VA_ARGS__) \
  X(reciprocal, __VA_ARGS__) \
  X(sin, __VA_ARGS__) \
  X(cos, __VA_ARGS__) \
  X(tanh, __VA_ARGS__) \
  X(sigmoid, __VA_ARGS__) \
  X(relu, __VA_ARGS__) \
  X(gelu, __VA_ARGS__) \
  X(gelu_tanh, __VA_ARGS__) \
  X(erf, __VA_ARGS__)
#define MACGRAD_BINARY_OPS(X, ...) \
  X(add, __VA_ARGS__) \
  X(sub, __VA_ARGS__) \
  X(mul, __VA_ARGS__) \
  X(div, __VA_ARGS__) \
  X(maximum, __VA_ARGS__) \
  X(minimum, __VA_ARGS__) \
  X(pow, __VA_ARGS__) \
  X(signed_pow, __VA_ARGS__) \
  X(relu_grad, __VA_ARGS__)
#define MACGRAD_COMPARE_OPS(X, ...) \
  X(equal, __VA_ARGS__) \
  X(not_equal, __VA_ARGS__) \
  X(less, __VA_ARGS__) \
  X(less_equal, __VA_ARGS__) \
  X(greater, __VA_ARGS__) \
  X(greater_equal, __VA_ARGS__)
// clang-format on

namespace scalar {

#define MACGRAD_UNARY(name, expression)  \
  struct name {                          \
    template <class T>                   \
    MACGRAD_HD T operator()(T x) const { \
      return expression;                 \
    }                                    \
  };
MACGRAD_UNARY(neg, -x)
MACGRAD_UNARY(abs, math::fabs(x))
// NaN stays NaN; both zeros give 0.
MACGRAD_UNARY(sign, x > T(0) ? T(1) : (x < T(0) ? T(-1) : x * T(0)))
MACGRAD_UNARY(exp, math::exp(x))
MACGRAD_UNARY(expm1, math::expm1(x))
MACGRAD_UNARY(log, math::log(x))
MACGRAD_UNARY(log1p, math::log1p(x))
MACGRAD_UNARY(sqrt, math::sqrt(x))
MACGRAD_UNARY(rsqrt, T(1) / math::sqrt(x))
MACGRAD_UNARY(reciprocal, T(1) / x)
MACGRAD_UNARY(sin, math::sin(x))
MACGRAD_UNARY(cos, math::cos(x))
MACGRAD_UNARY(tanh, math::tanh(x))
MACGRAD_UNARY(sigmoid, T(1) / (T(1) + math::exp(-x)))
// NaN stays NaN.
MACGRAD_UNARY(relu, x < T(0) ? T(0) : x)
// Hendrycks & Gimpel 2016: x·Φ(x), and its tanh approximation.
MACGRAD_UNARY(gelu, T(0.5) * x * (T(1) + math::erf(x * T(0.70710678118654752440))))
MACGRAD_UNARY(gelu_tanh,
              T(0.5) * x *
                  (T(1) + math::tanh(T(0.79788456080286535588) * (x + T(0.044715) * x * x * x))))
MACGRAD_UNARY(erf, math::erf(x))
#undef MACGRAD_UNARY

#define MACGRAD_BINARY(name, result, expression)   \
  struct name {                                    \
    template <class T>                             \
    MACGRAD_HD result operator()(T a, T b) const { \
      return expression;                           \
    }                                              \
  };
MACGRAD_BINARY(add, T, a + b)
MACGRAD_BINARY(sub, T, a - b)
MACGRAD_BINARY(mul, T, a* b)
MACGRAD_BINARY(div, T, a / b)
// NaN on either side gives NaN.
MACGRAD_BINARY(maximum, T, (a > b || a != a) ? a : b)
MACGRAD_BINARY(minimum, T, (a < b || a != a) ? a : b)
MACGRAD_BINARY(pow, T, math::pow(a, b))
// sign(a)·|a|^b.
MACGRAD_BINARY(signed_pow, T, a < T(0) ? -math::pow(-a, b) : math::pow(a, b))
// Gradient b of relu at a.
MACGRAD_BINARY(relu_grad, T, a > T(0) ? b : T(0))
MACGRAD_BINARY(equal, bool, a == b)
MACGRAD_BINARY(not_equal, bool, a != b)
MACGRAD_BINARY(less, bool, a < b)
MACGRAD_BINARY(less_equal, bool, a <= b)
MACGRAD_BINARY(greater, bool, a > b)
MACGRAD_BINARY(greater_equal, bool, a >= b)
#undef MACGRAD_BINARY

}  // namespace scalar
}  // namespace macgrad
