// Gathering and scattering by integer Tensors; each is the other's gradient rule.

#include "macgrad/autograd/op_support.h"
#include "macgrad/core/kernels/arrays.h"

namespace macgrad {
namespace {

void check_index(const char* op, const Tensor& index, const Tensor& x) {
  check(index.defined() && index.dtype() == DType::int64, "[{}] the index must be int64, is {}", op,
        index.defined() ? name(index.dtype()) : "undefined");
  check(index.device() == x.device(), "[{}] index on {}, operand on {}", op, text(index.device()),
        text(x.device()));
}

void check_places(const char* op, const Tensor& index, const Shape& shape, int dim) {
  check(index.rank() == shape.rank() && index.shape().with(dim, 0) == shape.with(dim, 0),
        "[{}] index {} does not fit {} along dimension {}", op, index.shape(), shape, dim);
}

}  // namespace

Variable gather(const Variable& x, int dim, const Tensor& index) {
  check_defined("gather", x);
  dim = checked_dim("gather", dim, x.shape());
  check_index("gather", index, x.value());
  check_places("gather", index, x.shape(), dim);
  Tensor y = Tensor::empty(index.shape(), x.dtype(), x.device());
  const Tensor places = around(index, dim);
  kernels::gather(around(x.value(), dim), places, y.view(places.shape()));
  return record("gather", {x}, y,
                Rules{[dim, kept = SavedTensor(index, "gather's index"), from = x.shape()](
                          const Variable& g, const VjpContext&) {
                  return scatter_add(Variable(Tensor::zeros(from, g.dtype(), g.device())), dim,
                                     kept(), g);
                }},
                {{"dim", dim}});
}

Variable scatter_add(const Variable& x, int dim, const Tensor& index, const Variable& source) {
  check_defined("scatter_add", x);
  check_defined("scatter_add", source, "source");
  dim = checked_dim("scatter_add", dim, x.shape());
  check_index("scatter_add", index, x.value());
  check_places("scatter_add", index, x.shape(), dim);
  check(index.shape() == source.shape(), "[scatter_add] index {} and source {} differ",
        index.shape(), source.shape());
  check_same_kind("scatter_add", x.value(), source.value());
  Tensor y = x.value().clone();
  kernels::scatter_add(around(index, dim), around(source.value(), dim), around(y, dim));
  return record("scatter_add", {x, source}, y,
                Rules{[](const Variable& g, const VjpContext&) { return g; },
                      [dim, kept = SavedTensor(index, "scatter_add's index")](
                          const Variable& g, const VjpContext&) { return gather(g, dim, kept()); }},
                {{"dim", dim}});
}

Variable index_select(const Variable& x, int dim, const Tensor& index) {
  check_defined("index_select", x);
  dim = checked_dim("index_select", dim, x.shape());
  check_index("index_select", index, x.value());
  check(index.rank() == 1, "[index_select] the index must be one-dimensional, is {}",
        index.shape());
  const Tensor places = index.contiguous();
  Tensor y = Tensor::empty(x.shape().with(dim, index.size(0)), x.dtype(), x.device());
  const Tensor t = around(x.value(), dim);
  kernels::index_select(t, places, y.view({t.size(0), index.size(0), t.size(2)}));
  return record("index_select", {x}, y,
                Rules{[dim, kept = SavedTensor(places, "index_select's index"), from = x.shape()](
                          const Variable& g, const VjpContext&) {
                  return index_add(Variable(Tensor::zeros(from, g.dtype(), g.device())), dim,
                                   kept(), g);
                }},
                {{"dim", dim}});
}

Variable index_add(const Variable& x, int dim, const Tensor& index, const Variable& source) {
  check_defined("index_add", x);
  check_defined("index_add", source, "source");
  dim = checked_dim("index_add", dim, x.shape());
  check_index("index_add", index, x.value());
  check(index.rank() == 1 && source.shape() == x.shape().with(dim, index.size(0)),
        "[index_add] source {} does not fit {} with index {} along dimension {}", source.shape(),
        x.shape(), index.shape(), dim);
  check_same_kind("index_add", x.value(), source.value());
  const Tensor places = index.contiguous();
  Tensor y = x.value().clone();
  kernels::index_add(places, around(source.value(), dim), around(y, dim));
  return record(
      "index_add", {x, source}, y,
      Rules{[](const Variable& g, const VjpContext&) { return g; },
            [dim, kept = SavedTensor(places, "index_add's index")](
                const Variable& g, const VjpContext&) { return index_select(g, dim, kept()); }},
      {{"dim", dim}});
}

Variable embedding(const Variable& weight, const Tensor& index) {
  check_defined("embedding", weight, "weight");
  check(weight.rank() == 2, "[embedding] weight must be (V, C), is {}", weight.shape());
  Shape shape = index.shape();
  shape.push_back(weight.size(1));
  return reshape(index_select(weight, 0, index.reshape({-1})), shape);
}

}  // namespace macgrad
