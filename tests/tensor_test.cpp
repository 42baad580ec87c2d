// Tensors as data: views, printing, casts, the allocator and its tools, the kernel slot, and the
// basic CPU kernels against naive loops in double at odd sizes and with strides.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "macgrad/core/cpu/gemm.h"
#include "macgrad/core/generator.h"
#include "macgrad/core/kernels/arrays.h"
#include "macgrad/core/kernels/elementwise.h"
#include "macgrad/core/kernels/optimizer.h"
#include "macgrad/core/tensor.h"

namespace macgrad {
namespace {

using doctest::Contains;

Tensor random_values(const Shape& shape, DType dtype, uint32_t draw, double low, double high) {
  DrawReader reader({17, 0, draw, 0});
  std::vector<double> values(static_cast<size_t>(shape.numel()));
  for (double& v : values) v = low + (high - low) * reader.uniform();
  return Tensor::from_values(values, shape, dtype);
}

Tensor counted(const Shape& shape) {
  return Tensor::arange(shape.numel(), DType::float32).view(shape);
}

// The values of t laid out with every second element and the last two dimensions swapped in memory.
Tensor strided_like(const Tensor& t) {
  Shape wide = t.shape();
  if (t.rank() < 1) return t;
  wide[t.rank() - 1] *= 2;
  Tensor memory = t.rank() >= 2 ? Tensor::zeros(wide, t.dtype()).transpose(-1, -2).clone()
                                : Tensor::zeros(wide, t.dtype());
  Tensor view = t.rank() >= 2 ? memory.transpose(-1, -2) : memory;
  view = view.slice(-1, 0, wide.back(), 2);
  view.copy_from(t);
  return view;
}

double epsilon(DType dtype) {
  if (dtype == DType::float64) return 1e-15;
  return dtype == DType::float32 ? 1.2e-7 : 4e-3;
}

TEST_CASE("views share storage and see the right elements") {
  const Tensor x = counted({2, 3, 4});
  CHECK(x.at({1, 2, 3}) == 23);
  CHECK(x.transpose(0, 2).at({3, 2, 1}) == 23);
  CHECK(x.permute({2, 0, 1}).at({3, 1, 2}) == 23);
  CHECK(x.permute({2, 0, 1}).shape() == Shape{4, 2, 3});
  CHECK(x.slice(1, 1, 3).at({0, 0, 0}) == 4);
  CHECK(x.slice(2, 1, 4, 2).shape() == Shape{2, 3, 2});
  CHECK(x.slice(2, 1, 4, 2).at({1, 2, 1}) == 23);
  CHECK(x.slice(2, 4, 4).shape() == Shape{2, 3, 0});
  CHECK(x.select(1, 2).at({1, 0}) == 20);
  CHECK(x.select(-1, 3).shape() == Shape{2, 3});
  CHECK(x.unsqueeze(-1).shape() == Shape{2, 3, 4, 1});
  CHECK(x.unsqueeze(0).squeeze(0).shape() == x.shape());
  const Tensor row = Tensor::from_vector(std::vector<float>{1, 2, 3, 4});
  CHECK(row.expand({5, 4}).at({4, 3}) == 4);
  CHECK(row.expand({5, 4}).stride(0) == 0);
  x.select(0, 1).fill(7);
  CHECK(x.at({1, 1, 1}) == 7);
  CHECK(x.at({0, 1, 1}) == 5);
  CHECK(x.transpose(0, 1).storage() == x.storage());
}

TEST_CASE("view and reshape of strided tensors") {
  const Tensor x = counted({2, 3, 4});
  CHECK(x.view({6, 4}).at({5, 3}) == 23);
  CHECK(x.view({-1, 2}).shape() == Shape{12, 2});
  CHECK(x.view({24}).storage() == x.storage());
  // Merging two dimensions that lie evenly needs no copy, even in a slice.
  const Tensor part = x.slice(2, 0, 2);
  CHECK(part.view({6, 2}).at({5, 1}) == 21);
  CHECK_THROWS_WITH_AS(part.view({12}), Contains("call contiguous() first"), Error);
  const Tensor flat = part.reshape({12});
  CHECK(flat.storage() != x.storage());
  CHECK(flat.to_vector<double>() == std::vector<double>{0, 1, 4, 5, 8, 9, 12, 13, 16, 17, 20, 21});
  const Tensor t = x.permute({2, 0, 1});
  CHECK(t.reshape({8, 3}).to_vector<double>() == t.contiguous().view({8, 3}).to_vector<double>());
  // Every shape of 24 elements reads the same from any permutation as from its copy.
  const std::vector<Shape> shapes = {{24},       {1, 24},     {24, 1},      {2, 12},   {12, 1, 2},
                                     {3, 8},     {2, 2, 6},   {4, 3, 2},    {4, 6},    {6, 2, 2},
                                     {2, 3, 4},  {4, 2, 3},   {1, 3, 1, 8}, {8, 3, 1}, {2, 2, 2, 3},
                                     {1, 1, 24}, {3, 2, 2, 2}};
  for (const auto& order : std::vector<std::vector<int>>{
           {0, 1, 2}, {0, 2, 1}, {1, 0, 2}, {1, 2, 0}, {2, 0, 1}, {2, 1, 0}}) {
    const Tensor p = x.permute(order);
    for (const Shape& shape : shapes) {
      CAPTURE(shape.text());
      CHECK(p.reshape(shape).to_vector<double>() == p.to_vector<double>());
    }
  }
  CHECK(Tensor::scalar(3).view({1, 1}).at({0, 0}) == 3);
  CHECK(Tensor::zeros({1, 1}).view({}).rank() == 0);
  CHECK(Tensor::zeros({0, 3}).view({3, 0}).shape() == Shape{3, 0});
  CHECK(Tensor::zeros({0, 3}).transpose(0, 1).reshape({0}).shape() == Shape{0});
  const Tensor wide = Tensor::scalar(2).expand({3, 4});
  CHECK(wide.reshape({12}).to_vector<double>() == std::vector<double>(12, 2.0));
}

TEST_CASE("errors of views name the op and the shapes") {
  const Tensor x = Tensor::zeros({2, 3});
  CHECK_THROWS_WITH_AS(x.view({4}), Contains("[view] shape (2, 3)"), Error);
  CHECK_THROWS_WITH_AS(x.reshape({5, -1}), Contains("[reshape]"), Error);
  CHECK_THROWS_WITH_AS(x.view({-2, -3}), Contains("negative"), Error);
  CHECK_THROWS_WITH_AS(Tensor::zeros({1}).view({-1, -1}), Contains("negative"), Error);
  CHECK_THROWS_WITH_AS(Tensor::zeros({0}).view({-1, 0}), Contains("not decided"), Error);
  CHECK_THROWS_WITH_AS(x.permute({0, 0}), Contains("named twice"), Error);
  CHECK_THROWS_WITH_AS(x.permute({0}), Contains("[permute]"), Error);
  CHECK_THROWS_WITH_AS(x.expand({3, 3}), Contains("(2, 3) does not expand to (3, 3)"), Error);
  CHECK_THROWS_WITH_AS(x.expand({3}), Contains("[expand]"), Error);
  CHECK_THROWS_WITH_AS(x.slice(1, 2, 4), Contains("2:4"), Error);
  CHECK_THROWS_WITH_AS(x.slice(1, 0, 2, 0), Contains("step"), Error);
  CHECK_THROWS_WITH_AS(x.select(0, 2), Contains("[select] index 2"), Error);
  CHECK_THROWS_WITH_AS(x.squeeze(0), Contains("[squeeze]"), Error);
  CHECK_THROWS_WITH_AS(x.transpose(0, 2), Contains("dimension 2"), Error);
  CHECK_THROWS_WITH_AS(x.item(), Contains("[item]"), Error);
  CHECK_THROWS_WITH_AS(x.at({0}), Contains("[at]"), Error);
  CHECK_THROWS_WITH_AS(x.data<double>(), Contains("float32"), Error);
  CHECK_THROWS_WITH_AS(Tensor::empty({2, -1}), Contains("negative extent"), Error);
  CHECK_THROWS_WITH_AS(Tensor::from_vector(std::vector<float>{1, 2}, {3}), Contains("2 values"),
                       Error);
  CHECK_THROWS_WITH_AS(broadcast_shapes({2, 3}, {4, 3}, "add"),
                       Contains("[add] shapes (2, 3) and (4, 3)"), Error);
  CHECK_THROWS_WITH_AS((Shape{1, 1, 1, 1, 1, 1, 1, 1, 1}), Contains("rank"), Error);
  CHECK(broadcast_shapes({2, 1, 3}, {4, 1}, "add") == Shape{2, 4, 3});
  CHECK(broadcast_shapes({0}, {1}, "add") == Shape{0});
  CHECK_THROWS_AS(Tensor().raw(), Error);
  CHECK_FALSE(Tensor().defined());
}

TEST_CASE("text shows values, dtype and shape, and shortens long dimensions") {
  const std::string small =
      Tensor::from_vector(std::vector<float>{1, 2.5, -3, 0.125}, {2, 2}).text();
  CHECK(small == "[[1, 2.5],\n [-3, 0.125]]\nfloat32 (2, 2) on cpu");
  CHECK(Tensor::scalar(2, DType::int64).text() == "2\nint64 () on cpu");
  CHECK(Tensor::from_vector(std::vector<bool>{true, false}).text() ==
        "[true, false]\nbool (2) on cpu");
  const std::string line = Tensor::arange(100).text();
  CHECK(line.substr(0, line.find('\n')) == "[0, 1, 2, ..., 97, 98, 99]");
  CHECK(Tensor::arange(12).text().find("...") == std::string::npos);
  CHECK(Tensor().text() == "undefined tensor");
  CHECK(Tensor::zeros({0, 2}).text() == "[]\nfloat32 (0, 2) on cpu");
}

TEST_CASE("item, at and to_vector read every dtype") {
  CHECK(Tensor::scalar(1.5, DType::bfloat16).item() == 1.5);
  CHECK(Tensor::scalar(-7, DType::int64).item() == -7);
  CHECK(Tensor::scalar(2, DType::boolean).item() == 1);
  CHECK(Tensor::full({1, 1}, 0.1, DType::float64).item() == 0.1);
  CHECK(Tensor::arange(5, DType::float64).to_vector<int64_t>() ==
        std::vector<int64_t>{0, 1, 2, 3, 4});
}

TEST_CASE("casts: bfloat16 rounds to nearest even, bool is not zero, int64 truncates") {
  const std::vector<std::pair<double, double>> rounding = {
      {1.0, 1.0},
      {1.00390625, 1.0},       // halfway between 1 and 1 + 2^-7: to even
      {1.01171875, 1.015625},  // halfway between 1 + 2^-7 and 1 + 2^-6: to even
      {1.003907, 1.0078125},   // just above halfway
      {-1.00390625, -1.0},
      {3.3895314e38, 3.3895314e38},  // the largest bfloat16
      {3.4e38, std::numeric_limits<double>::infinity()},
      {1e-45, 0.0}};
  for (const auto& [value, rounded] : rounding) {
    CAPTURE(value);
    const double got = Tensor::scalar(value).to(DType::bfloat16).item();
    CHECK(static_cast<float>(got) == static_cast<float>(rounded));
  }
  CHECK(std::isnan(Tensor::scalar(NAN).to(DType::bfloat16).item()));
  CHECK(std::isnan(static_cast<float>(bfloat16(bit_copy<float>(0x7f800001u)))));
  const Tensor x = Tensor::from_vector(std::vector<double>{-1.7, 0, 0.3, 2.9});
  CHECK(x.to(DType::int64).to_vector<int64_t>() == std::vector<int64_t>{-1, 0, 0, 2});
  CHECK(x.to(DType::boolean).to_vector<bool>() == std::vector<bool>{true, false, true, true});
  CHECK(x.to(DType::boolean).to(DType::float32).to_vector<float>() ==
        std::vector<float>{1, 0, 1, 1});
  CHECK(Tensor::scalar(1e300, DType::float64).to(DType::float32).item() == INFINITY);
}

TEST_CASE("copies between any dtypes and strides") {
  for (const Shape& shape :
       std::vector<Shape>{{}, {0}, {1}, {63}, {7, 63}, {100, 33}, {3, 40, 41}}) {
    const Tensor x = random_values(shape, DType::float32, 1, -5, 5);
    const auto expected = x.to_vector<float>();
    const Tensor s = strided_like(x);
    CAPTURE(shape.text());
    CHECK(s.to_vector<float>() == expected);
    CHECK(s.clone().to_vector<float>() == expected);
    CHECK(s.clone().is_contiguous());
    CHECK(s.to(DType::float64).to_vector<float>() == expected);
    if (shape.rank() >= 2) {
      const Tensor back = x.transpose(-1, -2).clone().transpose(-1, -2);
      CHECK(back.to_vector<float>() == expected);
      const Tensor target = Tensor::zeros(x.transpose(-1, -2).shape()).transpose(-1, -2);
      target.copy_from(x);
      CHECK(target.to_vector<float>() == expected);
    }
    std::vector<float> rounded = expected;
    for (float& v : rounded) v = static_cast<float>(bfloat16(v));
    CHECK(s.to(DType::bfloat16).to_vector<float>() == rounded);
  }
  const Tensor y = Tensor::zeros({2, 3}, DType::float64);
  y.copy_from(Tensor::from_vector(std::vector<int64_t>{1, 2, 3}));
  CHECK(y.to_vector<double>() == std::vector<double>{1, 2, 3, 1, 2, 3});
  CHECK_THROWS_AS(y.copy_from(Tensor::zeros({4})), Error);
}

TEST_CASE("writes raise the version of the storage") {
  const Tensor x = Tensor::zeros({4});
  const uint64_t before = x.version();
  x.fill(1);
  CHECK(x.version() == before + 1);
  x.slice(0, 0, 2).copy_from(Tensor::scalar(2));
  CHECK(x.version() == before + 2);
  (void)x.clone();
  CHECK(x.version() == before + 2);
}

TEST_CASE("comparison helpers") {
  const Tensor a = Tensor::from_vector(std::vector<float>{1, INFINITY});
  CHECK(max_abs_difference(a, a) == 0);
  CHECK(max_abs_difference(a, Tensor::from_vector(std::vector<float>{1.5, INFINITY})) == 0.5);
  CHECK(max_abs_difference(a, Tensor::from_vector(std::vector<float>{NAN, INFINITY})) == INFINITY);
  CHECK(max_abs_difference(Tensor::from_vector(std::vector<float>{NAN, 2}),
                           Tensor::from_vector(std::vector<float>{1, 1})) == INFINITY);
  CHECK_FALSE(all_finite(a));
  CHECK(all_finite(Tensor::zeros({3})));
}

#ifndef MACGRAD_EXACT_ALLOC
TEST_CASE("the allocator reuses blocks and counts them") {
  trim_cache();
  CHECK(memory_stats().cached_bytes == 0);
  void* address = nullptr;
  {
    const Tensor x = Tensor::empty({1000});
    address = x.raw();
    CHECK(reinterpret_cast<uintptr_t>(address) % 64 == 0);
  }
  CHECK(memory_stats().cached_bytes >= 4000);
  const Tensor again = Tensor::empty({998});
  CHECK(again.raw() == address);
  trim_cache();
  CHECK(memory_stats().cached_bytes == 0);
  reset_peak();
  const size_t base = memory_stats().current_bytes;
  { const Tensor big = Tensor::empty({1 << 20}); }
  CHECK(memory_stats().current_bytes == base);
  CHECK(memory_stats().peak_bytes >= base + (4u << 20));
  CHECK(memory_stats().peak_bytes <= base + (5u << 20));
}

TEST_CASE("guard words see a write behind the end") {
  const uint64_t before = guard_violations();
  {
    const Tensor x = Tensor::empty({5});
    x.data<float>()[4] = 1;
  }
  CHECK(guard_violations() == before);
  {
    const Tensor x = Tensor::empty({5});
    x.data<float>()[5] = 1;
  }
  CHECK(guard_violations() == before + 1);
}

TEST_CASE("out of memory is an error with the numbers") {
  CHECK_THROWS_WITH_AS(Tensor::empty({int64_t{1} << 60}), Contains("out of memory"), Error);
}
#endif

TEST_CASE("a shape whose bytes overflow is refused") {
  CHECK_THROWS_AS(Tensor::empty({int64_t{1} << 40, int64_t{1} << 40}), Error);
}

TEST_CASE("poison fills new memory with NaN in every floating dtype") {
  const PoisonScope poison;
  for (const DType dtype : {DType::float32, DType::float64, DType::bfloat16}) {
    const auto values = Tensor::empty({33}, dtype).to_vector<double>();
    CHECK(std::all_of(values.begin(), values.end(), [](double v) { return std::isnan(v); }));
  }
  CHECK(std::abs(Tensor::empty({1}, DType::int64).item()) > 0);
}

TEST_CASE("a slot reports missing kernels and tells the observer what ran") {
  static const Kernel<void(In, Out)> nothing{"nothing", {}};
  const Tensor x = Tensor::zeros({2});
  CHECK_THROWS_WITH_AS(nothing(x, x), "nothing: no cpu kernel; registered for: ", Error);
  CHECK_FALSE(nothing.supports(kCpu, {}).ok);
  CHECK(nothing.supports(kCpu, {}).reason == "no cpu kernel");
  CHECK(kernels::exp.has(DeviceType::cpu));

  struct Watch : KernelObserver {
    std::vector<std::string> seen;
    void before(const KernelCall& call) override {
      seen.push_back(std::string("before ") + call.name);
    }
    void after(const KernelCall& call) override {
      seen.push_back(
          fmt::format("after {} {} in {} out", call.name, call.inputs.size(), call.outputs.size()));
    }
  } watch;
  KernelObserver* previous = set_kernel_observer(&watch);
  const Tensor y = Tensor::empty({2});
  kernels::add(x, x, y);
  kernels::fill(y, 2.0);
  const Tensor p = Tensor::zeros({2});
  kernels::adam(Tensors{p}, Tensors{}, Tensors{y}, Tensors{Tensor::zeros({2})},
                Tensors{Tensor::zeros({2})}, AdamArgs{});
  CHECK(set_kernel_observer(previous) == &watch);
  kernels::fill(y, 3.0);
  CHECK(watch.seen.at(0) == "before add");
  CHECK(watch.seen.at(1) == "after add 2 in 1 out");
  CHECK(watch.seen.at(3) == "after fill 0 in 1 out");
  CHECK(watch.seen.back() == "after adam 4 in 3 out");
  CHECK(y.at({0}) == 3);
}

// Elementwise kernels: shapes long enough for vector loops with a rest, and for several blocks.
const std::vector<Shape> kSizes = {{},        {0},     {1},         {63},      {100},
                                   {3, 0, 5}, {7, 63}, {2, 5, 100}, {3, 17001}};

void check_close(const Tensor& got, const std::vector<double>& expected, double rtol,
                 const char* what) {
  const auto values = got.to_vector<double>();
  REQUIRE(values.size() == expected.size());
  for (size_t i = 0; i < values.size(); ++i) {
    const double difference = std::fabs(values[i] - expected[i]);
    const bool same =
        values[i] == expected[i] || (std::isnan(values[i]) && std::isnan(expected[i]));
    if (!same && !(difference <= rtol * (1 + std::fabs(expected[i])))) {
      FAIL_CHECK(what << "[" << i << "]: " << values[i] << " instead of " << expected[i]);
      return;
    }
  }
}

struct Unary {
  const Kernel<void(In, Out)>* slot;
  double (*formula)(double);
  double low, high;
};

TEST_CASE("unary kernels against the C library in double") {
  const std::vector<Unary> list = {
      {&kernels::neg, [](double x) { return -x; }, -3, 3},
      {&kernels::abs, [](double x) { return std::fabs(x); }, -3, 3},
      {&kernels::sign, [](double x) { return x > 0 ? 1.0 : (x < 0 ? -1.0 : 0.0); }, -3, 3},
      {&kernels::exp, [](double x) { return std::exp(x); }, -4, 3},
      {&kernels::expm1, [](double x) { return std::expm1(x); }, -4, 2},
      {&kernels::log, [](double x) { return std::log(x); }, 0.1, 9},
      {&kernels::log1p, [](double x) { return std::log1p(x); }, -0.8, 9},
      {&kernels::sqrt, [](double x) { return std::sqrt(x); }, 0, 9},
      {&kernels::rsqrt, [](double x) { return 1 / std::sqrt(x); }, 0.1, 9},
      {&kernels::reciprocal, [](double x) { return 1 / x; }, 0.2, 3},
      {&kernels::sin, [](double x) { return std::sin(x); }, -6, 6},
      {&kernels::cos, [](double x) { return std::cos(x); }, -6, 6},
      {&kernels::tanh, [](double x) { return std::tanh(x); }, -6, 6},
      {&kernels::sigmoid, [](double x) { return 1 / (1 + std::exp(-x)); }, -6, 6},
      {&kernels::relu, [](double x) { return x > 0 ? x : 0.0; }, -3, 3},
      {&kernels::gelu, [](double x) { return x / 2 * std::erfc(-x / std::sqrt(2.0)); }, -4, 4},
      {&kernels::gelu_tanh,
       [](double x) {
         return x / 2 * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
       },
       -4, 4},
      {&kernels::erf, [](double x) { return std::erf(x); }, -3, 3},
  };
  // The list is whole.
  size_t named = 0;
#define MACGRAD_COUNT(op, ...) ++named;
  MACGRAD_UNARY_OPS(MACGRAD_COUNT)
#undef MACGRAD_COUNT
  CHECK(named == list.size());
  for (const Unary& op : list) {
    for (const DType dtype : {DType::float32, DType::float64, DType::bfloat16}) {
      for (const Shape& shape : kSizes) {
        const Tensor x = random_values(shape, dtype, 2, op.low, op.high);
        std::vector<double> expected = x.to_vector<double>();
        for (double& v : expected) v = op.formula(v);
        const double rtol = dtype == DType::float64 ? 8e-15 : 4 * epsilon(dtype);
        const Tensor y = Tensor::empty(shape, dtype);
        (*op.slot)(x, y);
        check_close(y, expected, rtol, op.slot->name());
        const Tensor z = strided_like(Tensor::zeros(shape, dtype));
        (*op.slot)(strided_like(x), z);
        check_close(z, expected, rtol, op.slot->name());
      }
    }
  }
}

TEST_CASE("unary kernels at infinities, zeros and NaN") {
  const double inf = INFINITY;
  const auto at = [](const Kernel<void(In, Out)>& slot, double x) {
    // Seventeen equal elements, so that vector lanes and the rest are both seen.
    double result = 0;
    for (const DType dtype : {DType::float64, DType::float32}) {
      const Tensor in = Tensor::full({17}, x, dtype);
      const Tensor out = Tensor::empty({17}, dtype);
      slot(in, out);
      result = out.at({0});
      const double last = out.at({16});
      CHECK((result == last || (std::isnan(result) && std::isnan(last))));
    }
    return result;
  };
#define MACGRAD_NAN(op, ...) CHECK_MESSAGE(std::isnan(at(kernels::op, NAN)), #op);
  MACGRAD_UNARY_OPS(MACGRAD_NAN)
#undef MACGRAD_NAN
  CHECK(at(kernels::exp, inf) == inf);
  CHECK(at(kernels::exp, -inf) == 0);
  CHECK(at(kernels::exp, 1000) == inf);
  CHECK(at(kernels::exp, -1000) == 0);
  CHECK(at(kernels::expm1, -inf) == -1);
  CHECK(at(kernels::log, 0) == -inf);
  CHECK(at(kernels::log, inf) == inf);
  CHECK(std::isnan(at(kernels::log, -1)));
  CHECK(at(kernels::log1p, -1) == -inf);
  CHECK(at(kernels::sqrt, inf) == inf);
  CHECK(std::isnan(at(kernels::sqrt, -1)));
  CHECK(at(kernels::rsqrt, 0) == inf);
  CHECK(at(kernels::reciprocal, -inf) == 0);
  CHECK(at(kernels::tanh, inf) == 1);
  CHECK(at(kernels::tanh, -1000) == -1);
  CHECK(at(kernels::sigmoid, inf) == 1);
  CHECK(at(kernels::sigmoid, -inf) == 0);
  CHECK(at(kernels::sigmoid, -1000) == 0);
  CHECK(at(kernels::erf, inf) == 1);
  CHECK(at(kernels::erf, -inf) == -1);
  CHECK(at(kernels::gelu, inf) == inf);
  CHECK(at(kernels::gelu_tanh, 100) == 100);
  CHECK(at(kernels::gelu_tanh, -100) == 0);
  CHECK(at(kernels::relu, 0) == 0);
  CHECK(at(kernels::abs, -inf) == inf);
  CHECK(at(kernels::sign, 0) == 0);
  CHECK(std::isnan(at(kernels::sin, inf)));
}

struct Binary {
  const Kernel<void(In, In, Out)>* slot;
  double (*formula)(double, double);
  double low, high;
};

TEST_CASE("binary kernels against the C library in double, with broadcast operands") {
  const std::vector<Binary> list = {
      {&kernels::add, [](double a, double b) { return a + b; }, -3, 3},
      {&kernels::sub, [](double a, double b) { return a - b; }, -3, 3},
      {&kernels::mul, [](double a, double b) { return a * b; }, -3, 3},
      {&kernels::div, [](double a, double b) { return a / b; }, 0.5, 3},
      {&kernels::maximum, [](double a, double b) { return std::max(a, b); }, -3, 3},
      {&kernels::minimum, [](double a, double b) { return std::min(a, b); }, -3, 3},
      {&kernels::pow, [](double a, double b) { return std::pow(a, b); }, 0.2, 3},
      {&kernels::signed_pow,
       [](double a, double b) { return std::copysign(std::pow(std::fabs(a), b), a); }, -3, -0.1},
      {&kernels::relu_grad, [](double a, double b) { return a > 0 ? b : 0.0; }, -3, 3}};
  size_t named = 0;
#define MACGRAD_COUNT(op, ...) ++named;
  MACGRAD_BINARY_OPS(MACGRAD_COUNT)
#undef MACGRAD_COUNT
  CHECK(named == list.size());
  for (const Binary& op : list) {
    for (const DType dtype : {DType::float32, DType::float64, DType::bfloat16}) {
      for (const Shape& shape : kSizes) {
        const Tensor full = random_values(shape, dtype, 3, op.low, op.high);
        const Tensor other = random_values(shape, dtype, 4, op.low, op.high);
        const Tensor one = random_values({1}, dtype, 5, op.low, op.high).view({}).expand(shape);
        std::vector<std::pair<Tensor, Tensor>> operands = {
            {full, other}, {full, one}, {one, full}, {strided_like(full), other}};
        if (shape.rank() >= 2) {
          const Tensor row = random_values({shape.back()}, dtype, 6, op.low, op.high).expand(shape);
          const Tensor column =
              random_values(shape.with(shape.rank() - 1, 1), dtype, 7, op.low, op.high)
                  .expand(shape);
          operands.push_back({full, row});
          operands.push_back({row, column});
        }
        for (const auto& [a, b] : operands) {
          std::vector<double> expected = a.to_vector<double>();
          const auto right = b.to_vector<double>();
          for (size_t i = 0; i < right.size(); ++i) expected[i] = op.formula(expected[i], right[i]);
          const Tensor y = Tensor::empty(shape, dtype);
          (*op.slot)(a, b, y);
          check_close(y, expected, dtype == DType::float64 ? 4e-15 : 4 * epsilon(dtype),
                      op.slot->name());
        }
      }
    }
  }
  const auto both = [](const Kernel<void(In, In, Out)>& slot, double a, double b) {
    const Tensor y = Tensor::empty({17}, DType::float64);
    slot(Tensor::full({17}, a, DType::float64), Tensor::full({17}, b, DType::float64), y);
    return y.at({16});
  };
  CHECK(std::isnan(both(kernels::maximum, NAN, 1)));
  CHECK(std::isnan(both(kernels::maximum, 1, NAN)));
  CHECK(std::isnan(both(kernels::minimum, NAN, 1)));
  CHECK(std::isnan(both(kernels::minimum, 1, NAN)));
  CHECK(both(kernels::pow, 0, 0) == 1);
  CHECK(both(kernels::pow, 0, 2) == 0);
  CHECK(both(kernels::pow, -2, 3) == -8);
  CHECK(std::isnan(both(kernels::pow, -2, 0.5)));
  CHECK(both(kernels::signed_pow, 0, 0.5) == 0);
  CHECK(both(kernels::signed_pow, -4, 0.5) == -2);
}

TEST_CASE("comparisons and where") {
  const Tensor a = Tensor::from_vector(std::vector<float>{1, 2, 3, NAN});
  const Tensor b = Tensor::from_vector(std::vector<float>{2, 2, 1, 1});
  const auto result = [&](const Kernel<void(In, In, Out)>& slot, const Tensor& x, const Tensor& y) {
    const Tensor out = Tensor::empty(x.shape(), DType::boolean);
    slot(x, y, out);
    return out.to_vector<int64_t>();
  };
  using Bits = std::vector<int64_t>;
  for (const DType dtype : {DType::float32, DType::float64, DType::bfloat16}) {
    const Tensor x = a.to(dtype), y = b.to(dtype);
    CHECK(result(kernels::equal, x, y) == Bits{0, 1, 0, 0});
    CHECK(result(kernels::not_equal, x, y) == Bits{1, 0, 1, 1});
    CHECK(result(kernels::less, x, y) == Bits{1, 0, 0, 0});
    CHECK(result(kernels::less_equal, x, y) == Bits{1, 1, 0, 0});
    CHECK(result(kernels::greater, x, y) == Bits{0, 0, 1, 0});
    CHECK(result(kernels::greater_equal, x, y) == Bits{0, 1, 1, 0});
  }
  const Tensor big = Tensor::from_vector(std::vector<int64_t>{int64_t{1} << 60});
  const Tensor bigger = Tensor::from_vector(std::vector<int64_t>{(int64_t{1} << 60) + 1});
  CHECK(result(kernels::less, big, bigger) == Bits{1});
  CHECK(result(kernels::equal, big, bigger) == Bits{0});

  const Tensor condition = Tensor::from_vector(std::vector<bool>{true, false});
  const Tensor y = Tensor::empty({3, 2});
  kernels::where(condition.expand({3, 2}), counted({3, 2}), Tensor::scalar(-1).expand({3, 2}), y);
  CHECK(y.to_vector<double>() == std::vector<double>{0, -1, 2, -1, 4, -1});
}

TEST_CASE("sum, cumsum, max and min against naive loops") {
  for (const Shape& shape : std::vector<Shape>{{1, 1, 1},
                                               {3, 0, 4},
                                               {0, 3, 2},
                                               {2, 63, 1},
                                               {1, 100, 63},
                                               {5, 7, 300},
                                               {1, 9001, 1},
                                               {2, 5000, 3},
                                               {1, 40000, 1}}) {
    const int64_t outer = shape[0], rows = shape[1], n = shape[2];
    for (const DType dtype : {DType::float32, DType::float64, DType::bfloat16}) {
      // Multiples of 1/4: sums in double are exact and ties are frequent.
      std::vector<double> values(static_cast<size_t>(shape.numel()));
      DrawReader reader({23, 0, 0, 0});
      for (double& v : values) v = static_cast<double>(reader.below(65)) / 4 - 8;
      const Tensor x = Tensor::from_values(values, shape, dtype);
      const auto value = [&](int64_t a, int64_t r, int64_t c) {
        return values[static_cast<size_t>((a * rows + r) * n + c)];
      };
      std::vector<double> sums, forwards(values.size()), backwards(values.size()), high, low;
      std::vector<int64_t> high_at, low_at;
      for (int64_t a = 0; a < outer; ++a) {
        for (int64_t c = 0; c < n; ++c) {
          double total = 0, reverse = 0;
          int64_t most = 0, least = 0;
          for (int64_t r = 0; r < rows; ++r) {
            total += value(a, r, c);
            forwards[static_cast<size_t>((a * rows + r) * n + c)] = total;
            reverse += value(a, rows - 1 - r, c);
            backwards[static_cast<size_t>((a * rows + rows - 1 - r) * n + c)] = reverse;
            if (value(a, r, c) > value(a, most, c)) most = r;
            if (value(a, r, c) < value(a, least, c)) least = r;
          }
          sums.push_back(total);
          if (rows == 0) continue;
          high.push_back(value(a, most, c));
          low.push_back(value(a, least, c));
          high_at.push_back(most);
          low_at.push_back(least);
        }
      }
      CAPTURE(shape.text());
      CAPTURE(std::string(name(dtype)));
      const PoisonScope poison;
      const double rtol = dtype == DType::bfloat16 ? 4e-3 : 0.0;  // quarters are exact in float32
      const Tensor s = Tensor::empty({outer, n}, dtype);
      kernels::sum(x, s);
      check_close(s, sums, rtol, "sum");
      const Tensor f = Tensor::empty(shape, dtype), b = Tensor::empty(shape, dtype);
      kernels::cumsum(x, f, false);
      kernels::cumsum(x, b, true);
      check_close(f, forwards, rtol, "cumsum");
      check_close(b, backwards, rtol, "cumsum reverse");
      const Tensor y = Tensor::empty({outer, n}, dtype);
      const Tensor index = Tensor::empty({outer, n}, DType::int64);
      if (rows == 0) {
        CHECK_THROWS_WITH_AS(kernels::max(x, y, index), Contains("[max] of an empty dimension"),
                             Error);
        continue;
      }
      kernels::max(x, y, index);
      check_close(y, high, 0, "max");
      CHECK(index.to_vector<int64_t>() == high_at);
      kernels::min(x, y, index);
      check_close(y, low, 0, "min");
      CHECK(index.to_vector<int64_t>() == low_at);
    }
  }
  const Tensor x = Tensor::from_vector(std::vector<float>{1, NAN, 5, NAN}, {1, 4, 1});
  const Tensor y = Tensor::empty({1, 1}), index = Tensor::empty({1, 1}, DType::int64);
  kernels::max(x, y, index);
  CHECK(std::isnan(y.item()));
  CHECK(index.item() == 1);
}

TEST_CASE("a long float32 sum keeps its digits") {
  // Equal terms are the worst case: every rounding goes the same way. A plain loop is off by 3 %.
  const int64_t n = 3'000'001;
  const Tensor x = Tensor::full({1, n, 1}, 0.1);
  const Tensor y = Tensor::empty({1, 1});
  kernels::sum(x, y);
  CHECK(y.item() == doctest::Approx(static_cast<double>(0.1f) * n).epsilon(1e-5));
  const Tensor columns = Tensor::full({1, 1'000'000, 2}, 0.1);
  const Tensor z = Tensor::empty({1, 2});
  kernels::sum(columns, z);
  CHECK(z.at({0, 1}) == doctest::Approx(static_cast<double>(0.1f) * 1'000'000).epsilon(1e-5));
}

TEST_CASE("gather, scatter_add, index_select and index_add against naive loops") {
  const int64_t outer = 3, rows = 6, n = 70, k = 5;
  for (const DType dtype : {DType::float32, DType::float64, DType::bfloat16}) {
    const Tensor x = random_values({outer, rows, n}, dtype, 8, -2, 2);
    const Tensor source = random_values({outer, k, n}, dtype, 9, -2, 2);
    std::vector<int64_t> at(static_cast<size_t>(outer * k * n));
    DrawReader reader({5, 0, 0, 0});
    for (int64_t& i : at) i = static_cast<int64_t>(reader.below(rows));
    const Tensor index = Tensor::from_vector(at, {outer, k, n});
    const std::vector<int64_t> list = {4, 0, 4, 5, 1};
    const Tensor chosen = Tensor::from_vector(list);
    const auto xs = x.to_vector<double>(), ss = source.to_vector<double>();
    std::vector<double> gathered, selected, scattered = xs, added = xs;
    for (int64_t a = 0; a < outer; ++a) {
      for (int64_t j = 0; j < k; ++j) {
        for (int64_t c = 0; c < n; ++c) {
          const auto from = static_cast<size_t>((a * k + j) * n + c);
          const auto there = static_cast<size_t>((a * rows + at[from]) * n + c);
          const auto row = static_cast<size_t>((a * rows + list[static_cast<size_t>(j)]) * n + c);
          gathered.push_back(xs[there]);
          selected.push_back(xs[row]);
          scattered[there] += ss[from];
          added[row] += ss[from];
        }
      }
    }
    const double rtol = 8 * epsilon(dtype);
    const Tensor y = Tensor::empty({outer, k, n}, dtype);
    kernels::gather(x, index, y);
    check_close(y, gathered, 0, "gather");
    kernels::index_select(x, chosen, y);
    check_close(y, selected, 0, "index_select");
    const Tensor s = x.clone(), t = x.clone();
    kernels::scatter_add(index, source, s);
    check_close(s, scattered, rtol, "scatter_add");
    kernels::index_add(chosen, source, t);
    check_close(t, added, rtol, "index_add");
  }
  const Tensor x = Tensor::zeros({1, 2, 1}), y = Tensor::empty({1, 1, 1});
  CHECK_THROWS_WITH_AS(kernels::index_select(x, Tensor::arange(3).slice(0, 2, 3), y),
                       Contains("index 2"), Error);
  CHECK_THROWS_WITH_AS(kernels::gather(x, Tensor::full({1, 1, 1}, -1, DType::int64), y),
                       Contains("[gather] index -1"), Error);
}

// c = alpha·a·b + beta·c by definition.
std::vector<double> naive_product(const Tensor& a, const Tensor& b, const Tensor& c, double alpha,
                                  double beta) {
  const int64_t m = a.size(-2), k = a.size(-1), n = b.size(-1);
  const auto x = a.to_vector<double>(), y = b.to_vector<double>();
  auto z = c.to_vector<double>();
  const int64_t batches = m * n == 0 ? 0 : c.numel() / (m * n);
  for (int64_t i = 0; i < batches * m * n; ++i) {
    const int64_t batch = i / (m * n), row = i / n % m, column = i % n;
    double total = 0;
    for (int64_t l = 0; l < k; ++l)
      total += x[static_cast<size_t>((batch * m + row) * k + l)] *
               y[static_cast<size_t>((batch * k + l) * n + column)];
    double& out = z[static_cast<size_t>(i)];
    out = alpha * total + (beta == 0 ? 0 : beta * out);
  }
  return z;
}

TEST_CASE("matmul against the triple loop: transposes, odd sizes, empty sums, batches") {
  const std::vector<std::array<int64_t, 3>> sizes = {{1, 1, 1},    {3, 4, 5},   {63, 1, 7},
                                                     {1, 100, 63}, {63, 65, 1}, {7, 0, 5},
                                                     {0, 3, 4},    {4, 3, 0},   {40, 33, 37}};
  for (const auto& [m, k, n] : sizes) {
    for (const Shape& batch : std::vector<Shape>{{}, {2}, {3, 2}, {9}, {0}}) {
      for (const DType dtype : {DType::float32, DType::float64, DType::bfloat16}) {
        for (int flags = 0; flags < 8; ++flags) {
          const auto operand = [&](int64_t rows, int64_t columns, bool transposed, uint32_t draw) {
            Shape shape = batch;
            shape.push_back(transposed ? columns : rows);
            shape.push_back(transposed ? rows : columns);
            const Tensor t = random_values(shape, dtype, draw, -1, 1);
            return transposed ? t.transpose(-1, -2) : t;
          };
          const Tensor a = operand(m, k, flags & 1, 10), b = operand(k, n, flags & 2, 11);
          const Tensor c = operand(m, n, flags & 4, 12);
          const double rtol = dtype == DType::bfloat16  ? 8e-3
                              : dtype == DType::float32 ? 2e-6
                                                        : 1e-14;
          CAPTURE(m);
          CAPTURE(k);
          CAPTURE(n);
          CAPTURE(flags);
          CAPTURE(std::string(name(dtype)));
          const auto plain = naive_product(a, b, c, 1.0, 0.0);
          const auto blended = naive_product(a, b, c, -0.5, 2.0);
          kernels::matmul(a, b, c, -0.5, 2.0);
          check_close(c, blended, rtol, "matmul with beta");
          // beta = 0 ignores what was there.
          c.fill(NAN);
          kernels::matmul(a, b, c, 1.0, 0.0);
          check_close(c, plain, rtol, "matmul");
        }
        if (batch.rank() == 0 && m * n * k > 3000) break;
      }
    }
  }
}

TEST_CASE(
    "matmul of operands whose rows lie a multiple of 2 KiB apart, read through padded copies") {
  // k passes one copy's rows; the left and the right operand collide, alone and together.
  for (const auto& [m, n, k] :
       {std::array<int64_t, 3>{512, 130, 530}, std::array<int64_t, 3>{130, 512, 1030},
        std::array<int64_t, 3>{512, 512, 70}}) {
    const Tensor a = random_values({k, m}, DType::float32, 20, -1, 1).transpose(0, 1);
    const Tensor b = random_values({k, n}, DType::float32, 21, -1, 1);
    for (const bool turned : {false, true}) {
      const Tensor c = turned ? random_values({n, m}, DType::float32, 22, -1, 1).transpose(0, 1)
                              : random_values({m, n}, DType::float32, 22, -1, 1);
      const auto blended = naive_product(a, b, c, 0.5, -2.0);
      kernels::matmul(a, b, c, 0.5, -2.0);
      check_close(c, blended, 2e-5, "matmul through padded copies");
    }
  }
}

TEST_CASE("matmul reads expanded batches and slices in place") {
  for (const DType dtype : {DType::float32, DType::float64, DType::bfloat16}) {
    const Tensor a = random_values({2, 1, 5, 6}, dtype, 13, -1, 1).expand({2, 3, 5, 6});
    const Tensor b = random_values({6, 4}, dtype, 14, -1, 1).expand({2, 3, 6, 4});
    const Tensor c = Tensor::empty({2, 3, 5, 4}, dtype);
    const double rtol = dtype == DType::bfloat16 ? 8e-3 : dtype == DType::float32 ? 1e-6 : 1e-14;
    kernels::matmul(a, b, c, 1.0, 0.0);
    check_close(c, naive_product(a, b, c, 1, 0), rtol, "expanded");
    // Heads inside a wide row, as in attention: (B, T, H·d) seen as (B, H, T, d).
    const Tensor wide = random_values({2, 7, 3 * 4}, dtype, 15, -1, 1);
    const Tensor heads = wide.view({2, 7, 3, 4}).permute({0, 2, 1, 3});
    const Tensor scores = Tensor::empty({2, 3, 7, 7}, dtype);
    kernels::matmul(heads, heads.transpose(-1, -2), scores, 0.5, 0.0);
    check_close(scores, naive_product(heads, heads.transpose(-1, -2), scores, 0.5, 0), rtol,
                "heads");
    const Tensor joined = Tensor::zeros({2, 7, 12}, dtype);
    kernels::matmul(scores, heads, joined.view({2, 7, 3, 4}).permute({0, 2, 1, 3}), 1.0, 0.0);
    check_close(joined.view({2, 7, 3, 4}).permute({0, 2, 1, 3}),
                naive_product(scores, heads, heads, 1, 0), 2 * rtol, "joined");
  }
  const Tensor x = Tensor::zeros({8, 8}).slice(0, 0, 8, 2).slice(1, 0, 8, 2);
  CHECK_THROWS_WITH_AS(kernels::matmul(x, x, Tensor::zeros({4, 4}), 1.0, 0.0),
                       Contains("no unit stride"), Error);
}

}  // namespace
}  // namespace macgrad
