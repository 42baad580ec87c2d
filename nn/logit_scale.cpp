#include "macgrad/nn/logit_scale.h"

#include <cmath>

#include "macgrad/autograd/ops.h"
#include "macgrad/nn/dot_product_kernels.h"

namespace macgrad::nn {

namespace {

double start_of_theta(double initial, double limit) {
  if (std::isinf(limit)) return std::log(initial);
  return std::log(initial / (limit - initial));
}

}  // namespace

LogitScale::LogitScale(Module* parent, std::string name, double initial, bool trained,
                       double radius, int64_t head_dim)
    : Module(parent, std::move(name)),
      fixed_(initial),
      limit_(max_logit_scale(radius, head_dim)),
      head_dim_(head_dim) {
  require(initial > 0.0 && std::isfinite(initial), "[logit_scale] is {} and must be positive",
          initial);
  if (!trained) return;
  require(initial < limit_,
          "[logit_scale] starts at {}, but training keeps it below 0.95·radius·√head_dim = {:.4g}; "
          "start lower",
          initial, limit_);
  theta.emplace(this, "theta", Tensor::full(Shape{1}, start_of_theta(initial, limit_)),
                ParameterOptions{false, {}});
}

double LogitScale::value() const {
  if (!theta) return fixed_;
  const double t = theta->value().item();
  return std::isinf(limit_) ? std::exp(t) : limit_ / (1.0 + std::exp(-t));
}

Variable LogitScale::trained_value() const {
  const Variable wide = cast(*theta, compute_dtype(theta->dtype()));
  return std::isinf(limit_) ? exp(wide) : mul(sigmoid(wide), limit_);
}

Variable LogitScale::apply(const Variable& x, double relative_to,
                           const Tensor& live_relative_to) const {
  if (!theta) return fixed_ == relative_to ? x : mul(x, fixed_ / relative_to);
  const auto in_scope = scope();
  // One rounding to x's dtype: τ and what it is divided by are close.
  const Variable tau = trained_value();
  const Variable factor = live_relative_to.defined()
                              ? div(tau, Variable(live_relative_to.to(tau.dtype())))
                              : mul(tau, 1.0 / relative_to);
  return in_scope.result(mul(x, cast(factor, x.dtype())));
}

Variable LogitScale::apply_root(const Variable& x) const {
  if (!theta) return mul(x, root());
  const double root = std::pow(static_cast<double>(head_dim_), -0.25);
  const auto in_scope = scope();
  return in_scope.result(mul(x, cast(mul(sqrt(trained_value()), root), x.dtype())));
}

std::string LogitScale::describe() const {
  return fmt::format("logit scale {:.4g}{}", value(), trained() ? " (trained)" : "");
}

}  // namespace macgrad::nn
