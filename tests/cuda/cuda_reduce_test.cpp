// Reductions and running sums of the CUDA backend against the CPU's, and the cut of a reduction by
// itself. The values are sixteenths, so that sums are exact and must agree to the last bit.
#include <doctest/doctest.h>

#include <cmath>
#include <limits>

#include "macgrad/core/kernels/arrays.h"
#include "macgrad/core/kernels/random.h"
#include "macgrad/cuda/reduce_tiling.h"
#include "macgrad/tests/cuda/device.h"
#include "macgrad/tests/cuda/orders.h"
#include "macgrad/tests/op_cases.h"

namespace macgrad::testing {
namespace {

const std::vector<DType> kFloating = {DType::float32, DType::float64, DType::bfloat16};
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
constexpr double kInf = std::numeric_limits<double>::infinity();

// (A, R, N): short and long rows, few and many outputs, whole packs and odd ends.
const std::vector<Shape> kShapes = {
    {1, 1, 1},    {3, 7, 1}, {5, 64, 1},  {300, 2, 1}, {2, 1025, 1}, {1, 20001, 1},
    {3, 4096, 1}, {2, 9, 3}, {1, 700, 5}, {4, 3, 64},  {2, 100, 33}, {1, 400, 260},
    {2, 5, 1000}, {3, 0, 4}, {2, 0, 1},   {0, 3, 2},   {2, 3, 0},    {1, 3000, 8},
};

// The same values, contiguous, at an address that is no multiple of 8.
Tensor unaligned(const Tensor& t) {
  const Tensor memory = Tensor::empty({t.numel() + 1}, t.dtype());
  const Tensor view = memory.slice(0, 1, t.numel() + 1).view(t.shape());
  view.copy_from(t);
  return view;
}

struct Extremum {
  Tensor value, index;
};
template <class Slot>
Extremum extremum(const Slot& slot, const Tensor& x) {
  const Shape shape{x.size(0), x.size(2)};
  const Extremum e{Tensor::empty(shape, x.dtype(), x.device()),
                   Tensor::empty(shape, DType::int64, x.device())};
  slot(x, e.value, e.index);
  return e;
}

Tensor sum_of(const Tensor& x) {
  const Tensor y = Tensor::empty({x.size(0), x.size(2)}, x.dtype(), x.device());
  kernels::sum(x, y);
  return y;
}

Tensor cumsum_of(const Tensor& x, bool reverse) {
  const Tensor y = Tensor::empty(x.shape(), x.dtype(), x.device());
  kernels::cumsum(x, y, reverse);
  return y;
}

TEST_CASE("the cut of a reduction takes every element once, whatever the shape and the card") {
  for (const Shape& shape : kShapes) {
    if (shape.numel() == 0 || shape.numel() > 8000) continue;
    for (const int pack : {1, 2, 4}) {
      for (const int processors : {1, 6, 132}) {
        CAPTURE(shape.text());
        CAPTURE(pack);
        CAPTURE(processors);
        const int64_t rows = shape[1], n = shape[2];
        const auto t =
            cuda::reduce_tiling(shape[0], rows, n, pack, true, processors, processors == 1);
        if (processors == 1) CHECK(t.pieces == 1);
        std::vector<int> seen(static_cast<size_t>(shape.numel()), 0);
        std::vector<int> written(static_cast<size_t>(shape[0] * t.pieces * n), 0);
        for (int64_t block = 0; block < t.blocks(); ++block) {
          for (int thread = 0; thread < t.threads(); ++thread) {
            const auto p = t.place(block, thread);
            const int width = t.along ? t.pack : 1;
            for (int64_t r = p.begin + p.lane * width; r < p.end; r += t.lanes * width)
              for (int j = 0; j < t.pack; ++j)
                if (!t.along || r + j < p.end)
                  ++seen[static_cast<size_t>(t.along ? p.start + r + j : p.start + r * n + j)];
            if (p.lane == 0 && p.output >= 0)
              for (int j = 0; j < (t.along ? 1 : t.pack); ++j)
                ++written[static_cast<size_t>(p.output + j)];
          }
        }
        bool once = true;
        for (const int count : seen) once = once && count == 1;
        for (const int count : written) once = once && count == 1;
        CHECK(once);
      }
    }
  }
}

TEST_CASE("cuda sum: shapes, dtypes, alignment") {
  for (const DType dtype : kFloating) {
    for (const Shape& shape : kShapes) {
      CAPTURE(shape.text());
      CAPTURE(name(dtype));
      const Tensor x = exact_values(shape, 1, dtype);
      const Tensor expected = sum_of(x);
      CHECK(same_bits(sum_of(on_gpu(x)), expected));
      CHECK(same_bits(sum_of(on_gpu(unaligned(x))), expected));
    }
  }
}

TEST_CASE("cuda sum: long sums are accurate and the same in any order of threads") {
  for (const Shape& shape : {Shape{1, 150000, 1}, Shape{1, 30000, 4}, Shape{2, 3001, 3}}) {
    CAPTURE(shape.text());
    const Tensor x = Tensor::empty(shape);
    kernels::random_uniform(x, {1, 2, 3, 4});
    const Tensor got = same_in_any_order([&] { return sum_of(on_gpu(x)); });
    CHECK(difference(got.to(DType::float64), sum_of(x.to(DType::float64))) < 2e-7);
  }
  // NaN and infinities go through.
  const Tensor odd =
      Tensor::from_values(std::vector<double>{1, kNaN, 2, kInf}, {2, 2, 1}, DType::float32);
  const auto sums = sum_of(odd.to(kGpu)).to_vector<double>();
  CHECK(std::isnan(sums[0]));
  CHECK(sums[1] == kInf);
}

TEST_CASE("cuda max and min: first places of ties, shapes, dtypes, alignment") {
  for (const DType dtype : kFloating) {
    for (const Shape& shape : kShapes) {
      if (shape[1] == 0) continue;
      CAPTURE(shape.text());
      CAPTURE(name(dtype));
      const Tensor x = exact_values(shape, 2, dtype);
      for (const auto* slot : {&kernels::max, &kernels::min}) {
        const Extremum expected = extremum(*slot, x);
        for (const Tensor& there : {on_gpu(x), on_gpu(unaligned(x))}) {
          const Extremum got = extremum(*slot, there);
          CHECK(same_bits(got.value, expected.value));
          CHECK(same_bits(got.index, expected.index));
        }
      }
    }
  }
  const Tensor x = exact_values({1, 9000, 2}, 3, DType::float32).to(kGpu);
  same_in_any_order([&] { return extremum(kernels::max, x).index; });
  CHECK_THROWS_WITH(extremum(kernels::max, Tensor::empty({1, 0, 2}, DType::float32, kGpu)),
                    "[max] of an empty dimension, shape (1, 0, 2)");
}

TEST_CASE("cuda max and min: NaN wins, the first one; infinities; both zeros are equal") {
  const std::vector<std::vector<double>> lines = {{1, kNaN, 5, kNaN},           {kNaN, kInf, 1, 2},
                                                  {-kInf, -kInf, -kInf, -kInf}, {kInf, 1, kInf, 2},
                                                  {-0.0, 0.0, -0.0, 0.0},       {2, 2, 2, kNaN}};
  for (const int64_t repeat : {1, 700}) {
    for (const auto& line : lines) {
      std::vector<double> values;
      for (int64_t i = 0; i < repeat; ++i) values.insert(values.end(), line.begin(), line.end());
      const auto rows = static_cast<int64_t>(values.size());
      const Tensor x = Tensor::from_values(values, {1, rows, 1}, DType::float32);
      for (const Tensor& t : {x, x.view({1, rows / 2, 2})}) {
        for (const auto* slot : {&kernels::max, &kernels::min}) {
          const Extremum expected = extremum(*slot, t), got = extremum(*slot, on_gpu(t));
          CHECK(same_bits(got.index, expected.index));
          CHECK(difference(got.value.to(kCpu), expected.value) == 0);
        }
      }
    }
  }
}

TEST_CASE("cuda cumsum: shapes, dtypes, both directions") {
  for (const DType dtype : kFloating) {
    for (const Shape& shape : kShapes) {
      for (const bool reverse : {false, true}) {
        CAPTURE(shape.text());
        CAPTURE(name(dtype));
        const Tensor x = exact_values(shape, 4, dtype);
        CHECK(same_bits(cumsum_of(on_gpu(x), reverse), cumsum_of(x, reverse)));
      }
    }
  }
  const Tensor x = exact_values({1, 5000, 3}, 5, DType::float32).to(kGpu);
  same_in_any_order([&] { return cumsum_of(x, true); });
}

}  // namespace
}  // namespace macgrad::testing
