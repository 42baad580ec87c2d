// Views and rearrangements. Views share memory; their rules rearrange the cotangent back.

#include "macgrad/autograd/op_support.h"
#include "macgrad/core/kernels/arrays.h"

namespace macgrad {
namespace {

// `g` put at start, start+step, … of zeros with `extent` along dim: the rule of slice.
Variable place(const Variable& g, int dim, int64_t start, int64_t step, int64_t extent) {
  const int64_t end = g.size(dim) == 0 ? start : start + (g.size(dim) - 1) * step + 1;
  Tensor y = Tensor::zeros(g.shape().with(dim, extent), g.dtype(), g.device());
  kernels::copy(g.value(), y.slice(dim, start, end, step));
  return record("place", {g}, y, Rules{[=](const Variable& gg, const VjpContext&) {
                  return slice(gg, dim, start, end, step);
                }});
}

}  // namespace

Variable reshape(const Variable& x, const Shape& shape) {
  check_defined("reshape", x);
  if (x.shape() == shape) return x;
  int64_t known = 1;
  for (int64_t e : shape) known *= e == -1 ? 1 : e;
  check(known == x.numel() || (known != 0 && x.numel() % known == 0),
        "[reshape] {} with {} elements does not fit {}", x.shape(), x.numel(), shape);
  return record(
      "reshape", {x}, x.value().reshape(shape),
      Rules{[from = x.shape()](const Variable& g, const VjpContext&) { return reshape(g, from); }},
      {{"shape", shape}});
}

Variable permute(const Variable& x, std::vector<int> dims) {
  check_defined("permute", x);
  check(static_cast<int>(dims.size()) == x.rank(), "[permute] {} dimensions for {}", dims.size(),
        x.shape());
  for (int& d : dims) d = checked_dim("permute", d, x.shape());
  std::vector<int> inverse(dims.size());
  for (size_t i = 0; i < dims.size(); ++i)
    inverse[static_cast<size_t>(dims[i])] = static_cast<int>(i);
  return record(
      "permute", {x}, x.value().permute(std::span<const int>(dims)),
      Rules{[inverse](const Variable& g, const VjpContext&) { return permute(g, inverse); }},
      {{"dims", shape_of(dims)}});
}

Variable transpose(const Variable& x, int dim0, int dim1) {
  check_defined("transpose", x);
  dim0 = checked_dim("transpose", dim0, x.shape());
  dim1 = checked_dim("transpose", dim1, x.shape());
  return record(
      "transpose", {x}, x.value().transpose(dim0, dim1),
      Rules{[=](const Variable& g, const VjpContext&) { return transpose(g, dim0, dim1); }},
      {{"dims", Shape{dim0, dim1}}});
}

Variable expand(const Variable& x, const Shape& shape) {
  check_defined("expand", x);
  if (x.shape() == shape) return x;
  check(broadcasts_to(x.shape(), shape), "[expand] {} does not expand to {}", x.shape(), shape);
  // The engine sums the cotangent back to x's shape.
  return record("expand", {x}, x.value().expand(shape),
                Rules{[](const Variable& g, const VjpContext&) { return g; }}, {{"shape", shape}});
}

Variable unsqueeze(const Variable& x, int dim) {
  check_defined("unsqueeze", x);
  check(dim >= -x.rank() - 1 && dim <= x.rank(), "[unsqueeze] dimension {} is out of range for {}",
        dim, x.shape());
  if (dim < 0) dim += x.rank() + 1;
  return record("unsqueeze", {x}, x.value().unsqueeze(dim),
                Rules{[dim](const Variable& g, const VjpContext&) { return squeeze(g, dim); }},
                {{"dim", dim}});
}

Variable squeeze(const Variable& x, int dim) {
  check_defined("squeeze", x);
  dim = checked_dim("squeeze", dim, x.shape());
  check(x.size(dim) == 1, "[squeeze] dimension {} of {} is not 1", dim, x.shape());
  return record("squeeze", {x}, x.value().squeeze(dim),
                Rules{[dim](const Variable& g, const VjpContext&) { return unsqueeze(g, dim); }},
                {{"dim", dim}});
}

Variable slice(const Variable& x, int dim, int64_t start, int64_t end, int64_t step) {
  check_defined("slice", x);
  dim = checked_dim("slice", dim, x.shape());
  check(0 <= start && start <= end && end <= x.size(dim) && step >= 1,
        "[slice] {}:{}:{} is outside dimension {} of {}", start, end, step, dim, x.shape());
  return record("slice", {x}, x.value().slice(dim, start, end, step),
                Rules{[=, extent = x.size(dim)](const Variable& g, const VjpContext&) {
                  return place(g, dim, start, step, extent);
                }},
                {{"dim", dim}, {"start", start}, {"end", end}, {"step", step}});
}

Variable select(const Variable& x, int dim, int64_t index) {
  check_defined("select", x);
  dim = checked_dim("select", dim, x.shape());
  check(0 <= index && index < x.size(dim), "[select] index {} is outside dimension {} of {}", index,
        dim, x.shape());
  return squeeze(slice(x, dim, index, index + 1), dim);
}

Variable concat(const Variables& parts, int dim) {
  check(!parts.empty(), "[concat] needs at least one part");
  for (const Variable& p : parts) check_defined("concat", p, "part");
  dim = checked_dim("concat", dim, parts[0].shape());
  std::vector<int64_t> sizes;
  int64_t total = 0;
  for (const Variable& p : parts) {
    check(p.rank() == parts[0].rank() && p.shape().with(dim, 0) == parts[0].shape().with(dim, 0),
          "[concat] {} and {} differ outside dimension {}", parts[0].shape(), p.shape(), dim);
    check_same_kind("concat", parts[0].value(), p.value());
    sizes.push_back(p.size(dim));
    total += p.size(dim);
  }
  Tensor y = Tensor::empty(parts[0].shape().with(dim, total), parts[0].dtype(), parts[0].device());
  int64_t at = 0;
  for (const Variable& p : parts) {
    kernels::copy(p.value(), y.slice(dim, at, at + p.size(dim)));
    at += p.size(dim);
  }
  return record(
             "concat", parts, Tensors{y},
             [sizes, dim](const VjpContext& ctx) { return split(ctx.cotangent(), sizes, dim); },
             Attributes{{"dim", dim}})
      .front();
}

Variable stack(const Variables& parts, int dim) {
  check(!parts.empty(), "[stack] needs at least one part");
  Variables lifted;
  for (const Variable& p : parts) lifted.push_back(unsqueeze(p, dim));
  return concat(lifted, dim);
}

Variables split(const Variable& x, const std::vector<int64_t>& sizes, int dim) {
  check_defined("split", x);
  dim = checked_dim("split", dim, x.shape());
  int64_t total = 0;
  for (int64_t s : sizes) {
    check(s >= 0, "[split] a size of {} is negative", s);
    total += s;
  }
  check(total == x.size(dim), "[split] sizes add up to {}, dimension {} of {} is {}", total, dim,
        x.shape(), x.size(dim));
  Variables parts;
  int64_t at = 0;
  for (int64_t s : sizes) {
    parts.push_back(slice(x, dim, at, at + s));
    at += s;
  }
  return parts;
}

Variable pad(const Variable& x, int dim, int64_t before, int64_t after, double value) {
  check_defined("pad", x);
  dim = checked_dim("pad", dim, x.shape());
  check(before >= 0 && after >= 0, "[pad] {} before and {} after must not be negative", before,
        after);
  const int64_t n = x.size(dim);
  Tensor y = Tensor::full(x.shape().with(dim, before + n + after), value, x.dtype(), x.device());
  kernels::copy(x.value(), y.slice(dim, before, before + n));
  return record("pad", {x}, y, Rules{[=](const Variable& g, const VjpContext&) {
                  return slice(g, dim, before, before + n);
                }},
                {{"dim", dim}, {"before", before}, {"after", after}});
}

Variable contiguous(const Variable& x) {
  check_defined("contiguous", x);
  if (x.value().is_contiguous()) return x;
  return record("contiguous", {x}, x.value().clone(),
                Rules{[](const Variable& g, const VjpContext&) { return g; }});
}

}  // namespace macgrad
