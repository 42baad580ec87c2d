// Reductions and their gradient rules.

#include <algorithm>
#include <numeric>

#include "macgrad/autograd/op_support.h"
#include "macgrad/core/kernels/arrays.h"

namespace macgrad {
namespace {

// Sorted, distinct, counted from the front; empty means all.
std::vector<int> checked_dims(const char* op, std::vector<int> dims, const Shape& shape) {
  if (dims.empty()) {
    dims.resize(static_cast<size_t>(shape.rank()));
    std::iota(dims.begin(), dims.end(), 0);
    return dims;
  }
  for (int& d : dims) d = checked_dim(op, d, shape);
  std::sort(dims.begin(), dims.end());
  check(std::adjacent_find(dims.begin(), dims.end()) == dims.end(),
        "[{}] a dimension of {} is named twice", op, shape);
  return dims;
}

Shape kept_shape(const Shape& shape, const std::vector<int>& dims) {
  Shape kept = shape;
  for (int d : dims) kept[d] = 1;
  return kept;
}

Shape reduced_shape(const Shape& shape, const std::vector<int>& dims, bool keepdim) {
  Shape s = kept_shape(shape, dims);
  if (!keepdim)
    for (auto it = dims.rbegin(); it != dims.rend(); ++it) s = s.erased(*it);
  return s;
}

int64_t count(const Shape& shape, const std::vector<int>& dims) {
  int64_t n = 1;
  for (int d : dims) n *= shape[d];
  return n;
}

// Runs of neighbouring dimensions are summed together, the last run first.
Tensor sum_tensor(const Tensor& x, const std::vector<int>& dims, bool keepdim) {
  Tensor t = x;
  for (size_t end = dims.size(); end > 0;) {
    size_t begin = end - 1;
    while (begin > 0 && dims[begin - 1] == dims[begin] - 1) --begin;
    int64_t before = 1, middle = 1, after = 1;
    for (int d = 0; d < t.rank(); ++d)
      (d < dims[begin] ? before : d <= dims[end - 1] ? middle : after) *= t.shape()[d];
    Shape shape = t.shape();
    for (size_t i = begin; i < end; ++i) shape[dims[i]] = 1;
    Tensor y = Tensor::empty(shape, t.dtype(), t.device());
    kernels::sum(t.contiguous().view({before, middle, after}), y.view({before, after}));
    t = y;
    end = begin;
  }
  return t.view(reduced_shape(x.shape(), dims, keepdim));
}

std::pair<Variable, Tensor> extremum(const Kernel<void(In, Out, Out)>& kernel, const Variable& x,
                                     int dim, bool keepdim) {
  check_defined(kernel.name(), x);
  dim = checked_dim(kernel.name(), dim, x.shape());
  const Tensor t = around(x.value(), dim);
  const Shape shape = x.shape().with(dim, 1);
  Tensor y = Tensor::empty(shape, x.dtype(), x.device());
  Tensor index = Tensor::empty(shape, DType::int64, x.device());
  kernel(t, y.view({t.size(0), t.size(2)}), index.view({t.size(0), t.size(2)}));
  Variable v = record(kernel.name(), {x}, y,
                      Rules{[index, dim, from = x.shape()](const Variable& g, const VjpContext&) {
                        const Variable zeros(Tensor::zeros(from, g.dtype(), g.device()));
                        return scatter_add(zeros, dim, index, g);
                      }},
                      {{"dim", dim}});
  if (keepdim) return {v, index};
  return {squeeze(v, dim), index.squeeze(dim)};
}

}  // namespace

Variable sum(const Variable& x, std::vector<int> dims, bool keepdim) {
  check_defined("sum", x);
  dims = checked_dims("sum", std::move(dims), x.shape());
  return record(
      "sum", {x}, sum_tensor(x.value(), dims, keepdim),
      Rules{[from = x.shape(), kept = kept_shape(x.shape(), dims)](
                const Variable& g, const VjpContext&) { return expand(reshape(g, kept), from); }},
      {{"dims", shape_of(dims)}});
}

Variable mean(const Variable& x, std::vector<int> dims, bool keepdim) {
  check_defined("mean", x);
  const auto n = count(x.shape(), checked_dims("mean", dims, x.shape()));
  return sum(x, std::move(dims), keepdim) * (1.0 / static_cast<double>(n));
}

Variable var(const Variable& x, std::vector<int> dims, double correction, bool keepdim) {
  check_defined("var", x);
  dims = checked_dims("var", std::move(dims), x.shape());
  const auto n = static_cast<double>(count(x.shape(), dims));
  const Variable deviation = centred(x, dims);
  return sum(deviation * deviation, std::move(dims), keepdim) * (1.0 / (n - correction));
}

std::pair<Variable, Tensor> max(const Variable& x, int dim, bool keepdim) {
  return extremum(kernels::max, x, dim, keepdim);
}
std::pair<Variable, Tensor> min(const Variable& x, int dim, bool keepdim) {
  return extremum(kernels::min, x, dim, keepdim);
}
Tensor argmax(const Tensor& x, int dim, bool keepdim) {
  return max(Variable(x), checked_dim("argmax", dim, x.shape()), keepdim).second;
}

Variable prod(const Variable& x, int dim, bool keepdim) {
  // A tree of products: no division, so zeros are right at every order of derivative.
  check_defined("prod", x);
  const Scope scope("prod");
  dim = checked_dim("prod", dim, x.shape());
  Variable y = x;
  if (y.size(dim) == 0)
    return Variable(Tensor::full(keepdim ? x.shape().with(dim, 1) : x.shape().erased(dim), 1.0,
                                 x.dtype(), x.device()));
  while (y.size(dim) > 1) {
    const int64_t n = y.size(dim), half = n / 2;
    Variable next = slice(y, dim, 0, half) * slice(y, dim, half, 2 * half);
    y = n % 2 ? concat({next, slice(y, dim, n - 1, n)}, dim) : next;
  }
  return keepdim ? y : squeeze(y, dim);
}

Variable cumsum(const Variable& x, int dim, bool reverse) {
  check_defined("cumsum", x);
  dim = checked_dim("cumsum", dim, x.shape());
  Tensor y = Tensor::empty(x.shape(), x.dtype(), x.device());
  const Tensor t = around(x.value(), dim);
  kernels::cumsum(t, y.view(t.shape()), reverse);
  return record("cumsum", {x}, y, Rules{[dim, reverse](const Variable& g, const VjpContext&) {
                  return cumsum(g, dim, !reverse);
                }},
                {{"dim", dim}});
}

Variable logsumexp(const Variable& x, int dim, bool keepdim) {
  check_defined("logsumexp", x);
  const Scope scope("logsumexp");
  // The maximum is a constant shift; -inf throughout would make inf - inf.
  Variable shift = max(x.detach(), dim, true).first;
  const Tensor size = abs(shift).value();
  // As a float32 scalar the largest double would be infinite.
  shift = where(equal(size, std::numeric_limits<double>::infinity()), zeros_like(shift), shift);
  const Variable y = log(sum(exp(x - shift), {dim}, true)) + shift;
  return keepdim ? y : squeeze(y, dim);
}

Variable sum_to(const Variable& x, const Shape& shape) {
  check(broadcasts_to(shape, x.shape()), "[sum_to] {} does not come from {}", x.shape(), shape);
  std::vector<int> dims;
  const int lead = x.rank() - shape.rank();
  for (int d = 0; d < x.rank(); ++d)
    if (d < lead || (shape[d - lead] == 1 && x.shape()[d] != 1)) dims.push_back(d);
  if (dims.empty()) return reshape(x, shape);
  return reshape(sum(x, dims, true), shape);
}

}  // namespace macgrad
