// How products and attention tiles round their float32 inputs. Storage and accumulation stay
// float32 whatever is chosen; float64 is never touched.
#pragma once

#include <string>

namespace macgrad::cuda {

enum class MathMode {
  exact,  // float32 means float32
  tf32,   // inputs rounded to 10 bits of mantissa
  bf16,   // inputs rounded to bfloat16
};

MathMode math_mode();
void set_math_mode(MathMode mode);

}  // namespace macgrad::cuda
