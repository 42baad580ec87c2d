// Running rows of the op table: inputs, values, gradients, second derivatives, comparison.

#include "macgrad/tests/op_cases.h"

#include <omp.h>

#include <algorithm>
#include <cmath>

#include "macgrad/autograd/engine.h"
#include "macgrad/core/generator.h"

namespace macgrad::testing {
namespace {

constexpr uint32_t kStream = 0x6f70;

double rounded_to_eighths(double v) {
  return std::round(v * 8) / 8;
}

Device row_device = kCpu;

// While a row is evaluated, its own tensors are made where its inputs are.
class RowDevice {
 public:
  explicit RowDevice(const Tensors& inputs) : previous_(row_device) {
    if (!inputs.empty()) row_device = inputs[0].device();
  }
  ~RowDevice() { row_device = previous_; }
  RowDevice(const RowDevice&) = delete;
  RowDevice& operator=(const RowDevice&) = delete;

 private:
  Device previous_;
};

}  // namespace

OpCase simple(const std::string& name, const std::string& op, std::vector<OpInput> inputs,
              Function f, Reference reference) {
  OpCase row;
  row.name = name;
  row.op = op;
  row.inputs = std::move(inputs);
  row.f = std::move(f);
  row.reference = std::move(reference);
  return row;
}

const OpCases& op_cases() {
  static const OpCases all = [] {
    OpCases cases;
    add_elementwise_cases(cases);
    add_reduce_cases(cases);
    add_matmul_cases(cases);
    add_shape_cases(cases);
    add_index_cases(cases);
    add_row_cases(cases);
    add_attention_cases(cases);
    add_extreme_cases(cases);
    return cases;
  }();
  return all;
}

Tensors make_inputs(const std::vector<OpInput>& inputs, DType dtype) {
  Tensors result;
  for (size_t i = 0; i < inputs.size(); ++i) {
    const OpInput& in = inputs[i];
    std::vector<double> values = in.values;
    if (values.empty()) {
      DrawReader reader({11, kStream, static_cast<uint32_t>(i), 0});
      values.resize(static_cast<size_t>(in.shape.numel()));
      for (double& v : values) v = in.low + (in.high - in.low) * reader.uniform();
    }
    result.push_back(Tensor::from_values(values, in.shape, dtype));
  }
  return result;
}

Tensor placed(const Tensor& t) {
  return t.to(row_device);
}

Tensor exact_values(const Shape& shape, uint32_t draw, DType dtype) {
  DrawReader reader({12, kStream, draw, 0});
  std::vector<double> values(static_cast<size_t>(shape.numel()));
  for (double& v : values) v = rounded_to_eighths(4 * reader.uniform() - 2) + 0.0625;
  return placed(Tensor::from_values(values, shape, dtype));
}

Tensor exact_signs(const Shape& shape, uint32_t draw, DType dtype) {
  DrawReader reader({13, kStream, draw, 0});
  std::vector<double> values(static_cast<size_t>(shape.numel()));
  for (double& v : values) v = reader.sign();
  return placed(Tensor::from_values(values, shape, dtype));
}

Tensor random_mask(const Shape& shape, uint32_t draw) {
  DrawReader reader({14, kStream, draw, 0});
  std::vector<bool> values;
  const int64_t n = shape.rank() == 0 ? 1 : std::max<int64_t>(1, shape.back());
  for (int64_t i = 0; i < shape.numel(); ++i) {
    const bool kept = reader.uniform() < 0.75;
    values.push_back(kept || i % n == 0);
  }
  return placed(Tensor::from_vector(values, shape));
}

Tensor random_index(const Shape& shape, int64_t below, uint32_t draw) {
  DrawReader reader({15, kStream, draw, 0});
  std::vector<int64_t> values(static_cast<size_t>(shape.numel()));
  for (int64_t& v : values) v = static_cast<int64_t>(reader.below(static_cast<uint64_t>(below)));
  return placed(Tensor::from_vector(values, shape));
}

Tensor cotangent_of(const Tensor& value) {
  return exact_values(value.shape(), 1, value.dtype());
}

Evaluation evaluate(const std::function<Variable(const Variables&)>& f, const Tensors& inputs,
                    const std::vector<bool>& wanted, int order) {
  const RowDevice here(inputs);
  Evaluation result;
  Variables x, targets;
  for (size_t i = 0; i < inputs.size(); ++i) {
    x.emplace_back(inputs[i], order > 0 && wanted[i]);
    if (order > 0 && wanted[i]) targets.push_back(x.back());
  }
  const Variable y = f(x);
  result.value = y.value();
  if (order == 0 || !y.requires_grad()) return result;
  const auto zeros = [](const Variable& v) {
    return Tensor::zeros(v.shape(), v.dtype(), v.device());
  };
  const Variable cotangent(cotangent_of(y.value()), order > 1);
  const Variables g = grad({y}, targets, {cotangent},
                           {.create_graph = order > 1, .allow_unused = true, .record = nullptr});
  for (size_t i = 0; i < g.size(); ++i)
    result.gradients.push_back(g[i].defined() ? g[i].value() : zeros(targets[i]));
  if (order == 1) return result;
  Variables outputs, weights;
  for (size_t i = 0; i < g.size(); ++i) {
    if (!g[i].defined() || !g[i].requires_grad()) continue;
    outputs.push_back(g[i]);
    weights.emplace_back(exact_values(g[i].shape(), 2 + static_cast<uint32_t>(i), g[i].dtype()));
  }
  targets.push_back(cotangent);
  Variables h(targets.size());
  if (!outputs.empty())
    h = grad(outputs, targets, weights,
             {.create_graph = false, .allow_unused = true, .record = nullptr});
  for (size_t i = 0; i < h.size(); ++i)
    result.second.push_back(h[i].defined() ? h[i].value() : zeros(targets[i]));
  return result;
}

Evaluation evaluate(const OpCase& row, const Tensors& inputs, int order) {
  std::vector<bool> wanted;
  for (const OpInput& in : row.inputs) wanted.push_back(in.differentiable);
  return evaluate(row.f, inputs, wanted, order);
}

double difference(const Tensor& a, const Tensor& b) {
  if (a.shape() != b.shape()) return INFINITY;
  const auto x = a.to_vector<double>(), y = b.to_vector<double>();
  double scale = 1, worst = 0;
  for (double v : y)
    if (std::isfinite(v)) scale = std::max(scale, 1 + std::fabs(v));
  for (size_t i = 0; i < x.size(); ++i) {
    if (x[i] == y[i] || (std::isnan(x[i]) && std::isnan(y[i]))) continue;
    const double d = std::fabs(x[i] - y[i]) / scale;
    worst = std::isnan(d) ? INFINITY : std::max(worst, d);
  }
  return worst;
}

Worst compare(const Evaluation& got, const Evaluation& expected) {
  Worst worst;
  const auto see = [&](const Tensor& a, const Tensor& b, const std::string& where) {
    const double d = difference(a, b);
    if (d > worst.value) worst = {d, where};
  };
  const auto see_all = [&](const Tensors& a, const Tensors& b, const char* where) {
    if (a.size() != b.size())
      worst = {INFINITY, fmt::format("{}: {} of {}", where, a.size(), b.size())};
    for (size_t i = 0; i < std::min(a.size(), b.size()); ++i)
      see(a[i], b[i], fmt::format("{} {}", where, i));
  };
  see(got.value, expected.value, "value");
  see_all(got.gradients, expected.gradients, "gradient");
  see_all(got.second, expected.second, "second derivative");
  return worst;
}

Tensor strided(const Tensor& t) {
  if (t.rank() == 0) return t;
  // Memory (…, 2·last, rows): transposed, then every second place of the last dimension.
  Shape shape = t.shape().with(t.rank() - 1, 2 * t.size(-1));
  if (t.rank() >= 2) std::swap(shape[t.rank() - 1], shape[t.rank() - 2]);
  Tensor view = Tensor::zeros(shape, t.dtype(), t.device());
  if (t.rank() >= 2) view = view.transpose(-1, -2);
  view = view.slice(-1, 0, 2 * t.size(-1), 2);
  view.copy_from(t);
  return view;
}

double tolerance(const OpCase& row, DType dtype) {
  if (dtype == DType::float64) return row.tol64;
  return dtype == DType::float32 ? row.tol32 : row.tol16;
}

Threads::Threads(int count) : previous_(omp_get_max_threads()) {
  omp_set_num_threads(count);
}
Threads::~Threads() {
  omp_set_num_threads(previous_);
}

}  // namespace macgrad::testing
