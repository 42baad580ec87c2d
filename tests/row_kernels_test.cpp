// Kernels over rows: softmax, cross entropy, layer norm and the optimizers, against plain float64
// formulas and figures of PyTorch; every backward kernel against central differences with a random
// cotangent; all of them at several thread counts.
#include <doctest/doctest.h>

#include <cmath>

#include "macgrad/core/kernels/optimizer.h"
#include "macgrad/core/kernels/rows.h"
#include "macgrad/tests/row_checks.h"

namespace macgrad {
using namespace checks;
namespace {

Tensor softmax(const Tensor& x) {
  const Tensor y = like(x);
  kernels::softmax_forward(x, y);
  return y;
}
Tensor log_softmax(const Tensor& x) {
  const Tensor y = like(x);
  kernels::log_softmax_forward(x, y);
  return y;
}
// {loss, statistics}
std::pair<Tensor, Tensor> cross_entropy(const Tensor& x, const Tensor& target, double smoothing,
                                        int64_t ignore = -100) {
  const DType dtype = compute_dtype(x.dtype());
  const Tensor loss = Tensor::empty({x.size(0)}, dtype);
  const Tensor statistics = Tensor::empty({x.size(0), 2}, dtype);
  kernels::cross_entropy_forward(x, target, smoothing, ignore, loss, statistics);
  return {loss, statistics};
}

Values log_softmax_reference(const Tensor& x) {
  const int64_t rows = x.size(0), n = x.size(1);
  Values v = x.to_vector<double>();
  for (int64_t r = 0; r < rows; ++r) {
    double* row = v.data() + r * n;
    double max = -kInf;
    for (int64_t i = 0; i < n; ++i) max = std::max(max, row[i]);
    long double sum = 0;
    for (int64_t i = 0; i < n; ++i) sum += std::exp(static_cast<long double>(row[i] - max));
    const auto log = static_cast<double>(std::log(sum));
    for (int64_t i = 0; i < n; ++i) row[i] = row[i] - max - log;
  }
  return v;
}

double tolerance_of(DType dtype) {
  return dtype == DType::float64 ? 1e-13 : dtype == DType::float32 ? 2e-6 : 0x1p-7;
}
const std::vector<DType> kFloating{DType::float32, DType::float64, DType::bfloat16};

}  // namespace

TEST_CASE("softmax, log-softmax and cross entropy equal their formulas at every size and dtype") {
  for (Shape shape : {Shape{0, 5}, Shape{3, 0}, Shape{1, 1}, Shape{5, 63}, Shape{7, 100},
                      Shape{3, 2048}, Shape{2, 5001}}) {
    for (DType dtype : kFloating) {
      CAPTURE(shape.text());
      CAPTURE(name(dtype));
      const int64_t rows = shape[0], n = shape[1];
      // Later columns are larger, so that the running maximum of a long row keeps rising.
      const Tensor wide = random(shape, 1);
      for (int64_t i = 0; i < wide.numel(); ++i) {
        wide.data<double>()[i] += 0.004 * static_cast<double>(i % n);
      }
      const Tensor x = wide.to(dtype);
      const Values expected = log_softmax_reference(x);
      Values probability = expected;
      for (double& p : probability) p = std::exp(p);
      check_close(log_softmax(x), expected, tolerance_of(dtype));
      check_close(softmax(x), probability, tolerance_of(dtype));
      if (n == 0) continue;
      const Tensor target = Tensor::empty({rows}, DType::int64);
      Values plain, smooth;
      for (int64_t r = 0; r < rows; ++r) {
        const int64_t t = (r * 17 + 3) % n;
        target.data<int64_t>()[r] = t;
        double mean = 0;
        for (int64_t i = 0; i < n; ++i) {
          mean += expected[static_cast<size_t>(r * n + i)] / static_cast<double>(n);
        }
        plain.push_back(-expected[static_cast<size_t>(r * n + t)]);
        smooth.push_back(0.9 * plain.back() - 0.1 * mean);
      }
      check_close(cross_entropy(x, target, 0).first, plain, tolerance_of(compute_dtype(dtype)));
      check_close(cross_entropy(x, target, 0.1).first, smooth, tolerance_of(compute_dtype(dtype)));
    }
  }
}

TEST_CASE("softmax with infinities, NaN and large logits") {
  const int64_t n = 5000;
  const Tensor x = random({6, n}, 2);
  auto* p = x.data<double>();
  std::fill(p, p + 4000, -kInf);                        // row 0: whole blocks of -inf first
  std::fill(p + n + 100, p + 2 * n, -kInf);             // row 1: and last
  std::fill(p + 2 * n, p + 3 * n, -kInf);               // row 2: nothing else
  p[3 * n + 4321] = kNaN;                               // row 3
  for (int64_t i = 0; i < n; ++i) p[4 * n + i] += 1e6;  // row 4
  const Values reference = log_softmax_reference(x);
  const Values y = softmax(x).to_vector<double>(), log_y = log_softmax(x).to_vector<double>();
  for (int64_t i = 0; i < 6 * n; ++i) {
    const auto k = static_cast<size_t>(i);
    const int64_t row = i / n;
    if (row == 2 || row == 3) {
      REQUIRE(std::isnan(y[k]));
      REQUIRE(std::isnan(log_y[k]));
    } else {
      REQUIRE(std::abs(y[k] - std::exp(reference[k])) <= 1e-13);
      REQUIRE((log_y[k] == reference[k] || std::abs(log_y[k] - reference[k]) <= 1e-12));
    }
  }
}

TEST_CASE("cross entropy: PyTorch's figures, ignored rows, targets out of range") {
  const Tensor x = tensor({1, -2, .5, 3, 0, .25, -1, 2, 4, 4, -4, 1}, {3, 4});
  const Tensor target = Tensor::from_vector(std::vector<int64_t>{3, 0, -100});
  const auto [loss, statistics] = cross_entropy(x, target, 0.1);
  check_close(loss, {0.43975344767935176, 2.275422822511076, 0.0}, 1e-14);
  const Tensor dx = like(x);
  kernels::cross_entropy_backward({.logits = x,
                                   .target = target,
                                   .statistics = statistics,
                                   .grad = tensor({1, -2, 3}, {3}),
                                   .smoothing = 0.1,
                                   .ignore = -100,
                                   .dlogits = dx});
  check_close(dx,
              {0.08555375036173923, -0.01949585287241633, 0.04205423914061148, -0.10811213662993435,
               1.6508158772246224, -0.20575747624423657, -0.02327574377682988, -1.421782657203556,
               0, 0, 0, 0},
              1e-14);
  // Nothing of an ignored row is used.
  for (int i = 8; i < 12; ++i) x.data<double>()[i] = kNaN;
  CHECK(cross_entropy(x, target, 0.1).first.at({2}) == 0);
  kernels::cross_entropy_backward({.logits = x,
                                   .target = target,
                                   .statistics = statistics,
                                   .grad = tensor({1, -2, kNaN}, {3}),
                                   .smoothing = 0.1,
                                   .ignore = -100,
                                   .dlogits = dx});
  CHECK(all_finite(dx));

  target.data<int64_t>()[1] = 4;
  CHECK_THROWS_WITH_AS(cross_entropy(x, target, 0), doctest::Contains("target 4 of row 1"), Error);
  target.data<int64_t>()[1] = -1;
  CHECK_THROWS_WITH_AS(cross_entropy(x, target, 0), doctest::Contains("target -1 of row 1"), Error);
  CHECK_THROWS_AS(kernels::cross_entropy_backward({.logits = x,
                                                   .target = target,
                                                   .statistics = statistics,
                                                   .grad = loss,
                                                   .smoothing = 0.0,
                                                   .ignore = -100,
                                                   .dlogits = dx}),
                  Error);
}

TEST_CASE("cross entropy does not depend on a common offset of the logits") {
  const Tensor target = Tensor::from_vector(std::vector<int64_t>{0});
  for (const DType dtype : kFloating) {
    for (double offset = 1e3; offset < 1e9; offset *= 10) {
      for (const double smoothing : {0.0, 0.5}) {
        CAPTURE(offset);
        const Tensor x = Tensor::full({1, 2}, offset, dtype), dx = like(x);
        const auto [loss, statistics] = cross_entropy(x, target, smoothing);
        check_close(loss, {std::log(2)}, tolerance_of(compute_dtype(dtype)));
        const Tensor g = Tensor::full({1}, 1, compute_dtype(dtype));
        kernels::cross_entropy_backward({.logits = x,
                                         .target = target,
                                         .statistics = statistics,
                                         .grad = g,
                                         .smoothing = smoothing,
                                         .ignore = -100,
                                         .dlogits = dx});
        const double first = -0.5 + smoothing / 2;
        CHECK(dx.to_vector<double>() == Values{first, -first});
      }
    }
  }
}

TEST_CASE("layer norm of equal values is the bias") {
  const Tensor w = random({7}, 41, DType::float32), b = random({7}, 42, DType::float32);
  for (const double eps : {0.0, 1e-13}) {
    const Tensor x = Tensor::full({1, 7}, 0.3), y = like(x), dx = like(x), dw = like(w),
                 db = like(b);
    const Tensor mean = Tensor::empty({1, 2}), rstd = Tensor::empty({1});
    kernels::layer_norm_forward(
        {.x = x, .weight = w, .bias = b, .eps = eps, .y = y, .mean = mean, .rstd = rstd});
    CHECK(y.to_vector<double>() == b.to_vector<double>());
    kernels::layer_norm_backward({.x = x,
                                  .weight = w,
                                  .mean = mean,
                                  .rstd = rstd,
                                  .grad = x,
                                  .dx = dx,
                                  .dweight = dw,
                                  .dbias = db});
    CHECK(all_finite(dx));
    CHECK(dw.to_vector<double>() == Values(7, 0.0));
  }
}

TEST_CASE("gradients of softmax, log-softmax and cross entropy") {
  const Tensor x = random({3, 7}, 3), c = random({3, 7}, 4), dx = like(x);
  kernels::softmax_backward(softmax(x), c, dx);
  check_gradient(x, dx, c, [&] { return softmax(x); });
  kernels::log_softmax_backward(log_softmax(x), c, dx);
  check_gradient(x, dx, c, [&] { return log_softmax(x); });
  const Tensor target = Tensor::from_vector(std::vector<int64_t>{6, 9, 2});
  const Tensor row_c = random({3}, 5);
  for (double smoothing : {0.0, 0.2}) {
    const Tensor statistics = cross_entropy(x, target, smoothing, 9).second;
    kernels::cross_entropy_backward({.logits = x,
                                     .target = target,
                                     .statistics = statistics,
                                     .grad = row_c,
                                     .smoothing = smoothing,
                                     .ignore = 9,
                                     .dlogits = dx});
    check_gradient(x, dx, row_c, [&] { return cross_entropy(x, target, smoothing, 9).first; });
  }
}

TEST_CASE("layer norm: PyTorch's figures, odd sizes, every dtype, gradients") {
  struct Result {
    Tensor y, mean, rstd;
  };
  const auto forward = [](const Tensor& x, const Tensor& w, const Tensor& b, double eps) {
    const DType dtype = compute_dtype(x.dtype());
    const Result r{like(x), Tensor::empty({x.size(0), 2}, dtype),
                   Tensor::empty({x.size(0)}, dtype)};
    kernels::layer_norm_forward(
        {.x = x, .weight = w, .bias = b, .eps = eps, .y = r.y, .mean = r.mean, .rstd = r.rstd});
    return r;
  };
  const Tensor x = tensor({1, -2, .5, 3, 0, .25, -1, 2, 4, 4, -4, 1}, {3, 4});
  check_close(forward(x, tensor({1, 2, -1, .5}, {4}), tensor({0, 1, 2, 3}, {4}), 1e-5).y,
              {0.21055838998863707, -1.9478174598409193, 2.0701861299962125, 3.6667682349640174,
               -0.28915622812633157, 0.8843375087494674, 3.2144561581305924, 3.7807218159410954,
               0.8411906306526756, 2.682381261305351, 3.6059093857914717, 2.96176406224306},
              1e-14);
  for (Shape shape : {Shape{0, 4}, Shape{2, 0}, Shape{3, 1}, Shape{300, 63}}) {
    for (DType dtype : kFloating) {
      CAPTURE(shape.text());
      CAPTURE(name(dtype));
      const int64_t rows = shape[0], n = shape[1];
      const Tensor a = random(shape, 6, dtype), w = random({n}, 7, dtype),
                   b = random({n}, 8, dtype);
      const Result r = forward(a, w, b, 1e-5);
      const Values in = a.to_vector<double>(), wv = w.to_vector<double>(),
                   bv = b.to_vector<double>();
      Values expected(in.size());
      for (int64_t row = 0; row < rows; ++row) {
        const double* p = in.data() + row * n;
        double mean = 0, var = 0;
        for (int64_t i = 0; i < n; ++i) mean += p[i] / static_cast<double>(n);
        for (int64_t i = 0; i < n; ++i)
          var += (p[i] - mean) * (p[i] - mean) / static_cast<double>(n);
        for (int64_t i = 0; i < n; ++i) {
          const auto k = static_cast<size_t>(i);
          expected[static_cast<size_t>(row * n) + k] =
              (p[i] - mean) / std::sqrt(var + 1e-5) * wv[k] + bv[k];
        }
      }
      check_close(r.y, expected, tolerance_of(dtype));
      const Tensor dx = like(a), dw = like(w), db = like(b);
      kernels::layer_norm_backward({.x = a,
                                    .weight = w,
                                    .mean = r.mean,
                                    .rstd = r.rstd,
                                    .grad = a,
                                    .dx = dx,
                                    .dweight = dw,
                                    .dbias = db});
      CHECK(all_finite(dx));
      if (rows == 0) check_close(dw, Values(static_cast<size_t>(n), 0.0), 0);
    }
  }
  // 130 rows: more than one block of the sums over rows.
  const Tensor a = random({130, 5}, 9), w = random({5}, 10), b = random({5}, 11);
  const Tensor c = random({130, 5}, 12), dx = like(a), dw = like(w), db = like(b);
  const Result r = forward(a, w, b, 1e-3);
  kernels::layer_norm_backward({.x = a,
                                .weight = w,
                                .mean = r.mean,
                                .rstd = r.rstd,
                                .grad = c,
                                .dx = dx,
                                .dweight = dw,
                                .dbias = db});
  const auto f = [&] { return forward(a, w, b, 1e-3).y; };
  check_gradient(a, dx, c, f, 1e-5, 1e-7);
  check_gradient(w, dw, c, f);
  check_gradient(b, db, c, f);
  // Between bfloat16 and float32 lies the rounding of the results alone, with means far from 0 too.
  const Tensor low = random({40, 64}, 13, DType::bfloat16), one = random({64}, 14, DType::bfloat16),
               cotangent = random({40, 64}, 15, DType::bfloat16);
  auto* values = low.data<bfloat16>();
  for (int64_t i = 0; i < low.numel(); ++i)
    values[i] = static_cast<bfloat16>(static_cast<float>(values[i]) + 10);
  std::vector<Tensors> gradients;
  for (DType dtype : {DType::bfloat16, DType::float32}) {
    const Tensor in = low.to(dtype), scale = one.to(dtype), g = cotangent.to(dtype);
    const Result s = forward(in, scale, scale, 1e-5);
    gradients.push_back({like(in), like(scale), like(scale)});
    const Tensors& d = gradients.back();
    kernels::layer_norm_backward({.x = in,
                                  .weight = scale,
                                  .mean = s.mean,
                                  .rstd = s.rstd,
                                  .grad = g,
                                  .dx = d[0],
                                  .dweight = d[1],
                                  .dbias = d[2]});
  }
  for (size_t i = 0; i < 3; ++i)
    check_close(gradients[0][i], gradients[1][i].to(DType::bfloat16).to_vector<double>(), 1e-6);
  // A large common offset costs no digits.
  const Tensor far = tensor({1e8 + 1, 1e8 - 1, 1e8 + 1, 1e8 - 1}, {1, 4});
  check_close(
      forward(far, Tensor::full({4}, 1, DType::float64), Tensor::zeros({4}, DType::float64), 0).y,
      {1, -1, 1, -1}, 1e-12);
}

TEST_CASE("Adam and AdamW: PyTorch's figures; sums of squares") {
  const auto run = [](bool decoupled, DType dtype) {
    const Tensors p{tensor({1, -2, .5, 0}, {4}).to(dtype)};
    const Tensors m{Tensor::zeros({4}, dtype)}, v{Tensor::zeros({4}, dtype)};
    for (int64_t step = 1; step <= 3; ++step) {
      const auto k = static_cast<double>(step);
      // Twice the gradient at half the scale.
      const Tensors g{tensor({.2 * k, -.4 * k, .6 * k, 0}, {4}).to(dtype)};
      kernels::adam(p, Tensors{}, g, m, v,
                    AdamArgs{.lr = .1,
                             .beta1 = .9,
                             .beta2 = .98,
                             .eps = 1e-8,
                             .weight_decay = .05,
                             .decoupled = decoupled,
                             .grad_scale = .5,
                             .step = step});
    }
    return Tensors{p[0], m[0], v[0]};
  };
  for (DType dtype : {DType::float64, DType::float32}) {
    const double tolerance = dtype == DType::float64 ? 1e-13 : 1e-6;
    Tensors r = run(true, dtype);
    check_close(r[0], {0.6950334245744019, -1.6801082894125638, 0.2024959735252842, 0}, tolerance);
    check_close(r[1], {0.0561, -0.1122, 0.1683, 0}, tolerance);
    check_close(r[2], {0.00277608, 0.01110432, 0.02498472, 0}, tolerance);
    r = run(false, dtype);
    check_close(r[0], {0.704303383786723, -1.7044967425407054, 0.20746400368027285, 0}, tolerance);
    check_close(r[1], {0.06820883538422032, -0.1378592711321718, 0.17364126126525622, 0},
                tolerance);
  }
  const Tensor total = Tensor::empty({1}, DType::float64);
  kernels::sum_of_squares(Tensors{}, total);
  CHECK(total.item() == 0);
  const Tensor big = random({40001}, 13), small = random({3}, 14, DType::float32);
  kernels::sum_of_squares(Tensors{big, small, Tensor::empty({0})}, total);
  long double expected = 0;
  for (const Tensor& t : {big, small})
    for (double value : t.to_vector<double>()) expected += static_cast<long double>(value) * value;
  CHECK(std::abs(total.item() - static_cast<double>(expected)) <= 1e-13 * total.item());
}

TEST_CASE("row kernels do not depend on the number of threads") {
  for (DType dtype : {DType::float32, DType::float64}) {
    const Tensor x = random({1001, 65}, 15, dtype), c = random({1001, 65}, 16, dtype);
    const Tensor w = random({65}, 17, dtype), rows = random({1001}, 18, dtype);
    const Tensor target = Tensor::full({1001}, 7, DType::int64);
    check_threads([&] {
      const Tensor y = softmax(x), z = log_softmax(x), dy = like(x), dz = like(x), dl = like(x);
      kernels::softmax_backward(y, c, dy);
      kernels::log_softmax_backward(z, c, dz);
      const auto [loss, statistics] = cross_entropy(x, target, 0.1);
      kernels::cross_entropy_backward({.logits = x,
                                       .target = target,
                                       .statistics = statistics,
                                       .grad = rows,
                                       .smoothing = 0.1,
                                       .ignore = -100,
                                       .dlogits = dl});
      const Tensor n = like(x), mean = Tensor::empty({1001, 2}, dtype), rstd = like(rows),
                   dx = like(x), dw = like(w), db = like(w);
      kernels::layer_norm_forward(
          {.x = x, .weight = w, .bias = w, .eps = 1e-5, .y = n, .mean = mean, .rstd = rstd});
      kernels::layer_norm_backward({.x = x,
                                    .weight = w,
                                    .mean = mean,
                                    .rstd = rstd,
                                    .grad = c,
                                    .dx = dx,
                                    .dweight = dw,
                                    .dbias = db});
      const Tensors p{x.clone(), w.clone()}, m{like(x), like(w)}, v{like(x), like(w)};
      for (const Tensors& list : {m, v})
        for (const Tensor& t : list) t.fill(0.5);
      kernels::adam(p, Tensors{}, Tensors{c, w}, m, v, AdamArgs{});
      const Tensor total = Tensor::empty({1}, DType::float64);
      kernels::sum_of_squares(Tensors{x, c, w}, total);
      return Tensors{y, z, dy, dz, loss, statistics, dl, n, dx, dw, db, p[0], p[1], total};
    });
  }
}

}  // namespace macgrad
