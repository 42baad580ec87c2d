// Central differences of Σ f·cotangent, one input element at a time, against grad(); at order 2 the
// same for the gradients themselves, joined into one number with fixed random weights. The worst
// element is reported with its place.
#include "macgrad/autograd/gradcheck.h"

#include <cmath>

#include "macgrad/autograd/engine.h"
#include "macgrad/autograd/ops.h"

namespace macgrad {
namespace {

Variable random_like(const Variable& v, Generator& generator) {
  return Variable(Tensor::randn(v.shape(), generator, v.dtype(), v.device()));
}

// Puts an element back, also when the function throws on the moved one.
struct Moved {
  explicit Moved(double& element) : at(element), kept(element) {}
  ~Moved() { at = kept; }
  double& at;
  const double kept;
};

struct Checker {
  const GradcheckOptions& options;
  GradcheckResult result;

  // `f` to a Variable; its gradients with respect to the inputs that ask for one are compared with
  // central differences of Σ f·cotangent.
  void compare(const std::function<Variable(const Variables&)>& f, const Variables& inputs,
               Generator& generator) {
    Variables wanted;
    for (const Variable& v : inputs)
      if (v.defined() && v.requires_grad()) wanted.push_back(v);
    require(!wanted.empty(), "[gradcheck] no input asks for a gradient");
    for (const Variable& v : wanted)
      require(v.dtype() == DType::float64 && v.device() == kCpu,
              "[gradcheck] input '{}' is {} on {}, needs float64 on the CPU", v.name(),
              name(v.dtype()), text(v.device()));
    const Variable y = f(inputs);
    const Variable cotangent = random_like(y, generator);
    const auto value = [&] {
      const NoGrad off;
      return sum(f(inputs) * cotangent).item();
    };
    Variables analytic(wanted.size());
    if (y.requires_grad()) analytic = grad({y}, wanted, {cotangent}, {.allow_unused = true});
    for (size_t i = 0; i < wanted.size(); ++i) {
      const Tensor& x = wanted[i].value();
      const std::vector<double> g = analytic[i].defined()
                                        ? analytic[i].value().to_vector<double>()
                                        : std::vector<double>(static_cast<size_t>(x.numel()), 0.0);
      require(x.is_contiguous() || x.numel() == 0, "[gradcheck] input {} must be contiguous", i);
      double* p = x.data<double>();
      for (int64_t j = 0; j < x.numel(); ++j) {
        const Moved moved(p[j]);
        const double h = options.step * std::max(1.0, std::fabs(moved.kept));
        p[j] = moved.kept + h;
        const double up = value();
        p[j] = moved.kept - h;
        const double down = value();
        judge(i, j, g[static_cast<size_t>(j)], (up - down) / (2 * h));
      }
    }
  }

  void judge(size_t input, int64_t element, double analytic, double numeric) {
    double error =
        std::fabs(analytic - numeric) / (options.atol + options.rtol * std::fabs(numeric));
    if (std::isnan(error)) error = INFINITY;
    if (error > 1) result.ok = false;
    if (error > result.worst || result.message.empty()) {
      result.worst = error;
      result.message = fmt::format("input {} element {}: analytic {:.10g}, numeric {:.10g}", input,
                                   element, analytic, numeric);
    }
  }
};

}  // namespace

GradcheckResult gradcheck(const std::function<Variable(const Variables&)>& f,
                          const Variables& inputs, const GradcheckOptions& options) {
  Checker checker{options, {}};
  Generator generator(options.seed, /*stream=*/0x6763);
  checker.compare(f, inputs, generator);
  if (options.order < 2) return checker.result;
  // Second order: the gradients themselves, of inputs and of the cotangent.
  const Variable y = f(inputs);
  if (!y.requires_grad()) return checker.result;
  Variables extended = inputs;
  extended.emplace_back(random_like(y, generator).value(), true);
  const auto gradients = [&, count = inputs.size()](const Variables& all) {
    const Variables x(all.begin(), all.begin() + static_cast<std::ptrdiff_t>(count));
    Variables wanted;
    for (const Variable& v : x)
      if (v.defined() && v.requires_grad()) wanted.push_back(v);
    const EnableGrad on;
    const Variables g =
        grad({f(x)}, wanted, {all.back()}, {.create_graph = true, .allow_unused = true});
    // One number out of many gradients, each with a fixed random weight.
    Generator weights(options.seed, /*stream=*/0x6764);
    Variable total;
    for (const Variable& one : g) {
      if (!one.defined()) continue;
      const Variable part = sum(one * random_like(one, weights));
      total = total.defined() ? total + part : part;
    }
    return total.defined() ? total : Variable(Tensor::zeros({}, DType::float64));
  };
  checker.compare(gradients, extended, generator);
  return checker.result;
}

}  // namespace macgrad
