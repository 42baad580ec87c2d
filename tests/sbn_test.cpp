// ppSBN kernels against the worked examples of the paper's normalisation, a plain float64 form and
// central differences: masks, strides, all-zero rows, and NaN where nothing may look.
#include <doctest/doctest.h>

#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>

#include "macgrad/autograd/attention.h"
#include "macgrad/autograd/gradcheck.h"
#include "macgrad/autograd/ops.h"
#include "macgrad/core/kernels/sbn.h"
#include "macgrad/tests/row_checks.h"

namespace macgrad {
using namespace checks;
namespace {

const std::vector<SbnStatistics> kModes{SbnStatistics::batch, SbnStatistics::fixed,
                                        SbnStatistics::row};

struct PreSbn {
  Tensor mean, var, y;
};

PreSbn pre_sbn(const Tensor& x, const Tensor& valid, SbnStatistics statistics, double eps,
               const Tensor& y_memory = {}) {
  PreSbn r;
  if (statistics != SbnStatistics::row) {
    const DType dtype = compute_dtype(x.dtype());
    r.mean = Tensor::full({x.size(1), x.size(3)}, 0.3, dtype);
    r.var = Tensor::full({x.size(1), x.size(3)}, 1.7, dtype);
  }
  r.y = y_memory.defined() ? y_memory : like(x);
  kernels::pre_sbn_forward({.x = x,
                            .valid = valid,
                            .statistics = statistics,
                            .eps = eps,
                            .mean = r.mean,
                            .var = r.var,
                            .running_mean = Tensor(),
                            .running_var = Tensor(),
                            .momentum = 0.0,
                            .y = r.y});
  return r;
}

Tensor pre_sbn_gradient(const Tensor& x, const Tensor& valid, SbnStatistics statistics, double eps,
                        const Tensor& grad) {
  const PreSbn r = pre_sbn(x, valid, statistics, eps);
  const Tensor dx = like(x);
  kernels::pre_sbn_backward({.x = x,
                             .valid = valid,
                             .mean = r.mean,
                             .var = r.var,
                             .grad = grad,
                             .statistics = statistics,
                             .eps = eps,
                             .dx = dx});
  return dx;
}

// The formula, element by element.
Values pre_sbn_reference(const Tensor& x, const Tensor& valid, SbnStatistics statistics,
                         double eps) {
  const int64_t b = x.size(0), h = x.size(1), t = x.size(2), d = x.size(3);
  const Values v = x.to_vector<double>();
  const auto at = [&](int64_t i, int64_t j, int64_t k, int64_t c) {
    return v[static_cast<size_t>(((i * h + j) * t + k) * d + c)];
  };
  const auto is_valid = [&](int64_t i, int64_t k) {
    return !valid.defined() || valid.data<bool>()[i * t + k];
  };
  Values y(v.size(), 0.0);
  for (int64_t j = 0; j < h; ++j) {
    Values mean(static_cast<size_t>(d), 0.3), var(static_cast<size_t>(d), 1.7);
    for (int64_t c = 0; c < d && statistics == SbnStatistics::batch; ++c) {
      double n = 0, sum = 0, squares = 0;
      for (int64_t i = 0; i < b; ++i)
        for (int64_t k = 0; k < t; ++k)
          if (is_valid(i, k)) n += 1, sum += at(i, j, k, c);
      for (int64_t i = 0; i < b; ++i)
        for (int64_t k = 0; k < t; ++k)
          if (is_valid(i, k)) squares += std::pow(at(i, j, k, c) - sum / n, 2);
      mean[static_cast<size_t>(c)] = sum / n;
      var[static_cast<size_t>(c)] = squares / n;
    }
    for (int64_t i = 0; i < b; ++i) {
      for (int64_t k = 0; k < t; ++k) {
        if (!is_valid(i, k)) continue;
        double row_mean = 0, row_var = 0, norm = 0;
        for (int64_t c = 0; c < d; ++c) row_mean += at(i, j, k, c) / static_cast<double>(d);
        for (int64_t c = 0; c < d; ++c) {
          row_var += std::pow(at(i, j, k, c) - row_mean, 2) / static_cast<double>(d);
        }
        double* out = y.data() + ((i * h + j) * t + k) * d;
        for (int64_t c = 0; c < d; ++c) {
          const bool by_row = statistics == SbnStatistics::row;
          const double m = by_row ? row_mean : mean[static_cast<size_t>(c)];
          const double s = by_row ? row_var : var[static_cast<size_t>(c)];
          out[c] = (at(i, j, k, c) - m) / std::sqrt(s + eps);
          norm += out[c] * out[c];
        }
        norm = std::sqrt(norm);
        for (int64_t c = 0; c < d; ++c) out[c] = norm < 1e-12 ? 0 : out[c] / norm;
      }
    }
  }
  return y;
}

// Every third position invalid, and all of the last batch entry.
Tensor mask(int64_t b, int64_t t) {
  const Tensor valid = Tensor::empty({b, t}, DType::boolean);
  for (int64_t i = 0; i < b * t; ++i) {
    valid.data<bool>()[i] = i % 3 != 1 && (b == 1 || i / t != b - 1);
  }
  return valid;
}

void fill_invalid(const Tensor& x, const Tensor& valid, double value) {
  for (int64_t b = 0; b < x.size(0); ++b)
    for (int64_t t = 0; t < x.size(2); ++t)
      if (!valid.data<bool>()[b * x.size(2) + t]) x.select(0, b).select(1, t).fill(value);
}

nlohmann::json fixture() {
  std::ifstream in(MACGRAD_FIXTURES "/sbn.json");
  return nlohmann::json::parse(in);
}

void flatten(const nlohmann::json& json, Values& values) {
  if (json.is_array()) {
    for (const auto& item : json) flatten(item, values);
  } else {
    values.push_back(json.get<double>());
  }
}
Values flat(const nlohmann::json& json) {
  Values values;
  flatten(json, values);
  return values;
}

}  // namespace

TEST_CASE("pre_sbn gives 0, with gradient 0, for every row and channel of equal values") {
  // Sums of these are not exact, in one dtype or another.
  const Values numbers{0.1, 0.2, 0.3, 0.7, 1.1, 1.0 / 3, 3.3, 12.7, -1e3 / 7, 1e8 / 3, 1e-5 / 3, 1};
  for (const DType dtype : {DType::float32, DType::float64, DType::bfloat16}) {
    for (const SbnStatistics statistics : {SbnStatistics::row, SbnStatistics::batch}) {
      for (const double value : numbers) {
        for (const int64_t d : {1, 2, 3, 6, 7, 24, 65}) {
          for (const double eps : {0.0, 1e-13, 1e-5}) {
            CAPTURE(name(dtype));
            CAPTURE(value);
            CAPTURE(d);
            CAPTURE(eps);
            const Shape shape{2, 1, 3, d};
            const Tensor x = Tensor::full(shape, value, dtype), g = random(shape, 40, dtype);
            const Values zeros(static_cast<size_t>(x.numel()), 0.0);
            REQUIRE(pre_sbn(x, {}, statistics, eps).y.to_vector<double>() == zeros);
            REQUIRE(pre_sbn_gradient(x, {}, statistics, eps, g).to_vector<double>() == zeros);
          }
        }
      }
    }
  }
}

TEST_CASE("pre_sbn by rows keeps its gradient where the square of a norm leaves float32's range") {
  const Tensor small =
      Tensor::from_values(Values{1e-20, 2e-20, -1e-20, 5e-21}, Shape{1, 1, 1, 4}, DType::float32);
  const Tensor plain =
      Tensor::from_values(Values{1, 2, -1, 0.5}, Shape{1, 1, 1, 4}, DType::float32);
  const Tensor g = random({1, 1, 1, 4}, 41, DType::float32);
  const Values expected =
      pre_sbn_gradient(plain, {}, SbnStatistics::row, 0.0, g).to_vector<double>();
  const Values dx = pre_sbn_gradient(small, {}, SbnStatistics::row, 0.0, g).to_vector<double>();
  for (size_t i = 0; i < dx.size(); ++i)
    CHECK(dx[i] * 1e-20 == doctest::Approx(expected[i]).epsilon(1e-4));
}

TEST_CASE("pre_sbn checks running statistics before its kernel writes to them") {
  const Variable x(random({2, 3, 4, 5}, 42, DType::float32));
  const Tensor good = Tensor::zeros({3, 5}), wide = Tensor::zeros({3, 6});
  CHECK_THROWS_AS(macgrad::pre_sbn(x, {}, SbnStatistics::batch, 1e-5, nullptr, {good, wide}),
                  Error);
  CHECK_THROWS_AS(macgrad::pre_sbn(x, {}, SbnStatistics::batch, 1e-5, nullptr, {good, {}}), Error);
  CHECK_NOTHROW(macgrad::pre_sbn(x, {}, SbnStatistics::batch, 1e-5, nullptr, {good, good.clone()}));
}

TEST_CASE(
    "preSBN kernel: running statistics take their share of the batch's, rounded as two ops do") {
  for (const DType dtype : {DType::float32, DType::float64, DType::bfloat16}) {
    for (const DType kept : {DType::float32, DType::float64}) {
      CAPTURE(name(dtype));
      CAPTURE(name(kept));
      const Tensor x = random({3, 2, 7, 5}, 1, dtype), y = like(x);
      const DType computed = compute_dtype(dtype);
      const Tensor mean = Tensor::empty({2, 5}, computed), var = Tensor::empty({2, 5}, computed);
      const Tensor running_mean = random({2, 5}, 2, kept), running_var = random({2, 5}, 3, kept);
      // share·now + (1 - share)·running in ops of the type that the kernel computes in.
      const auto followed = [&](const Tensor& running, const Tensor& now) {
        const Variable before(running.to(computed));
        return add(mul(before, 1.0 - 0.3), mul(Variable(now), 0.3)).value().to(kept);
      };
      const Tensor old_mean = running_mean.clone(), old_var = running_var.clone();
      const auto forward = [&](SbnStatistics statistics) {
        kernels::pre_sbn_forward({.x = x,
                                  .valid = Tensor(),
                                  .statistics = statistics,
                                  .eps = 1e-5,
                                  .mean = mean,
                                  .var = var,
                                  .running_mean = running_mean,
                                  .running_var = running_var,
                                  .momentum = 0.3,
                                  .y = y});
      };
      forward(SbnStatistics::batch);
      CHECK(max_abs_difference(running_mean, followed(old_mean, mean)) == 0);
      CHECK(max_abs_difference(running_var, followed(old_var, var)) == 0);
      CHECK(max_abs_difference(running_mean, old_mean) > 0.01);
      // Other statistics leave them alone.
      const Tensor after = running_mean.clone();
      forward(SbnStatistics::fixed);
      CHECK(max_abs_difference(running_mean, after) == 0);
    }
  }
}

TEST_CASE("preSBN and postSBN: the worked examples") {
  const auto json = fixture();
  const auto& pre = json["pre_sbn"];
  const Tensor x = tensor(flat(pre["x"]), {2, 1, 3, 4});
  const double eps = pre["eps"].get<double>();
  check_close(pre_sbn(x, {}, SbnStatistics::batch, eps).y, flat(pre["batch"]), 1e-14);
  check_close(pre_sbn(x, {}, SbnStatistics::row, eps).y, flat(pre["row"]), 1e-14);

  const auto& post = json["post_sbn"];
  const Tensor att = tensor(flat(post["att"]), {4}), y = like(att);
  kernels::post_sbn_forward(att, tensor({post["gamma"].get<double>()}, {1}),
                            tensor({post["beta"].get<double>()}, {1}), 1e-6, y);
  check_close(y, flat(post["out"]), 1e-11);
}

TEST_CASE("preSBN equals its formula at every size, dtype and mask, whatever lies in padding") {
  for (Shape shape : {Shape{0, 2, 3, 4}, Shape{2, 2, 0, 4}, Shape{1, 1, 1, 5}, Shape{2, 3, 7, 1},
                      Shape{3, 2, 101, 13}}) {
    for (DType dtype : {DType::float32, DType::float64, DType::bfloat16}) {
      for (SbnStatistics mode : kModes) {
        for (bool masked : {false, true}) {
          CAPTURE(shape.text());
          CAPTURE(name(dtype));
          CAPTURE(static_cast<int>(mode));
          CAPTURE(masked);
          const Tensor x = random(shape, 1, dtype);
          const Tensor valid = masked ? mask(shape[0], shape[2]) : Tensor();
          const Values expected = pre_sbn_reference(x.to(DType::float64), valid, mode, 1e-12);
          if (masked) fill_invalid(x, valid, kNaN);
          // Rows of one channel are 0 or ±1: a rounded statistic may flip what is 0 exactly.
          const PreSbn r = pre_sbn(x, valid, mode, 1e-12);
          if (dtype == DType::float64 || shape[3] > 1) {
            check_close(r.y, expected,
                        dtype == DType::float64   ? 1e-12
                        : dtype == DType::float32 ? 2e-6
                                                  : 0x1p-6);
          }
          const Tensor grad = random(shape, 2, dtype);
          if (masked) fill_invalid(grad, valid, kNaN);
          const Tensor dx = pre_sbn_gradient(x, valid, mode, 1e-12, grad);
          CHECK(all_finite(dx));
          if (!masked) continue;
          for (int64_t b = 0; b < shape[0]; ++b)
            for (int64_t t = 0; t < shape[2]; ++t)
              if (!valid.data<bool>()[b * shape[2] + t]) {
                for (double v : dx.select(0, b).select(1, t).to_vector<double>()) REQUIRE(v == 0);
              }
        }
      }
    }
  }
}

TEST_CASE("preSBN batch statistics are the biased ones of valid positions; none give 0 and 1") {
  const Tensor x = tensor({1, 10, 3, 30, 100, -100}, {1, 1, 3, 2});
  const Tensor valid = Tensor::from_vector(std::vector<bool>{true, true, false}, {1, 3});
  PreSbn r = pre_sbn(x, valid, SbnStatistics::batch, 1e-12);
  check_close(r.mean, {2, 20}, 1e-15);
  check_close(r.var, {1, 100}, 1e-15);
  valid.fill(0);
  r = pre_sbn(x, valid, SbnStatistics::batch, 1e-12);
  check_close(r.mean, {0, 0}, 0);
  check_close(r.var, {1, 1}, 0);
  check_close(r.y, Values(6, 0.0), 0);
  check_close(pre_sbn_gradient(x, valid, SbnStatistics::batch, 1e-12, x), Values(6, 0.0), 0);
  // An offset far above the spread, and several blocks: two passes lose nothing.
  const Tensor far = random({2, 1, 301, 3}, 3);
  const Values near = pre_sbn(far, {}, SbnStatistics::batch, 0).y.to_vector<double>();
  for (int64_t i = 0; i < far.numel(); ++i) far.data<double>()[i] += 1e7;
  check_close(pre_sbn(far, {}, SbnStatistics::batch, 0).y, near, 1e-7);
}

TEST_CASE("preSBN reads and writes any strides") {
  const Tensor base = random({2, 5, 3, 8}, 4);                        // (B, T, H, d)
  const Tensor x = base.permute({0, 2, 1, 3}).slice(3, 1, 7);         // (B, H, T, 6)
  const Tensor grad = random({3, 2, 5, 6}, 5).permute({1, 0, 2, 3});  // (B, H, T, 6)
  const Tensor valid = mask(2, 5);
  for (SbnStatistics mode : kModes) {
    CAPTURE(static_cast<int>(mode));
    const Tensor memory = Tensor::full({2, 5, 3, 9}, 7, DType::float64);
    const Tensor view = memory.permute({0, 2, 1, 3}).slice(3, 2, 8);
    pre_sbn(x, valid, mode, 1e-5, view);
    check_close(view, pre_sbn(x.contiguous(), valid, mode, 1e-5).y.to_vector<double>(), 1e-15);
    for (int64_t c : {0, 1, 8}) {
      for (double v : memory.select(3, c).to_vector<double>()) REQUIRE(v == 7);
    }
    const PreSbn r = pre_sbn(x.contiguous(), valid, mode, 1e-5);
    const Tensor dx = Tensor::empty({2, 5, 3, 6}, DType::float64).permute({0, 2, 1, 3});
    kernels::pre_sbn_backward({.x = x,
                               .valid = valid,
                               .mean = r.mean,
                               .var = r.var,
                               .grad = grad,
                               .statistics = mode,
                               .eps = 1e-5,
                               .dx = dx});
    check_close(
        dx,
        pre_sbn_gradient(x.contiguous(), valid, mode, 1e-5, grad.contiguous()).to_vector<double>(),
        1e-14);
  }
}

TEST_CASE("preSBN gradients, through the statistics in batch mode") {
  const Tensor valid = mask(2, 5);
  for (SbnStatistics mode : kModes) {
    for (double eps : {1e-12, 0.5}) {
      for (const Tensor& v : {Tensor(), valid}) {
        CAPTURE(static_cast<int>(mode));
        CAPTURE(eps);
        const Tensor x = random({2, 2, 5, 4}, 6), c = random({2, 2, 5, 4}, 7);
        check_gradient(
            x, pre_sbn_gradient(x, v, mode, eps, c), c, [&] { return pre_sbn(x, v, mode, eps).y; },
            1e-5, 1e-7);
      }
    }
  }
  // More than one block of rows.
  const Tensor x = random({2, 1, 90, 3}, 8), c = random({2, 1, 90, 3}, 9), v = mask(2, 90);
  check_gradient(
      x, pre_sbn_gradient(x, v, SbnStatistics::batch, 1e-12, c), c,
      [&] { return pre_sbn(x, v, SbnStatistics::batch, 1e-12).y; }, 1e-5, 1e-6);
}

TEST_CASE("preSBN gradients in bfloat16 are those of float32, rounded") {
  Tensor low = random({3, 2, 20, 8}, 40, DType::bfloat16);
  auto* values = low.data<bfloat16>();
  for (int64_t i = 0; i < low.numel(); ++i)
    values[i] = static_cast<bfloat16>(static_cast<float>(values[i]) + 10);
  const Tensor grad = random({3, 2, 20, 8}, 41, DType::bfloat16);
  for (const SbnStatistics mode : kModes) {
    const Tensor exact =
        pre_sbn_gradient(low.to(DType::float32), {}, mode, 1e-5, grad.to(DType::float32));
    check_close(pre_sbn_gradient(low, {}, mode, 1e-5, grad),
                exact.to(DType::bfloat16).to_vector<double>(), 1e-6);
  }
}

TEST_CASE("a row that preSBN maps to zero has zero gradient, and gives none") {
  // fixed: the row equals the mean; row: all channels equal.
  const Tensor x = Tensor::full({1, 1, 2, 4}, 0.3, DType::float64);
  x.select(2, 1).copy_from(random({4}, 10));
  const Tensor c = random({1, 1, 2, 4}, 11);
  for (SbnStatistics mode : {SbnStatistics::fixed, SbnStatistics::row}) {
    const Tensor y = pre_sbn(x, {}, mode, 1e-12).y;
    check_close(y.select(2, 0), Values(4, 0.0), 0);
    const Tensor dx = pre_sbn_gradient(x, {}, mode, 1e-12, c);
    check_close(dx.select(2, 0), Values(4, 0.0), 0);
    CHECK(all_finite(dx));
  }
  // batch: one position is its own mean, so that everything is 0.
  const Tensor one = random({1, 1, 1, 4}, 12);
  check_close(pre_sbn(one, {}, SbnStatistics::batch, 1e-12).y, Values(4, 0.0), 0);
  check_close(pre_sbn_gradient(one, {}, SbnStatistics::batch, 1e-12, one), Values(4, 0.0), 0);
  // A valid NaN is not hidden.
  x.select(2, 1).fill(kNaN);
  CHECK(std::isnan(pre_sbn(x, {}, SbnStatistics::row, 1e-12).y.at({0, 0, 1, 0})));
}

TEST_CASE("postSBN: signed power, any strides, gradients of x, gamma and beta") {
  const auto forward = [](const Tensor& x, const Tensor& gamma, const Tensor& beta) {
    const Tensor y = Tensor::empty(x.shape(), x.dtype());
    kernels::post_sbn_forward(x, gamma, beta, 1e-6, y);
    return y;
  };
  const Tensor x = random({2, 3, 70, 4}, 13);
  // Away from 0, where the curvature is as large as 1/eps and differences say nothing.
  for (int64_t i = 0; i < x.numel(); ++i) {
    double& v = x.data<double>()[i];
    v += v < 0 ? -0.3 : 0.3;
  }
  const Tensor c = random({2, 3, 70, 4}, 14);
  for (int64_t n : {1, 4}) {
    for (double middle : {0.5, 1.0, 1.7}) {
      CAPTURE(n);
      CAPTURE(middle);
      const Tensor gamma = tensor({0.8, -1.2, 1.0, 0.3}, {4}).slice(0, 0, n).clone();
      const Tensor beta = tensor({middle, 0.3, 1.0, 2.0}, {4}).slice(0, 0, n).clone();
      const Values in = x.to_vector<double>();
      Values expected;
      for (size_t i = 0; i < in.size(); ++i) {
        const int64_t k = n == 1 ? 0 : static_cast<int64_t>(i % 4);
        const double s = gamma.at({k}) * in[i];
        expected.push_back(std::copysign(std::pow(std::abs(s), beta.at({k})), s));
      }
      check_close(forward(x, gamma, beta), expected, 1e-9);
      const Tensor dx = like(x), dg = like(gamma), db = like(beta);
      kernels::post_sbn_backward({.x = x,
                                  .gamma = gamma,
                                  .beta = beta,
                                  .grad = c,
                                  .eps = 1e-6,
                                  .dx = dx,
                                  .dgamma = dg,
                                  .dbeta = db});
      const auto f = [&] { return forward(x, gamma, beta); };
      check_gradient(x, dx, c, f, 1e-6, 1e-6);
      check_gradient(gamma, dg, c, f, 1e-6, 1e-6);
      check_gradient(beta, db, c, f, 1e-6, 1e-6);

      // (B, T, H, d) memory, seen as (B, H, T, d).
      const Tensor strided = Tensor::empty({2, 70, 3, 4}, DType::float64).permute({0, 2, 1, 3});
      strided.copy_from(x);
      const Tensor y = Tensor::empty({2, 70, 3, 4}, DType::float64).permute({0, 2, 1, 3});
      kernels::post_sbn_forward(strided, gamma, beta, 1e-6, y);
      CHECK(max_abs_difference(y, forward(x, gamma, beta)) == 0);
      const Tensor dx2 = Tensor::empty({2, 70, 3, 4}, DType::float64).permute({0, 2, 1, 3});
      const Tensor dg2 = like(gamma), db2 = like(beta);
      kernels::post_sbn_backward({.x = strided,
                                  .gamma = gamma,
                                  .beta = beta,
                                  .grad = c,
                                  .eps = 1e-6,
                                  .dx = dx2,
                                  .dgamma = dg2,
                                  .dbeta = db2});
      CHECK(max_abs_difference(dx2, dx) == 0);
      CHECK(max_abs_difference(dg2, dg) == 0);
      CHECK(max_abs_difference(db2, db) == 0);
    }
  }
  // At 0 the value is 0 and the slope gamma·eps^(beta-1): finite.
  const Tensor zero = Tensor::zeros({1, 4}, DType::float64),
               one = Tensor::full({1, 4}, 1, DType::float64);
  const Tensor gamma = tensor({2}, {1}), beta = tensor({0.5}, {1});
  const Tensor dx = like(zero), dg = like(gamma), db = like(beta);
  kernels::post_sbn_backward({.x = zero,
                              .gamma = gamma,
                              .beta = beta,
                              .grad = one,
                              .eps = 1e-6,
                              .dx = dx,
                              .dgamma = dg,
                              .dbeta = db});
  check_close(forward(zero, gamma, beta), Values(4, 0.0), 0);
  check_close(dx, Values(4, 2000.0), 1e-9);
  CHECK(dg.item() == 0);
  CHECK(db.item() == 0);
  // No rows: nothing to learn from.
  const Tensor none = Tensor::empty({0, 4}, DType::float64), dnone = like(none);
  kernels::post_sbn_forward(none, gamma, beta, 1e-6, dnone);
  kernels::post_sbn_backward({.x = none,
                              .gamma = gamma,
                              .beta = beta,
                              .grad = none,
                              .eps = 1e-6,
                              .dx = dnone,
                              .dgamma = dg,
                              .dbeta = db});
  CHECK(dg.item() == 0);
  // float32 and bfloat16 agree with float64 to their precision.
  for (DType dtype : {DType::float32, DType::bfloat16}) {
    const Tensor low = x.to(dtype);
    const Values wide = forward(low.to(DType::float64), gamma, beta).to_vector<double>();
    check_close(forward(low, gamma.to(dtype), beta.to(dtype)), wide,
                dtype == DType::float32 ? 1e-6 : 0x1p-8);
  }
}

TEST_CASE("ppSBN kernels do not depend on the number of threads") {
  for (DType dtype : {DType::float32, DType::float64}) {
    const Tensor x = random({3, 5, 131, 33}, 15, dtype), c = random({3, 5, 131, 33}, 16, dtype);
    const Tensor gamma = random({33}, 17, dtype), beta = Tensor::full({33}, 1.3, dtype);
    const Tensor valid = mask(3, 131);
    check_threads([&] {
      Tensors results;
      for (SbnStatistics mode : kModes) {
        const PreSbn r = pre_sbn(x, valid, mode, 1e-12);
        if (r.mean.defined()) results.insert(results.end(), {r.mean, r.var});
        results.insert(results.end(), {r.y, pre_sbn_gradient(x, valid, mode, 1e-12, c)});
      }
      const Tensor y = like(x), dx = like(x), dg = like(gamma), db = like(beta);
      kernels::post_sbn_forward(x, gamma, beta, 1e-6, y);
      kernels::post_sbn_backward({.x = x,
                                  .gamma = gamma,
                                  .beta = beta,
                                  .grad = c,
                                  .eps = 1e-6,
                                  .dx = dx,
                                  .dgamma = dg,
                                  .dbeta = db});
      results.insert(results.end(), {y, dx, dg, db});
      return results;
    });
  }
}

}  // namespace macgrad
