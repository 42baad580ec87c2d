// Kernels of pairs of rows, K(x, y) = r(x)·r(y)·f(x·y): a dot-product kernel f and a factor r of
// the norm of each row. Rows are scaled as in attention, x = √τ·q/d^¼ and y = √τ·k/d^¼, so that x·y
// = τ·q·k/√d. A pair kernel is what exact attention computes and what a feature map estimates.
#pragma once

#include <functional>
#include <string>
#include <utility>

#include "macgrad/nn/dot_product_kernels.h"

namespace macgrad::nn {

class PairKernel {
 public:
  /// r = 1: the kernel depends on x·y alone.
  PairKernel(DotProductKernel f);
  /// r = 1 under another name.
  PairKernel(std::string name, std::string formula, DotProductKernel f);
  /// `log_factor` is log r as a function of |x|², called with double and Variable.
  template <class R>
  PairKernel(std::string name, std::string formula, DotProductKernel f, R log_factor)
      : name_(std::move(name)),
        formula_(std::move(formula)),
        f_(std::move(f)),
        log_factor_value_([log_factor](double squared) { return log_factor(squared); }),
        log_factor_graph_(
            [log_factor](const Variable& squared) -> Variable { return log_factor(squared); }) {}

  const std::string& name() const { return name_; }
  const std::string& formula() const { return formula_; }
  /// f.
  const DotProductKernel& function() const { return f_; }
  double radius() const { return f_.radius(); }
  /// Whether r is not 1 everywhere.
  bool has_factor() const { return log_factor_value_ != nullptr; }
  /// log r of every row: x (…, d) -> (…) of x's dtype. Undefined without a factor.
  Variable log_factor(const Variable& x) const;
  double log_factor(double squared_norm) const;
  /// K for rows with |x|², |y|² and x·y.
  double operator()(double squared_x, double squared_y, double dot) const;

 private:
  std::string name_, formula_;
  DotProductKernel f_;
  std::function<double(double)> log_factor_value_;
  std::function<Variable(const Variable&)> log_factor_graph_;
};

/// "softmax" is exp(x·y), "gaussian" exp(-|x - y|²/2); every dot_product_kernel() is a pair kernel,
/// too. Throws an Error that lists the names.
PairKernel pair_kernel(const std::string& name);
/// Names for help texts.
std::string pair_kernel_names();

/// Whether K(x, y) = r(x)·r(y)·exp(x·y), which softmax attention computes and maps of Gaussian
/// projections estimate.
bool is_exponential(const PairKernel& kernel);

/// Σ x² over the last dimension: x (…, d) -> (…).
Variable squared_norm(const Variable& x);

}  // namespace macgrad::nn
