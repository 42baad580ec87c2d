// Elementwise kernels, copies and fills of the CUDA backend against the CPU's, over layouts: whole,
// unaligned, strided, expanded, transposed, empty; and the arithmetic of strided.h by itself.
#include <doctest/doctest.h>

#include <cmath>
#include <cstring>

#include "macgrad/core/kernels/arrays.h"
#include "macgrad/core/kernels/elementwise.h"
#include "macgrad/cuda/strided.h"
#include "macgrad/tests/cuda/device.h"
#include "macgrad/tests/cuda/orders.h"
#include "macgrad/tests/op_cases.h"

namespace macgrad::testing {
namespace {

const std::vector<DType> kFloating = {DType::float32, DType::float64, DType::bfloat16};
const std::vector<DType> kAny = {DType::float32, DType::float64, DType::bfloat16, DType::int64,
                                 DType::boolean};

// Views of one shape (n, 6) with different memory under them.
std::vector<Tensor> layouts(int64_t n, DType dtype, uint32_t draw) {
  const Tensor whole = exact_values({n, 6}, draw, DType::float32).to(dtype);
  const Tensor wide = exact_values({n + 1, 13}, draw + 1, DType::float32).to(dtype);
  return {whole, wide.slice(0, 1, n + 1).slice(1, 1, 7),  // rows apart, unaligned
          wide.slice(0, 0, n).slice(1, 0, 12, 2),         // every second
          exact_values({6, n}, draw + 2, DType::float32).to(dtype).transpose(0, 1),
          wide.slice(0, 0, 1).slice(1, 0, 6).expand({n, 6})};
}

TEST_CASE("strided_parts visits every element once, whatever the layout and the size of a part") {
  const Tensor x = Tensor::empty({3, 4, 5, 2});
  const std::vector<Tensor> views = {x,
                                     x.permute({2, 0, 3, 1}),
                                     x.slice(1, 0, 4, 2),
                                     x.slice(2, 1, 2).expand({3, 4, 7, 2}),
                                     x.select(0, 1),
                                     Tensor::empty({}),
                                     x.slice(0, 0, 1).slice(3, 0, 1)};
  for (const Tensor& view : views) {
    for (const int64_t most : {1000, 30, 7, 1}) {
      const Tensor dense = Tensor::empty(view.shape());
      std::vector<int> seen(static_cast<size_t>(view.numel()), 0);
      for (const auto& [shape, start] : cuda::strided_parts<2>({&view, &dense}, most)) {
        CHECK(int64_t{shape.count} <= most);
        for (uint32_t i = 0; i < shape.count; ++i) {
          int64_t at[2];
          shape.offsets(i, at);
          const int64_t element = at[1] + start[1];
          REQUIRE(element >= 0);
          REQUIRE(element < view.numel());
          ++seen[static_cast<size_t>(element)];
          // The offset that this element has by the definition of strides.
          int64_t rest = element, expected = 0;
          for (int d = view.rank() - 1; d >= 0; --d) {
            expected += rest % view.size(d) * view.stride(d);
            rest /= view.size(d);
          }
          REQUIRE(at[0] + start[0] == expected);
        }
      }
      for (const int count : seen) CHECK(count == 1);
    }
  }
}

TEST_CASE("strided_parts: the later parts of a long run begin as aligned as the first") {
  // Nothing of these elements is touched.
  const Tensor x = Tensor::empty({}, DType::bfloat16);
  const int64_t n = (int64_t{1} << 32) + 5;
  for (const Tensor& run : {x.as_strided({n}, {1}, 0), x.as_strided({n / 8, 8}, {8, 1}, 0)}) {
    int64_t count = 0;
    for (const auto& [shape, start] : cuda::strided_parts<1>({&run})) {
      CHECK(start[0] % 16 == 0);
      CHECK(start[0] == count);
      CHECK(shape.contiguous());
      count += shape.count;
    }
    CHECK(count == run.numel());
  }
}

TEST_CASE("cuda elementwise: every slot, dtype and layout gives the CPU's values") {
  for (const DType dtype : kFloating) {
    for (const int64_t n : {1, 63}) {
      const auto left = layouts(n, dtype, 10), right = layouts(n, dtype, 20);
      for (size_t i = 0; i < left.size(); ++i) {
        const Tensor &a = left[i], &b = right[(i + 1) % right.size()];
        const Tensor x = on_gpu(a), y = on_gpu(b);
        const auto agree = [&](const auto& slot, DType result, const auto&... operands) {
          const Tensor expected = Tensor::empty({n, 6}, result);
          const Tensor got = Tensor::empty({n, 6}, result, kGpu);
          slot(operands.first..., expected);
          slot(operands.second..., got);
          CAPTURE(slot.name());
          CAPTURE(i);
          CHECK(difference(got.to(kCpu), expected) <= (dtype == DType::float64   ? 1e-13
                                                       : dtype == DType::float32 ? 2e-6
                                                                                 : 8e-3));
        };
        const auto first = std::pair<const Tensor&, const Tensor&>(a, x);
        const auto second = std::pair<const Tensor&, const Tensor&>(b, y);
#define MACGRAD_TRY(op, ...) agree(kernels::op, dtype, first);
        MACGRAD_UNARY_OPS(MACGRAD_TRY)
#undef MACGRAD_TRY
#define MACGRAD_TRY(op, ...) agree(kernels::op, dtype, first, second);
        MACGRAD_BINARY_OPS(MACGRAD_TRY)
#undef MACGRAD_TRY
#define MACGRAD_TRY(op, ...) agree(kernels::op, DType::boolean, first, second);
        MACGRAD_COMPARE_OPS(MACGRAD_TRY)
#undef MACGRAD_TRY
        const Tensor condition = random_mask({n, 6}, 3), mask = on_gpu(condition);
        agree(kernels::where, dtype, std::pair<const Tensor&, const Tensor&>(condition, mask),
              first, second);
      }
    }
  }
}

TEST_CASE("cuda copy: every pair of dtypes and layouts") {
  for (const DType from : kAny) {
    for (const Tensor& x : layouts(40, from, 30)) {
      const Tensor source = on_gpu(x);
      for (const DType to : kAny) {
        for (const bool turned : {false, true}) {
          const auto target = [&](Device device) {
            const Tensor t = Tensor::empty(turned ? Shape{6, 40} : Shape{40, 6}, to, device);
            return turned ? t.transpose(0, 1) : t;
          };
          const Tensor expected = target(kCpu), got = target(kGpu);
          kernels::copy(x, expected);
          kernels::copy(source, got);
          CHECK(difference(got.to(kCpu), expected) == 0);
        }
      }
    }
  }
  // Transpositions of more than one tile, with outer dimensions.
  const Tensor wide = exact_values({3, 2, 70, 45}, 5, DType::float32);
  const Tensor turned = wide.permute({1, 0, 3, 2});
  CHECK(difference(on_gpu(wide).permute({1, 0, 3, 2}).clone().to(kCpu), turned.clone()) == 0);
}

TEST_CASE("cuda fill: dtypes, strides and empty tensors") {
  for (const DType dtype : kAny) {
    const Tensor t = Tensor::zeros({5, 9}, dtype, kGpu);
    t.slice(1, 1, 9, 3).fill(1.0);
    const auto values = t.to(kCpu).to_vector<double>();
    for (size_t i = 0; i < values.size(); ++i) CHECK(values[i] == (i % 9 % 3 == 1 ? 1.0 : 0.0));
    CHECK(Tensor::full({0, 3}, 2, dtype, kGpu).to_vector<double>().empty());
  }
}

TEST_CASE("cuda fill: runs of every alignment and length, and nothing beyond them") {
  constexpr int64_t kMost = 100;
  for (const DType dtype : kAny) {
    // Zeros, one byte repeated (int64 -1), and bits that only whole elements repeat.
    for (const double value : {0.0, -1.0, 0.1}) {
      for (const int64_t offset : {0, 1, 2, 3, 7, 8, 9, 15}) {
        for (const int64_t n : {1, 2, 7, 8, 16, 17, 31, 64}) {
          const Tensor memory = Tensor::full({kMost}, 1.0, dtype, kGpu);
          memory.slice(0, offset, offset + n).fill(value);
          const Tensor expected = Tensor::full({kMost}, 1.0, dtype);
          expected.slice(0, offset, offset + n).fill(value);
          REQUIRE(same_bits(memory, expected));
        }
      }
    }
  }
}

TEST_CASE("cuda copy: conversions of runs of every alignment and length, and nothing beyond them") {
  constexpr int64_t kMost = 60;
  for (const DType from : kAny) {
    const Tensor x = exact_values({kMost}, 6, DType::float32).to(from), source = on_gpu(x);
    for (const DType to : kAny) {
      CAPTURE(name(from));
      CAPTURE(name(to));
      for (const int64_t x_offset : {0, 1, 4, 7}) {
        for (const int64_t y_offset : {0, 1, 4, 5, 8}) {
          for (const int64_t n : {1, 3, 8, 9, 23, 40}) {
            const auto converted = [&](const Tensor& operand) {
              const Tensor y = Tensor::full({kMost}, 1.0, to, operand.device());
              y.slice(0, y_offset, y_offset + n)
                  .copy_from(operand.slice(0, x_offset, x_offset + n));
              return y.to(kCpu);
            };
            REQUIRE(difference(converted(source), converted(x)) == 0);
          }
        }
      }
    }
  }
}

TEST_CASE("cuda copy: float32 is rounded to bfloat16 as on the CPU, to nearest even") {
  // Every bfloat16 with what its lower half may be: nothing, below, at and above the middle.
  std::vector<uint32_t> bits;
  for (uint32_t upper = 0; upper < 0x10000; ++upper)
    for (const uint32_t lower : {0x0000u, 0x0001u, 0x7fffu, 0x8000u, 0x8001u, 0xffffu})
      bits.push_back(upper << 16 | lower);
  const auto n = static_cast<int64_t>(bits.size());
  const Tensor x = Tensor::empty({n});
  std::memcpy(x.raw(), bits.data(), x.bytes());
  const Tensor got = x.to(kGpu).to(DType::bfloat16).to(kCpu), expected = x.to(DType::bfloat16);
  int64_t different = 0;
  for (int64_t i = 0; i < n; ++i) {
    const bfloat16 a = got.data<bfloat16>()[i], b = expected.data<bfloat16>()[i];
    // A NaN may be another NaN.
    const bool both_nan = std::isnan(static_cast<float>(a)) && std::isnan(static_cast<float>(b));
    different += a.bits != b.bits && !both_nan;
  }
  CHECK(different == 0);
}

}  // namespace
}  // namespace macgrad::testing
