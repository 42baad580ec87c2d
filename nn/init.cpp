// Initial values, made by the random kernels on the CPU.
#include "macgrad/nn/init.h"

#include <cmath>

#include "macgrad/autograd/ops.h"

namespace macgrad::nn {

Tensor uniform(const Shape& shape, Generator& random, double low, double high) {
  return add(mul(Variable(Tensor::rand(shape, random)), high - low), low).value();
}

Tensor normal(const Shape& shape, Generator& random, double deviation) {
  return mul(Variable(Tensor::randn(shape, random)), deviation).value();
}

Tensor xavier_uniform(const Shape& shape, Generator& random, double gain) {
  require(shape.rank() == 2, "[xavier_uniform] needs a matrix, got {}", shape);
  const double bound = gain * std::sqrt(6.0 / static_cast<double>(shape[0] + shape[1]));
  return uniform(shape, random, -bound, bound);
}

}  // namespace macgrad::nn
