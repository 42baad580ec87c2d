// Elementwise ops and their gradient rules, forward and rule side by side.

#include <cmath>

#include "macgrad/autograd/op_support.h"
#include "macgrad/core/kernels/arrays.h"
#include "macgrad/core/kernels/elementwise.h"
#include "macgrad/core/kernels/random.h"

namespace macgrad {
namespace {

using UnaryKernel = Kernel<void(In, Out)>;
using BinaryKernel = Kernel<void(In, In, Out)>;

Tensor run(const UnaryKernel& kernel, const Variable& x) {
  check_defined(kernel.name(), x);
  const Tensor& t = x.value();
  Tensor y = Tensor::empty(t.shape(), t.dtype(), t.device());
  kernel(t, y);
  return y;
}

Tensor run(const BinaryKernel& kernel, const Tensor& a, const Tensor& b, DType result) {
  check_same_kind(kernel.name(), a, b);
  const Shape shape =
      a.shape() == b.shape() ? a.shape() : broadcast(kernel.name(), a.shape(), b.shape());
  Tensor y = Tensor::empty(shape, result, a.device());
  kernel(a.expand(shape), b.expand(shape), y);
  return y;
}

Tensor run(const BinaryKernel& kernel, const Variable& a, const Variable& b) {
  check_defined(kernel.name(), a, "left operand");
  check_defined(kernel.name(), b, "right operand");
  return run(kernel, a.value(), b.value(), a.dtype());
}

Tensor compare(const BinaryKernel& kernel, const Tensor& a, const Tensor& b) {
  check(a.defined() && b.defined(), "[{}] an operand is undefined", kernel.name());
  return run(kernel, a, b, DType::boolean);
}

Variable number(double value, const Variable& like) {
  return Variable(Tensor::scalar(value, like.dtype(), like.device()));
}

// y = f(x) with dy/dx = rule(saved x).
template <class Rule>
Variable by_input(const UnaryKernel& kernel, const Variable& x, Rule rule) {
  return record(kernel.name(), {x}, run(kernel, x),
                Rules{[x = Saved(x), rule](const Variable& g, const VjpContext&) {
                  return mul(g, rule(x()));
                }});
}

// y = f(x) with dy/dx = rule(y).
template <class Rule>
Variable by_output(const UnaryKernel& kernel, const Variable& x, Rule rule) {
  return record(kernel.name(), {x}, run(kernel, x),
                Rules{[rule](const Variable& g, const VjpContext& ctx) {
                  return mul(g, rule(ctx.output()));
                }},
                {}, /*keep_outputs=*/true);
}

Variable pass(const Variable& g, const VjpContext&) {
  return g;
}
Variable zero_gradient(const Variable&, const VjpContext&) {
  return {};
}

}  // namespace

Variable add(const Variable& a, const Variable& b) {
  return record("add", {a, b}, run(kernels::add, a, b), Rules{pass, pass});
}

Variable sub(const Variable& a, const Variable& b) {
  return record("sub", {a, b}, run(kernels::sub, a, b),
                Rules{pass, [](const Variable& g, const VjpContext&) { return neg(g); }});
}

Variable mul(const Variable& a, const Variable& b) {
  Tensor y = run(kernels::mul, a, b);
  return record("mul", {a, b}, y,
                Rules{[b = Saved(b, a.requires_grad())](const Variable& g, const VjpContext&) {
                        return mul(g, b());
                      },
                      [a = Saved(a, b.requires_grad())](const Variable& g, const VjpContext&) {
                        return mul(g, a());
                      }});
}

Variable div(const Variable& a, const Variable& b) {
  return record("div", {a, b}, run(kernels::div, a, b),
                Rules{[b = Saved(b)](const Variable& g, const VjpContext&) { return div(g, b()); },
                      [b = Saved(b)](const Variable& g, const VjpContext& ctx) {
                        return neg(div(mul(g, ctx.output()), b()));
                      }},
                {}, b.requires_grad());
}

Variable neg(const Variable& x) {
  return record("neg", {x}, run(kernels::neg, x),
                Rules{[](const Variable& g, const VjpContext&) { return neg(g); }});
}

namespace {

// The side that wins takes the gradient; equal values share it half and half.
Variable extremum(const BinaryKernel& kernel, const Variable& a, const Variable& b,
                  Tensor (*wins)(const Tensor&, const Tensor&)) {
  const auto rule = [wins](const Saved& mine, const Saved& other) {
    return [mine, other, wins](const Variable& g, const VjpContext&) {
      const Tensor& m = mine().value();
      const Tensor& o = other().value();
      return where(equal(m, o), mul(g, 0.5), where(wins(m, o), g, zeros_like(g)));
    };
  };
  return record(kernel.name(), {a, b}, run(kernel, a, b),
                Rules{rule(Saved(a), Saved(b)), rule(Saved(b), Saved(a))});
}

}  // namespace

Variable maximum(const Variable& a, const Variable& b) {
  return extremum(kernels::maximum, a, b, greater);
}
Variable minimum(const Variable& a, const Variable& b) {
  return extremum(kernels::minimum, a, b, less);
}

Variable pow(const Variable& a, const Variable& b) {
  return record("pow", {a, b}, run(kernels::pow, a, b),
                Rules{[a = Saved(a), b = Saved(b)](const Variable& g, const VjpContext&) {
                        // Where b = 0 the function is constant; 0·a^-1 would be NaN at a = 0.
                        // Elsewhere b stays as it is, for the mixed second derivative.
                        const Tensor constant =
                            where(equal(a().value(), 0.0), Variable(equal(b().value(), 0.0)),
                                  Variable(Tensor::zeros({}, DType::boolean, b().device())))
                                .value();
                        return masked_fill(
                            mul(g, mul(b(), pow(a(), add(masked_fill(b(), constant, 1.0), -1.0)))),
                            constant, 0.0);
                      },
                      [a = Saved(a)](const Variable& g, const VjpContext& ctx) {
                        const Tensor zero = equal(a().value(), 0.0);
                        return masked_fill(
                            mul(g, mul(ctx.output(), log(masked_fill(a(), zero, 1.0)))), zero, 0.0);
                      }},
                {}, b.requires_grad());
}

Variable pow(const Variable& a, double exponent) {
  return pow(a, number(exponent, a));
}

Variable signed_pow(const Variable& a, const Variable& b) {
  return record("signed_pow", {a, b}, run(kernels::signed_pow, a, b),
                Rules{[a = Saved(a), b = Saved(b)](const Variable& g, const VjpContext&) {
                        return mul(g, mul(b(), pow(abs(a()), add(b(), -1.0))));
                      },
                      [a = Saved(a)](const Variable& g, const VjpContext& ctx) {
                        const Tensor zero = equal(a().value(), 0.0);
                        return masked_fill(
                            mul(g, mul(ctx.output(), log(masked_fill(abs(a()), zero, 1.0)))), zero,
                            0.0);
                      }},
                {}, b.requires_grad());
}

Variable exp(const Variable& x) {
  return by_output(kernels::exp, x, [](const Variable& y) { return y; });
}
Variable expm1(const Variable& x) {
  return by_output(kernels::expm1, x, [](const Variable& y) { return y + 1.0; });
}
Variable log(const Variable& x) {
  return by_input(kernels::log, x, reciprocal);
}
Variable log1p(const Variable& x) {
  return by_input(kernels::log1p, x, [](const Variable& v) { return reciprocal(v + 1.0); });
}
Variable sqrt(const Variable& x) {
  return by_output(kernels::sqrt, x, [](const Variable& y) { return 0.5 * reciprocal(y); });
}
Variable rsqrt(const Variable& x) {
  return by_output(kernels::rsqrt, x, [](const Variable& y) { return -0.5 * (y * y * y); });
}
Variable reciprocal(const Variable& x) {
  return by_output(kernels::reciprocal, x, [](const Variable& y) { return -(y * y); });
}
Variable abs(const Variable& x) {
  return by_input(kernels::abs, x, sign);
}
Variable sign(const Variable& x) {
  return record("sign", {x}, run(kernels::sign, x), Rules{zero_gradient});
}
Variable sin(const Variable& x) {
  return by_input(kernels::sin, x, [](const Variable& v) { return cos(v); });
}
Variable cos(const Variable& x) {
  return by_input(kernels::cos, x, [](const Variable& v) { return neg(sin(v)); });
}
Variable sinh(const Variable& x) {
  return 0.5 * (exp(x) - exp(-x));
}
Variable cosh(const Variable& x) {
  return 0.5 * (exp(x) + exp(-x));
}
Variable tanh(const Variable& x) {
  return by_output(kernels::tanh, x, [](const Variable& y) { return 1.0 - y * y; });
}
Variable sigmoid(const Variable& x) {
  return by_output(kernels::sigmoid, x, [](const Variable& y) { return y * (1.0 - y); });
}

namespace {

// b where a > 0, else 0: the gradient of relu, linear in b.
Variable relu_grad(const Variable& a, const Variable& b) {
  return record("relu_grad", {a, b}, run(kernels::relu_grad, a, b),
                Rules{zero_gradient, [a = Saved(a)](const Variable& g, const VjpContext&) {
                        return relu_grad(a(), g);
                      }});
}

}  // namespace

Variable relu(const Variable& x) {
  // The result tells as much as the input: both are positive in the same places.
  return record("relu", {x}, run(kernels::relu, x),
                Rules{[](const Variable& g, const VjpContext& ctx) {
                  return relu_grad(ctx.output().detach(), g);
                }},
                {}, /*keep_outputs=*/true);
}

Variable gelu(const Variable& x) {
  // Φ(x) + x·φ(x).
  return by_input(kernels::gelu, x, [](const Variable& v) {
    return 0.5 * (erf(v * M_SQRT1_2) + 1.0) +
           v * exp(-0.5 * (v * v)) * (0.5 * M_SQRT1_2 * M_2_SQRTPI);
  });
}

Variable gelu_tanh(const Variable& x) {
  return by_input(kernels::gelu_tanh, x, [](const Variable& v) {
    const double c = M_SQRT2 / std::sqrt(M_PI);
    const Variable square = v * v;
    const Variable t = tanh(c * (v + 0.044715 * (square * v)));
    return 0.5 * (1.0 + t) + 0.5 * v * (1.0 - t * t) * (c * (1.0 + (3 * 0.044715) * square));
  });
}

Variable erf(const Variable& x) {
  return by_input(kernels::erf, x, [](const Variable& v) { return M_2_SQRTPI * exp(-(v * v)); });
}

Variable clamp(const Variable& x, double low, double high) {
  check(low <= high, "[clamp] low {} is above high {}", low, high);
  return masked_fill(masked_fill(x, less(x.value(), low), low), greater(x.value(), high), high);
}

Variable where(const Tensor& condition, const Variable& a, const Variable& b) {
  check(condition.defined() && condition.dtype() == DType::boolean,
        "[where] the condition must be a bool Tensor");
  check_defined("where", a, "left operand");
  check_defined("where", b, "right operand");
  check_same_kind("where", a.value(), b.value());
  const Shape shape =
      broadcast("where", condition.shape(), broadcast("where", a.shape(), b.shape()));
  Tensor y = Tensor::empty(shape, a.dtype(), a.device());
  kernels::where(condition.expand(shape), a.value().expand(shape), b.value().expand(shape), y);
  const SavedTensor kept(condition, "where's condition");
  return record("where", {a, b}, y,
                Rules{[kept](const Variable& g, const VjpContext&) {
                        return where(kept(), g, number(0.0, g));
                      },
                      [kept](const Variable& g, const VjpContext&) {
                        return where(kept(), number(0.0, g), g);
                      }});
}

Variable where(const Tensor& condition, const Variable& a, double b) {
  return where(condition, a, number(b, a));
}

Variable masked_fill(const Variable& x, const Tensor& mask, double value) {
  check_defined("masked_fill", x);
  return where(mask, number(value, x), x);
}

Variable cast(const Variable& x, DType dtype) {
  check_defined("cast", x);
  if (x.dtype() == dtype) return x;
  check(is_floating(dtype) || !x.requires_grad(), "[cast] {} to {} has no gradient; detach() first",
        name(x.dtype()), name(dtype));
  return record(
      "cast", {x}, x.value().to(dtype),
      Rules{[from = x.dtype()](const Variable& g, const VjpContext&) { return cast(g, from); }},
      {{"dtype", name(dtype)}});
}

Variable identity(const Variable& x) {
  check_defined("identity", x);
  return record("identity", {x}, x.value(), Rules{pass});
}

Tensor equal(const Tensor& a, const Tensor& b) {
  return compare(kernels::equal, a, b);
}
Tensor not_equal(const Tensor& a, const Tensor& b) {
  return compare(kernels::not_equal, a, b);
}
Tensor less(const Tensor& a, const Tensor& b) {
  return compare(kernels::less, a, b);
}
Tensor less_equal(const Tensor& a, const Tensor& b) {
  return compare(kernels::less_equal, a, b);
}
Tensor greater(const Tensor& a, const Tensor& b) {
  return compare(kernels::greater, a, b);
}
Tensor greater_equal(const Tensor& a, const Tensor& b) {
  return compare(kernels::greater_equal, a, b);
}
Tensor less(const Tensor& a, double b) {
  return less(a, Tensor::scalar(b, a.dtype(), a.device()));
}
Tensor greater(const Tensor& a, double b) {
  return greater(a, Tensor::scalar(b, a.dtype(), a.device()));
}
Tensor equal(const Tensor& a, double b) {
  return equal(a, Tensor::scalar(b, a.dtype(), a.device()));
}

Variable add(const Variable& a, double b) {
  return add(a, number(b, a));
}
Variable mul(const Variable& a, double b) {
  return mul(a, number(b, a));
}

Variable dropout(const Variable& x, double p, const DrawKey& key) {
  check_defined("dropout", x);
  check(p >= 0.0 && p < 1.0, "[dropout] p = {} must be in [0, 1)", p);
  if (p == 0.0) return x;
  Tensor y = Tensor::empty(x.shape(), x.dtype(), x.device());
  kernels::dropout(x.value().contiguous(), y, p, key);
  return record("dropout", {x}, y, Rules{[p, key](const Variable& g, const VjpContext&) {
                  return dropout(g, p, key);
                }},
                {{"p", p}});
}

}  // namespace macgrad
