// preSBN and postSBN of the CUDA backend against the CPU's in float64: statistics of the batch,
// given and of the row; masks with NaN behind them, strides, every way of sharing out a row, zero
// rows, far offsets; and the same bits whatever the order of the threads.
#include <doctest/doctest.h>

#include <cmath>

#include "macgrad/core/kernels/sbn.h"
#include "macgrad/tests/cuda/device.h"
#include "macgrad/tests/cuda/rounding.h"
#include "macgrad/tests/op_cases.h"
#ifdef MACGRAD_CUDA_EMULATED
#include "macgrad/tests/cuda/emulation/machine.h"
#endif

namespace macgrad::testing {
namespace {

const std::vector<DType> kFloating = {DType::float32, DType::float64, DType::bfloat16};
const std::vector<SbnStatistics> kModes = {SbnStatistics::batch, SbnStatistics::fixed,
                                           SbnStatistics::row};

Tensor moved(const Tensor& t, Device device) {
  return !t.defined() || device == kCpu ? t : on_gpu(t);
}

struct PreSbn {
  Tensor x, valid, grad;
  SbnStatistics statistics = SbnStatistics::batch;
  double eps = 1e-12;
  DType moments = DType::float32;  // how mean and var are stored

  // Numbers in the longest sum: a channel's or a row's.
  int64_t terms() const { return std::max(x.size(0) * x.size(2), x.size(3)); }
};

// y, dx and, but for `row`, mean and var.
Tensors run(const PreSbn& c, Device device, bool in_float64 = false) {
  const Tensor valid = moved(c.valid, device);
  const Tensor x = in_float64 ? wide(c.x) : moved(c.x, device),
               grad = in_float64 ? wide(c.grad) : moved(c.grad, device);
  Tensor mean, var;
  if (c.statistics != SbnStatistics::row) {
    mean = Tensor::full({x.size(1), x.size(3)}, 0.3, c.moments, device);
    var = Tensor::full({x.size(1), x.size(3)}, 1.7, c.moments, device);
    // bfloat16 moments stay, because the backward kernel reads them rounded.
    if (in_float64 && c.moments != DType::bfloat16) {
      mean = wide(mean);
      var = wide(var);
    }
  }
  // Results as (B, T, H, d), the layout of the layers, with something around them.
  const auto result = [&] {
    return Tensor::full({x.size(0), x.size(2), x.size(1), x.size(3)}, 7, x.dtype(), device)
        .transpose(1, 2);
  };
  const Tensor y = result(), dx = result();
  kernels::pre_sbn_forward({.x = x,
                            .valid = valid,
                            .statistics = c.statistics,
                            .eps = c.eps,
                            .mean = mean,
                            .var = var,
                            .running_mean = Tensor(),
                            .running_var = Tensor(),
                            .momentum = 0.0,
                            .y = y});
  kernels::pre_sbn_backward({.x = x,
                             .valid = valid,
                             .mean = mean,
                             .var = var,
                             .grad = grad,
                             .statistics = c.statistics,
                             .eps = c.eps,
                             .dx = dx});
  Tensors results{y.clone(), dx.clone()};
  if (mean.defined()) results.insert(results.end(), {mean, var});
  for (Tensor& t : results) t = t.to(kCpu);
  return results;
}

// Kernels compute as x's dtype asks, whatever that of a result.
double result_tolerance(DType x, DType result, int64_t terms) {
  return std::max(rounding_tolerance(compute_dtype(x), terms), rounding_tolerance(result, terms));
}

void check_against_float64(const PreSbn& c) {
  const Tensors expected = run(c, kCpu, true), got = run(c, kGpu), on_cpu = run(c, kCpu);
  for (size_t i = 0; i < got.size(); ++i) {
    CAPTURE(i);
    const double tolerance =
        result_tolerance(c.x.dtype(), i < 2 ? c.x.dtype() : c.moments, c.terms());
    CHECK(difference(got[i], expected[i]) <= tolerance);
    CHECK(difference(on_cpu[i], expected[i]) <= tolerance);
  }
}

PreSbn random_case(const Shape& shape, DType dtype, SbnStatistics statistics, bool masked) {
  PreSbn c{exact_values(shape, 1, dtype), {}, exact_values(shape, 2, dtype), statistics, 1e-12,
           compute_dtype(dtype)};
  if (!masked) return c;
  c.valid = random_mask({shape[0], shape[2]}, 3);
  if (shape[0] > 1) c.valid.select(0, shape[0] - 1).fill(0);
  for (int64_t b = 0; b < shape[0]; ++b)
    for (int64_t t = 0; t < shape[2]; ++t)
      if (!c.valid.data<bool>()[b * shape[2] + t])
        for (const Tensor& hidden : {c.x, c.grad})
          hidden.select(0, b).select(1, t).fill(std::nan(""));
  return c;
}

TEST_CASE("cuda pre_sbn gives 0, with gradient 0, for every row and channel of equal values") {
  // Sums of these are not exact, in one dtype or another.
  for (const double value : {0.1, 0.3, 12.7, -1e3 / 7, 1e8 / 3, 1e-5 / 3}) {
    for (const int64_t d : {1, 3, 6, 24, 65, 131}) {
      for (const DType dtype : kFloating) {
        for (const SbnStatistics statistics : {SbnStatistics::row, SbnStatistics::batch}) {
          for (const double eps : {0.0, 1e-13}) {
            CAPTURE(value);
            CAPTURE(d);
            CAPTURE(name(dtype));
            CAPTURE(eps);
            const Shape shape{2, 1, 5, d};
            const Tensors results = run({.x = Tensor::full(shape, value, dtype),
                                         .valid = {},
                                         .grad = exact_values(shape, 40, dtype),
                                         .statistics = statistics,
                                         .eps = eps,
                                         .moments = compute_dtype(dtype)},
                                        kGpu);
            const std::vector<double> zeros(static_cast<size_t>(shape.numel()), 0.0);
            REQUIRE(results[0].to_vector<double>() == zeros);
            REQUIRE(results[1].to_vector<double>() == zeros);
          }
        }
      }
    }
  }
}

TEST_CASE("cuda preSBN: statistics, dtypes, masks and head sizes") {
  for (const DType dtype : kFloating) {
    for (const Shape& shape :
         {Shape{0, 2, 3, 4}, Shape{2, 2, 0, 4}, Shape{3, 2, 101, 13}, Shape{2, 3, 40, 64},
          Shape{2, 1, 9, 20}, Shape{2, 2, 70, 32}, Shape{1, 2, 19, 128}, Shape{1, 1, 30, 260},
          Shape{1, 2, 5, 131}, Shape{2, 1, 5, 1040}}) {
      for (const SbnStatistics mode : kModes) {
        for (const bool masked : {false, true}) {
          CAPTURE(shape.text());
          CAPTURE(name(dtype));
          CAPTURE(static_cast<int>(mode));
          CAPTURE(masked);
          check_against_float64(random_case(shape, dtype, mode, masked));
        }
      }
    }
  }
}

TEST_CASE("cuda preSBN: any strides, and rows that begin nowhere special") {
  const Tensor base = exact_values({2, 21, 3, 24}, 4, DType::float32);  // (B, T, H, d)
  const Tensor grad = exact_values({3, 2, 21, 16}, 5, DType::float32).permute({1, 0, 2, 3});
  const Tensor valid = random_mask({2, 21}, 6);
  for (const int64_t start : {0, 4, 5}) {
    const Tensor x = base.permute({0, 2, 1, 3}).slice(3, start, start + 16);
    for (const SbnStatistics mode : kModes)
      check_against_float64({x, valid, grad, mode, 1e-5, DType::float32});
  }
}

TEST_CASE("cuda preSBN: nothing valid, moments of other dtypes, one channel") {
  PreSbn c = random_case({2, 2, 33, 8}, DType::float32, SbnStatistics::batch, false);
  c.valid = Tensor::full({2, 33}, 0, DType::boolean);
  const Tensors nothing = run(c, kGpu), nowhere = run(c, kCpu);
  for (size_t i = 0; i < nothing.size(); ++i) CHECK(difference(nothing[i], nowhere[i]) == 0);
  c.valid = {};
  for (const SbnStatistics mode : {SbnStatistics::batch, SbnStatistics::fixed}) {
    for (const DType moments : kFloating) {
      c.statistics = mode;
      c.moments = moments;
      check_against_float64(c);
    }
  }
  check_against_float64(random_case({2, 2, 9, 1}, DType::float32, SbnStatistics::fixed, true));
}

TEST_CASE("cuda preSBN: rows that become zero, and a valid NaN") {
  // Rows of equal channels are 0 with a row's own statistics, rows of the mean with given ones.
  const Tensor x = exact_values({1, 2, 40, 16}, 7, DType::float64),
               grad = exact_values({1, 2, 40, 16}, 8, DType::float64);
  x.select(2, 3).fill(0.3);
  x.select(2, 35).fill(0.3);
  for (const SbnStatistics mode : {SbnStatistics::fixed, SbnStatistics::row}) {
    const PreSbn c{x, {}, grad, mode, 1e-12, DType::float64};
    const Tensors got = run(c, kGpu);
    for (const Tensor& t : {got[0], got[1]})
      for (const int64_t row : {3, 35})
        for (const double v : t.select(2, row).to_vector<double>()) CHECK(v == 0);
    check_against_float64(c);
  }
  const Tensor one = exact_values({1, 1, 1, 4}, 9, DType::float32);
  check_against_float64({one, {}, one, SbnStatistics::batch, 1e-12, DType::float32});
  const Tensor spoilt = x.clone();
  spoilt.select(2, 5).fill(std::nan(""));
  check_against_float64({spoilt, {}, grad, SbnStatistics::fixed, 1e-12, DType::float64});
}

TEST_CASE("cuda preSBN: an offset far above the spread costs float32 no more than its rounding") {
  const Shape shape{4, 1, 500, 8};
  const Tensor near = exact_values(shape, 10, DType::float32);
  const Tensor far = near.clone();
  for (int64_t i = 0; i < far.numel(); ++i) far.data<float>()[i] += 4096;  // exact
  const PreSbn wide{far.to(DType::float64), {},    near.to(DType::float64),
                    SbnStatistics::batch,   1e-12, DType::float64};
  const Tensors expected = run(wide, kCpu);
  const Tensors got = run({far, {}, near, SbnStatistics::batch, 1e-12, DType::float32}, kGpu);
  CHECK(difference(got[0], expected[0]) <= 4e-4);  // a mean of 4096 is known to 2.4e-4
  CHECK(difference(got[3], expected[3]) <= 5e-5);  // E[x^2] - E[x]^2 would be off by 1
}

TEST_CASE("cuda preSBN: running statistics follow those of the batch as on the CPU") {
  for (const DType dtype : kFloating) {
    for (const DType kept : kFloating) {
      CAPTURE(name(dtype));
      CAPTURE(name(kept));
      const Tensor x = exact_values({3, 2, 101, 40}, 1, dtype), valid = random_mask({3, 101}, 3);
      const auto followed = [&](Device device) {
        const Tensor y = Tensor::empty(x.shape(), dtype, device);
        const Tensor mean = Tensor::empty({2, 40}, compute_dtype(dtype), device),
                     var = Tensor::empty({2, 40}, compute_dtype(dtype), device);
        Tensors running{exact_values({2, 40}, 4, kept).to(device),
                        exact_values({2, 40}, 5, kept).to(device)};
        kernels::pre_sbn_forward({.x = moved(x, device),
                                  .valid = moved(valid, device),
                                  .statistics = SbnStatistics::batch,
                                  .eps = 1e-5,
                                  .mean = mean,
                                  .var = var,
                                  .running_mean = running[0],
                                  .running_var = running[1],
                                  .momentum = 0.3,
                                  .y = y});
        return Tensors{running[0].to(kCpu), running[1].to(kCpu)};
      };
      const Tensors got = followed(kGpu), expected = followed(kCpu);
      for (size_t i = 0; i < 2; ++i)
        CHECK(difference(got[i], expected[i]) <= result_tolerance(dtype, kept, 303));
      CHECK(difference(expected[0], exact_values({2, 40}, 4, kept)) > 0.01);
    }
  }
}

struct PostSbn {
  Tensor x, gamma, beta, grad;
};

// y, dx, dgamma, dbeta
Tensors run(const PostSbn& c, Device device) {
  const Tensor x = moved(c.x, device), gamma = moved(c.gamma, device), beta = moved(c.beta, device),
               grad = moved(c.grad, device);
  const auto like = [](const Tensor& t) { return Tensor::empty(t.shape(), t.dtype(), t.device()); };
  Tensors r{like(x), like(x), like(gamma), like(beta)};
  if (x.rank() == 4) {  // as (B, T, H, d) memory
    for (size_t i = 0; i < 2; ++i)
      r[i] = Tensor::empty({x.size(0), x.size(2), x.size(1), x.size(3)}, x.dtype(), device)
                 .transpose(1, 2);
  }
  kernels::post_sbn_forward(x, gamma, beta, 1e-6, r[0]);
  kernels::post_sbn_backward({.x = x,
                              .gamma = gamma,
                              .beta = beta,
                              .grad = grad,
                              .eps = 1e-6,
                              .dx = r[1],
                              .dgamma = r[2],
                              .dbeta = r[3]});
  for (Tensor& t : r) t = t.clone().to(kCpu);
  return r;
}

void check_against_float64(const PostSbn& c) {
  const Tensors expected = run({wide(c.x), wide(c.gamma), wide(c.beta), wide(c.grad)}, kCpu);
  const Tensors got = run(c, kGpu), on_cpu = run(c, kCpu);
  for (size_t i = 0; i < got.size(); ++i) {
    CAPTURE(i);
    const DType dtype = i < 2 ? c.x.dtype() : i == 2 ? c.gamma.dtype() : c.beta.dtype();
    // The power multiplies the rounding of its base by its exponent, which is below 4 here. Sums
    // run over all of x.
    const double tolerance = 4 * result_tolerance(c.x.dtype(), dtype, c.x.numel());
    CHECK(difference(got[i], expected[i]) <= tolerance);
    CHECK(difference(on_cpu[i], expected[i]) <= tolerance);
  }
}

TEST_CASE("cuda postSBN: values and gradients, one gamma and beta or one a channel") {
  for (const DType dtype : kFloating) {
    for (const Shape& shape :
         {Shape{0, 4}, Shape{4}, Shape{7, 1}, Shape{2, 3, 70, 4}, Shape{300, 32}, Shape{90, 64},
          Shape{20, 63}, Shape{9, 200}, Shape{2, 1040}}) {
      const int64_t d = shape.back();
      for (const int64_t gammas : {int64_t{1}, d}) {
        for (const int64_t betas : {int64_t{1}, d}) {
          CAPTURE(shape.text());
          CAPTURE(name(dtype));
          CAPTURE(gammas);
          CAPTURE(betas);
          check_against_float64(
              PostSbn{exact_values(shape, 11, dtype), exact_values({gammas}, 12, dtype),
                      exact_values({betas}, 13, dtype).to(dtype), exact_values(shape, 14, dtype)});
        }
      }
    }
  }
}

TEST_CASE("cuda postSBN: strided rows, zeros, parameters of another dtype") {
  const Tensor memory = exact_values({2, 9, 3, 40}, 15, DType::float32);
  const Tensor grad = exact_values({2, 3, 9, 16}, 16, DType::float32);
  for (const int64_t start : {0, 3}) {
    const Tensor x = memory.permute({0, 2, 1, 3}).slice(3, start, start + 16);
    for (const DType dtype : kFloating)
      check_against_float64(
          PostSbn{x, exact_values({16}, 17, dtype), exact_values({1}, 18, dtype), grad});
  }
  const Tensor zero = Tensor::zeros({3, 8}), one = Tensor::full({3, 8}, 1);
  check_against_float64(PostSbn{zero, Tensor::full({1}, 2), Tensor::full({1}, 0.5), one});
}

#ifdef MACGRAD_CUDA_EMULATED
TEST_CASE("cuda ppSBN: the order of the threads does not matter") {
  for (const Shape& shape : {Shape{2, 2, 90, 32}, Shape{1, 2, 40, 200}, Shape{1, 1, 6, 700}}) {
    const auto all = [&] {
      Tensors results;
      for (const SbnStatistics mode : kModes)
        for (const Tensor& t : run(random_case(shape, DType::float32, mode, true), kGpu))
          results.push_back(t);
      for (const Tensor& t : run(PostSbn{exact_values(shape, 19, DType::float32),
                                         exact_values({1}, 20, DType::float32),
                                         exact_values({shape.back()}, 21, DType::float32),
                                         exact_values(shape, 22, DType::float32)},
                                 kGpu))
        results.push_back(t);
      return results;
    };
    const Tensors forward = all();
    for (const emulation::Order order : {emulation::Order::backward, emulation::Order::scattered}) {
      emulation::set_order(order);
      const Tensors other = all();
      emulation::set_order(emulation::Order::forward);
      for (size_t i = 0; i < other.size(); ++i)
        CHECK(other[i].to_vector<double>() == forward[i].to_vector<double>());
    }
  }
}
#endif

}  // namespace
}  // namespace macgrad::testing
