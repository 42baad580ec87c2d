// Elementary functions that g++ can vectorise inside `#pragma omp simd` loops: glibc's vector
// variants (libmvec), declared here because <cmath> only declares them under -ffast-math, which
// would break NaN checks. CMake tries each one and writes vector_math_config.h; absent ones stay
// scalar. Device code gets CUDA's own functions.
#pragma once

#include <cmath>

#if __has_include("macgrad/vector_math_config.h")
#include "macgrad/vector_math_config.h"
#else
#define MACGRAD_VEC_EXPF 0
#define MACGRAD_VEC_EXP 0
#define MACGRAD_VEC_LOGF 0
#define MACGRAD_VEC_LOG 0
#define MACGRAD_VEC_TANHF 0
#define MACGRAD_VEC_TANH 0
#define MACGRAD_VEC_ERFF 0
#define MACGRAD_VEC_ERF 0
#define MACGRAD_VEC_LOG1PF 0
#define MACGRAD_VEC_LOG1P 0
#define MACGRAD_VEC_EXPM1F 0
#define MACGRAD_VEC_EXPM1 0
#define MACGRAD_VEC_SINF 0
#define MACGRAD_VEC_SIN 0
#define MACGRAD_VEC_COSF 0
#define MACGRAD_VEC_COS 0
#define MACGRAD_VEC_POWF 0
#define MACGRAD_VEC_POW 0
#endif

#if !defined(__CUDACC__)
extern "C" {
#if MACGRAD_VEC_EXPF
#pragma omp declare simd notinbranch
float expf(float) noexcept;
#endif
#if MACGRAD_VEC_EXP
#pragma omp declare simd notinbranch
double exp(double) noexcept;
#endif
#if MACGRAD_VEC_LOGF
#pragma omp declare simd notinbranch
float logf(float) noexcept;
#endif
#if MACGRAD_VEC_LOG
#pragma omp declare simd notinbranch
double log(double) noexcept;
#endif
#if MACGRAD_VEC_TANHF
#pragma omp declare simd notinbranch
float tanhf(float) noexcept;
#endif
#if MACGRAD_VEC_TANH
#pragma omp declare simd notinbranch
double tanh(double) noexcept;
#endif
#if MACGRAD_VEC_ERFF
#pragma omp declare simd notinbranch
float erff(float) noexcept;
#endif
#if MACGRAD_VEC_ERF
#pragma omp declare simd notinbranch
double erf(double) noexcept;
#endif
#if MACGRAD_VEC_LOG1PF
#pragma omp declare simd notinbranch
float log1pf(float) noexcept;
#endif
#if MACGRAD_VEC_LOG1P
#pragma omp declare simd notinbranch
double log1p(double) noexcept;
#endif
#if MACGRAD_VEC_EXPM1F
#pragma omp declare simd notinbranch
float expm1f(float) noexcept;
#endif
#if MACGRAD_VEC_EXPM1
#pragma omp declare simd notinbranch
double expm1(double) noexcept;
#endif
#if MACGRAD_VEC_SINF
#pragma omp declare simd notinbranch
float sinf(float) noexcept;
#endif
#if MACGRAD_VEC_SIN
#pragma omp declare simd notinbranch
double sin(double) noexcept;
#endif
#if MACGRAD_VEC_COSF
#pragma omp declare simd notinbranch
float cosf(float) noexcept;
#endif
#if MACGRAD_VEC_COS
#pragma omp declare simd notinbranch
double cos(double) noexcept;
#endif
#if MACGRAD_VEC_POWF
#pragma omp declare simd notinbranch
float powf(float, float) noexcept;
#endif
#if MACGRAD_VEC_POW
#pragma omp declare simd notinbranch
double pow(double, double) noexcept;
#endif
}
#endif

#include "macgrad/core/host_device.h"

namespace macgrad::math {

// Overloads by type that reach the declarations above (std:: would not).
#define MACGRAD_MATH1(fn)                 \
  MACGRAD_HD inline float fn(float x) {   \
    return ::fn##f(x);                    \
  }                                       \
  MACGRAD_HD inline double fn(double x) { \
    return ::fn(x);                       \
  }
MACGRAD_MATH1(exp)
MACGRAD_MATH1(expm1)
MACGRAD_MATH1(log)
MACGRAD_MATH1(log1p)
MACGRAD_MATH1(tanh)
MACGRAD_MATH1(erf)
MACGRAD_MATH1(sin)
MACGRAD_MATH1(cos)
MACGRAD_MATH1(sqrt)
MACGRAD_MATH1(fabs)
#undef MACGRAD_MATH1
MACGRAD_HD inline float pow(float x, float y) {
  return ::powf(x, y);
}
MACGRAD_HD inline double pow(double x, double y) {
  return ::pow(x, y);
}
/// x·y + z with one rounding, where a compiler that chooses for itself would not choose alike in
/// two places.
MACGRAD_HD inline float fma(float x, float y, float z) {
  return ::fmaf(x, y, z);
}
MACGRAD_HD inline double fma(double x, double y, double z) {
  return ::fma(x, y, z);
}

}  // namespace macgrad::math
