// The named pair kernels besides the dot-product kernels.
#include "macgrad/nn/pair_kernel.h"

#include <cmath>
#include <vector>

namespace macgrad::nn {

namespace {

const std::vector<PairKernel>& table() {
  static const std::vector<PairKernel> kernels = {
      {"softmax", "exp(x·y)", dot_product_kernel("exp")},
      {"gaussian", "exp(-|x - y|²/2)", dot_product_kernel("exp"),
       [](const auto& squared) { return -0.5 * squared; }},
  };
  return kernels;
}

}  // namespace

PairKernel::PairKernel(DotProductKernel f) : PairKernel(f.name(), f.formula(), f) {}

PairKernel::PairKernel(std::string name, std::string formula, DotProductKernel f)
    : name_(std::move(name)), formula_(std::move(formula)), f_(std::move(f)) {}

Variable PairKernel::log_factor(const Variable& x) const {
  return has_factor() ? log_factor_graph_(squared_norm(x)) : Variable();
}

double PairKernel::log_factor(double squared_norm) const {
  return has_factor() ? log_factor_value_(squared_norm) : 0.0;
}

double PairKernel::operator()(double squared_x, double squared_y, double dot) const {
  return std::exp(log_factor(squared_x) + log_factor(squared_y)) * f_(dot);
}

PairKernel pair_kernel(const std::string& name) {
  for (const PairKernel& kernel : table())
    if (kernel.name() == name) return kernel;
  try {
    return dot_product_kernel(name);
  } catch (const Error&) {
    if (name.starts_with("poly:")) throw;
    throw Error("[kernel] there is no kernel '{}'; use one of {}", name, pair_kernel_names());
  }
}

std::string pair_kernel_names() {
  std::string names;
  for (const PairKernel& kernel : table()) names += kernel.name() + ", ";
  return names + dot_product_kernel_names();
}

bool is_exponential(const PairKernel& kernel) {
  double factorial = 1.0;
  for (int64_t n = 0; n < 20; ++n) {
    if (std::abs(kernel.function().coefficient(n) * factorial - 1.0) > 1e-12) return false;
    factorial *= static_cast<double>(n + 1);
  }
  return true;
}

Variable squared_norm(const Variable& x) {
  return sum(mul(x, x), {-1});
}

}  // namespace macgrad::nn
