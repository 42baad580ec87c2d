// Initial values of parameters. Each is a pure function of a draw key, so a model's seed fixes
// every weight whatever the thread count.
#pragma once

#include "macgrad/core/generator.h"
#include "macgrad/core/tensor.h"

namespace macgrad::nn {

/// Uniform in ±gain·√(6/(fan_in + fan_out)) (Glorot & Bengio 2010); shape (out, in) or any other
/// matrix. float32.
Tensor xavier_uniform(const Shape& shape, Generator& random, double gain = 1.0);
/// Normal with mean 0. float32.
Tensor normal(const Shape& shape, Generator& random, double deviation);
/// Uniform in [low, high). float32.
Tensor uniform(const Shape& shape, Generator& random, double low, double high);

}  // namespace macgrad::nn
