// Dot-product kernels K(x, y) = f(x·y), f(t) = Σ a_N t^N with a_N >= 0 (Macformer, arXiv
// 2408.11656, Table 1, with its misprints corrected). A kernel is one entry of the table in
// dot_product_kernels.cpp: f as a generic callable. Evaluated on a power series it gives the
// coefficients, on a double the value, on a Variable exact attention.
#pragma once

#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "macgrad/autograd/ops.h"
#include "macgrad/nn/power_series.h"

namespace macgrad::nn {

/// Coefficients are known up to this degree; it is also the largest degree a feature may have.
inline constexpr int64_t kMaxDegree = 512;
inline constexpr double kEverywhere = std::numeric_limits<double>::infinity();

class DotProductKernel {
 public:
  /// `f` is called with double, PowerSeries and Variable. `radius`: f equals its series for |t| <
  /// radius (kEverywhere for all t). Throws an Error naming the kernel when a coefficient is
  /// negative beyond rounding or not finite, or when the series does not meet f at 0.9 of the
  /// radius.
  template <class F>
  DotProductKernel(std::string name, std::string formula, double radius, F f)
      : DotProductKernel(std::move(name), std::move(formula), radius,
                         f(PowerSeries::variable(static_cast<size_t>(kMaxDegree))),
                         std::function<double(double)>([f](double t) { return f(t); }),
                         std::function<Variable(const Variable&)>(
                             [f](const Variable& t) -> Variable { return f(t); })) {}

  const std::string& name() const { return name_; }
  /// f as text, for listings.
  const std::string& formula() const { return formula_; }
  double radius() const { return radius_; }
  /// a_0 … a_kMaxDegree.
  const std::vector<double>& coefficients() const { return *coefficients_; }
  double coefficient(int64_t degree) const { return (*coefficients_)[static_cast<size_t>(degree)]; }
  /// A_n = a_n scaleⁿ, equation (2) with scale = τ/√d; finite also where the power alone is not.
  double coefficient(int64_t degree, double scale) const;
  double operator()(double t) const { return value_(t); }
  /// f of every element, differentiable.
  Variable operator()(const Variable& t) const { return graph_(t); }

 private:
  DotProductKernel(std::string name, std::string formula, double radius, const PowerSeries& series,
                   std::function<double(double)> value,
                   std::function<Variable(const Variable&)> graph);

  std::string name_;
  std::string formula_;
  double radius_;
  std::shared_ptr<const std::vector<double>> coefficients_;
  std::function<double(double)> value_;
  std::function<Variable(const Variable&)> graph_;
};

/// The registered kernels, in the order of the table.
const std::vector<DotProductKernel>& dot_product_kernels();

/// The kernel of that name, or the polynomial "poly:c=C,k=K", (C + t)^K with C >= 0 and whole
/// K >= 1. Throws an Error that lists the names.
DotProductKernel dot_product_kernel(const std::string& name);

/// Names for help texts: "exp, inv, log, trigh, sqrt, poly:c=C,k=K".
std::string dot_product_kernel_names();

/// Unit-norm queries and keys give |t| <= logit_scale/√head_dim, which must stay inside the radius.
/// Throws an Error otherwise, or when logit_scale is not positive.
void check_domain(const DotProductKernel& kernel, double logit_scale, int64_t head_dim);

/// Largest value of a trained logit scale: 0.95·radius·√head_dim (infinite for an infinite radius).
double max_logit_scale(double radius, int64_t head_dim);

}  // namespace macgrad::nn
