// Rows of the ops that memory bandwidth bounds (elementwise, softmax, layer norm, cross entropy),
// on about 64 MiB (512 MiB on a GPU), against a copy: the share of its rate is the figure that
// matters. On a GPU also the kernels of the backward pass, dropout and Adam. Always exact float32:
// nothing here is a product.
#include <fmt/format.h>

#include "macgrad/autograd/attention.h"
#include "macgrad/autograd/ops.h"
#include "macgrad/core/kernels/optimizer.h"
#include "macgrad/core/kernels/random.h"
#include "macgrad/core/kernels/rows.h"
#include "macgrad/core/kernels/sbn.h"
#include "macgrad/experiments/bench/groups.h"

namespace macgrad::experiments {
namespace {

class Rows {
 public:
  explicit Rows(BenchTable& table) : table_(table), sizes_(table.place().sizes) {}

  void elementwise_and_softmax() const {
    const auto& [rows, columns] = sizes_.softmax;
    const Tensor t = normal({rows, columns}, 0);
    const Variable x(t);
    const std::string size = size_text(static_cast<double>(t.bytes()));
    row("exp " + size, t, 2, [&] { (void)exp(x); });
    row("add " + size, t, 3, [&] { (void)add(x, x); });
    row(fmt::format("softmax {}x{}", rows, columns), t, 2, [&] { (void)softmax(x, 1); });
    if (!sizes_.backward_rows) return;
    row("dropout " + size, t, 2, [&] { (void)dropout(x, 0.1, DrawKey{7, 4, 9, 0}); });
    const Tensor y = like(t), dx = like(t);
    kernels::softmax_forward(t, y);
    row(fmt::format("softmax_backward {}x{}", rows, columns), t, 3,
        [&] { kernels::softmax_backward(y, t, dx); });
    // Parameter, gradient and both moments are read, all but the gradient written.
    const Tensor first = Tensor::zeros(t.shape(), t.dtype(), t.device()), second = first.clone();
    row("adam " + size, t, 7, [&] {
      kernels::adam(Tensors{y}, Tensors{}, Tensors{t}, Tensors{first}, Tensors{second}, AdamArgs{});
    });
    // As many bytes: gradient and parameter have half, the master is read and written as well.
    const Tensor low = t.to(DType::bfloat16), g = low.clone();
    row("adam bf16 with masters " + size, t, 7, [&] {
      kernels::adam(Tensors{low}, Tensors{y}, Tensors{g}, Tensors{first}, Tensors{second},
                    AdamArgs{});
    });
  }

  void layer_norms() const {
    const auto& [rows, columns] = sizes_.layer_norm;
    const std::string shape = fmt::format("{}x{}", rows, columns);
    const Tensor t = normal({rows, columns}, 0), w = normal({columns}, 1), b = normal({columns}, 2);
    const Variable x(t), vw(w), vb(b);
    row("layer_norm " + shape, t, 2, [&] { (void)layer_norm(x, vw, vb, 1e-5); });
    if (!sizes_.backward_rows) return;
    const Tensor mean = normal({rows, 2}, 3), rstd = normal({rows}, 4);
    const Tensor dx = like(t), dw = like(w), db = like(b);
    row("layer_norm_backward " + shape, t, 3, [&] {
      kernels::layer_norm_backward({.x = t,
                                    .weight = w,
                                    .mean = mean,
                                    .rstd = rstd,
                                    .grad = t,
                                    .dx = dx,
                                    .dweight = dw,
                                    .dbias = db});
    });
    // Heads of 64 with statistics over batch and positions: one read for them, one for the result.
    const Variable heads(t.view({-1, 8, 64, 64}));
    row("pre_sbn " + size_text(static_cast<double>(t.bytes())), t, 3,
        [&] { (void)pre_sbn(heads, Tensor(), SbnStatistics::batch, 1e-12, nullptr); });
  }

  void cross_entropies() const {
    const auto& [rows, columns] = sizes_.cross_entropy;
    const std::string shape = fmt::format("{}x{}", rows, columns);
    const Tensor t = normal({rows, columns}, 0);
    const Variable x(t);
    std::vector<int64_t> ids(static_cast<size_t>(rows));
    for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int64_t>(i) * 37 % columns;
    const Tensor target = Tensor::from_vector(ids).to(t.device());
    row("cross_entropy " + shape, t, 1, [&] { (void)cross_entropy(x, target, 0.1); });
    if (!sizes_.backward_rows) return;
    const Tensor statistics = normal({rows, 2}, 1), grad = normal({rows}, 2), dx = like(t);
    row("cross_entropy_backward " + shape, t, 2, [&] {
      kernels::cross_entropy_backward({.logits = t,
                                       .target = target,
                                       .statistics = statistics,
                                       .grad = grad,
                                       .smoothing = 0.1,
                                       .ignore = -100,
                                       .dlogits = dx});
    });
  }

 private:
  Tensor normal(const Shape& shape, uint32_t draw) const {
    const Tensor t = Tensor::empty(shape, DType::float32, table_.place().device);
    kernels::random_normal(t, DrawKey{7, 4, draw, 0});
    return t;
  }
  static Tensor like(const Tensor& t) { return Tensor::empty(t.shape(), t.dtype(), t.device()); }

  // Work that moves the bytes of `t` `passes` times.
  void row(const std::string& name, const Tensor& t, double passes,
           const std::function<void()>& f) const {
    table_.run({.name = name, .gbyte = passes * static_cast<double>(t.bytes()) * 1e-9}, f);
    if (table_.place().device.type == DeviceType::cpu) {
      table_.compare(name, table_.copy_limit());
    } else {
      table_.compare_rates(name, table_.copy_limit());
    }
  }

  BenchTable& table_;
  const BenchSizes& sizes_;
};

}  // namespace

void bench_rows(BenchTable& table) {
  const NoGrad off;
  const Rows rows(table);
  table.attempt("elementwise rows", [&] { rows.elementwise_and_softmax(); });
  table.attempt("layer norm rows", [&] { rows.layer_norms(); });
  table.attempt("cross entropy rows", [&] { rows.cross_entropies(); });
}

}  // namespace macgrad::experiments
