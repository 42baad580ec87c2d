// Matrix products. Transposed views go to the GEMM as they are; a batch of rows times one matrix is
// one product.

#include <algorithm>

#include "macgrad/autograd/op_support.h"
#include "macgrad/core/kernels/arrays.h"

namespace macgrad {
namespace {

// One of the last two strides must be 1 (and the other not smaller than the row), else copy.
Tensor gemm_ready(const Tensor& t) {
  const int64_t rows = t.size(-2), columns = t.size(-1);
  const int64_t sr = t.stride(-2), sc = t.stride(-1);
  const bool plain = (sc == 1 || columns <= 1) && (sr >= columns || rows <= 1);
  const bool turned = (sr == 1 || rows <= 1) && (sc >= rows || columns <= 1);
  return plain || turned ? t : t.contiguous();
}

Variable transposed(const Variable& x) {
  return transpose(x, -2, -1);
}

}  // namespace

Variable matmul(const Variable& a, const Variable& b) {
  check_defined("matmul", a, "left operand");
  check_defined("matmul", b, "right operand");
  check(a.rank() >= 2 && b.rank() >= 2,
        "[matmul] needs matrices, got {} x {}; unsqueeze vectors first", a.shape(), b.shape());
  check_same_kind("matmul", a.value(), b.value());
  check(a.size(-1) == b.size(-2), "[matmul] inner sizes differ: {} {} x {} {}", a, a.shape(), b,
        b.shape());
  if (b.rank() == 2 && a.rank() > 2) {
    const Shape out = a.shape().with(a.rank() - 1, b.size(1));
    return reshape(matmul(reshape(a, as_rows(a.shape())), b), out);
  }
  const auto batch_of = [](const Shape& s) {
    return Shape(std::span<const int64_t>(s.begin(), static_cast<size_t>(s.rank() - 2)));
  };
  const Shape batch = broadcast("matmul", batch_of(a.shape()), batch_of(b.shape()));
  const auto with_matrix = [&](int64_t rows, int64_t columns) {
    Shape s = batch;
    s.push_back(rows);
    s.push_back(columns);
    return s;
  };
  Tensor y = Tensor::empty(with_matrix(a.size(-2), b.size(-1)), a.dtype(), a.device());
  kernels::matmul(gemm_ready(a.value().expand(with_matrix(a.size(-2), a.size(-1)))),
                  gemm_ready(b.value().expand(with_matrix(b.size(-2), b.size(-1)))), y, 1.0, 0.0);
  return record("matmul", {a, b}, y,
                Rules{[b = Saved(b, a.requires_grad())](const Variable& g, const VjpContext&) {
                        return matmul(g, transposed(b()));
                      },
                      [a = Saved(a, b.requires_grad())](const Variable& g, const VjpContext&) {
                        return matmul(transposed(a()), g);
                      }});
}

Variable linear(const Variable& x, const Variable& weight, const Variable& bias) {
  check_defined("linear", x, "input");
  check_defined("linear", weight, "weight");
  check(x.rank() >= 1 && weight.rank() == 2 && x.size(-1) == weight.size(1),
        "[linear] input {} does not fit weight {} (out, in)", x.shape(), weight.shape());
  check_same_kind("linear", x.value(), weight.value());
  const int64_t out = weight.size(0);
  const Shape shape = x.shape().with(x.rank() - 1, out);
  const Tensor rows = x.value().reshape(as_rows(x.shape()));
  Tensor y = Tensor::empty(shape, x.dtype(), x.device());
  const Tensor result = y.view({rows.size(0), out});
  Variables inputs{x, weight};
  if (bias.defined()) {
    check(bias.shape() == Shape{out}, "[linear] bias {} does not fit weight {}", bias.shape(),
          weight.shape());
    check_same_kind("linear", x.value(), bias.value());
    kernels::copy(bias.value().expand(result.shape()), result);
    inputs.push_back(bias);
  }
  kernels::matmul(gemm_ready(rows), gemm_ready(weight.value().transpose(0, 1)), result, 1.0,
                  bias.defined() ? 1.0 : 0.0);
  const bool has_bias = bias.defined();
  return record("linear", inputs, Tensors{y},
                [x = Saved(x, weight.requires_grad()), weight = Saved(weight, x.requires_grad()),
                 has_bias, from = x.shape(), flat = result.shape()](const VjpContext& ctx) {
                  const Variable g = reshape(ctx.cotangent(), flat);
                  Variables gradients(has_bias ? 3 : 2);
                  if (ctx.needs(0)) gradients[0] = reshape(matmul(g, weight()), from);
                  if (ctx.needs(1))
                    gradients[1] = matmul(transpose(g, 0, 1), reshape(x(), as_rows(from)));
                  if (has_bias && ctx.needs(2)) gradients[2] = sum(g, {0});
                  return gradients;
                })
      .front();
}

}  // namespace macgrad
