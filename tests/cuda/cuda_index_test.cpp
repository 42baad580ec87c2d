// Gathers and scatters of the CUDA backend against the CPU's: shapes, dtypes, repeated places, long
// runs of one row (a padding token), the same bits in any order of threads, indices outside.
#include <doctest/doctest.h>

#include "macgrad/core/kernels/arrays.h"
#include "macgrad/cuda/index_fault.h"
#include "macgrad/tests/cuda/device.h"
#include "macgrad/tests/cuda/orders.h"
#include "macgrad/tests/op_cases.h"

namespace macgrad::testing {
namespace {

const std::vector<DType> kFloating = {DType::float32, DType::float64, DType::bfloat16};
const std::vector<DType> kAny = {DType::float32, DType::float64, DType::bfloat16, DType::int64,
                                 DType::boolean};

struct Case {
  int64_t outer, rows, k, n;
};
const std::vector<Case> kCases = {{1, 1, 1, 1},   {1, 10, 7, 4},   {3, 5, 33, 2}, {2, 17, 100, 3},
                                  {1, 40, 64, 8}, {2, 3, 130, 40}, {1, 6, 0, 5},  {0, 4, 3, 2},
                                  {2, 4, 3, 0},   {1, 50, 65, 132}};

// The same values, contiguous, at an address that is no multiple of 8.
Tensor unaligned(const Tensor& t) {
  const Tensor memory = Tensor::empty({t.numel() + 1}, t.dtype());
  const Tensor view = memory.slice(0, 1, t.numel() + 1).view(t.shape());
  view.copy_from(t);
  return view;
}

Tensor gathered(const Tensor& x, const Tensor& index) {
  const Tensor y = Tensor::empty(index.shape(), x.dtype(), x.device());
  kernels::gather(x, index, y);
  return y;
}
Tensor selected(const Tensor& x, const Tensor& index) {
  const Tensor y = Tensor::empty({x.size(0), index.numel(), x.size(2)}, x.dtype(), x.device());
  kernels::index_select(x, index, y);
  return y;
}
template <class Slot>
Tensor added(const Slot& slot, const Tensor& index, const Tensor& source, const Tensor& start) {
  const Tensor y = start.clone();
  slot(index, source, y);
  return y;
}

TEST_CASE("cuda gather and index_select: shapes, every dtype, alignment") {
  for (const Case& c : kCases) {
    CAPTURE(c.outer);
    CAPTURE(c.k);
    CAPTURE(c.n);
    const Tensor places = random_index({c.outer, c.k, c.n}, c.rows, 1);
    const Tensor rows = random_index({c.k}, c.rows, 2);
    for (const DType dtype : kAny) {
      const Tensor x = exact_values({c.outer, c.rows, c.n}, 3, DType::float32).to(dtype);
      for (const Tensor& there : {on_gpu(x), on_gpu(unaligned(x))}) {
        CHECK(same_bits(gathered(there, on_gpu(places)), gathered(x, places)));
        CHECK(same_bits(selected(there, on_gpu(rows)), selected(x, rows)));
      }
    }
  }
}

TEST_CASE("cuda scatter_add and index_add: shapes, dtypes, alignment") {
  for (const Case& c : kCases) {
    CAPTURE(c.outer);
    CAPTURE(c.k);
    CAPTURE(c.n);
    const Tensor places = random_index({c.outer, c.k, c.n}, c.rows, 4);
    const Tensor rows = random_index({c.k}, c.rows, 5);
    for (const DType dtype : kFloating) {
      const Tensor start = exact_values({c.outer, c.rows, c.n}, 6, dtype);
      const Tensor source = exact_values({c.outer, c.k, c.n}, 7, dtype);
      const Tensor scattered = added(kernels::scatter_add, places, source, start);
      const Tensor row_sums = added(kernels::index_add, rows, source, start);
      for (const Tensor& there : {on_gpu(source), on_gpu(unaligned(source))}) {
        const Tensor y = on_gpu(start);
        // Sums of these values are exact but for one rounding to bfloat16.
        CHECK(same_bits(added(kernels::scatter_add, on_gpu(places), there, y), scattered));
        CHECK(same_bits(added(kernels::index_add, on_gpu(rows), there, y), row_sums));
      }
    }
  }
}

TEST_CASE("cuda index_add: rows that many places share, in any order of threads") {
  const int64_t n = 6, rows = 9;
  for (const int64_t k : {31, 32, 33, 64, 96, 300, 1000}) {
    CAPTURE(k);
    // Everything to one row; runs that begin and end at the edges of a warp's chunk; a mixture.
    for (const int kind : {0, 1, 2}) {
      std::vector<int64_t> index;
      for (int64_t i = 0; i < k; ++i)
        index.push_back(kind == 0 ? 4 : kind == 1 ? i / 32 % rows : i % 3 == 0 ? i % rows : 2);
      const Tensor places = Tensor::from_vector(index);
      const Tensor source = exact_values({2, k, n}, 8, DType::float32);
      const Tensor start = exact_values({2, rows, n}, 9, DType::float32);
      const Tensor there = on_gpu(places), from = on_gpu(source), y = on_gpu(start);
      const Tensor got =
          same_in_any_order([&] { return added(kernels::index_add, there, from, y); });
      CHECK(same_bits(got, added(kernels::index_add, places, source, start)));
    }
  }
}

// Added one by one in bfloat16, ones stop at 256.
TEST_CASE("cuda sums by destination: a thousand bfloat16 numbers are rounded once") {
  const Tensor ones = Tensor::full({1, 1000, 3}, 1, DType::bfloat16, kGpu);
  const Tensor zero = Tensor::zeros({1, 2, 3}, DType::bfloat16, kGpu);
  const auto sum_of = [](const Tensor& y) { return y.to_vector<double>().back(); };
  CHECK(sum_of(added(kernels::index_add, Tensor::full({1000}, 1, DType::int64, kGpu), ones,
                     zero)) == 1000);
  CHECK(sum_of(added(kernels::scatter_add, Tensor::full({1, 1000, 3}, 1, DType::int64, kGpu), ones,
                     zero)) == 1000);
  // So many columns that each has a thread of its own.
  constexpr int64_t n = 8200;
  CHECK(sum_of(added(kernels::scatter_add, Tensor::full({1, 300, n}, 1, DType::int64, kGpu),
                     Tensor::full({1, 300, n}, 1, DType::bfloat16, kGpu),
                     Tensor::zeros({1, 2, n}, DType::bfloat16, kGpu))) == 300);
}

TEST_CASE("cuda sums by destination: more places than one sorted tile, an odd number of runs") {
  const Tensor places = random_index({9001}, 300, 10);
  const Tensor source = exact_values({1, 9001, 3}, 11, DType::float32);
  const Tensor start = exact_values({1, 300, 3}, 12, DType::float32);
  CHECK(same_bits(added(kernels::index_add, on_gpu(places), on_gpu(source), on_gpu(start)),
                  added(kernels::index_add, places, source, start)));
  // Few columns and many places: scatter_add sorts as well.
  const Tensor index = random_index({2, 2100, 3}, 20, 13);
  const Tensor values = exact_values({2, 2100, 3}, 14, DType::float64);
  const Tensor zero = exact_values({2, 20, 3}, 15, DType::float64);
  const Tensor got = same_in_any_order(
      [&] { return added(kernels::scatter_add, on_gpu(index), on_gpu(values), on_gpu(zero)); });
  CHECK(same_bits(got, added(kernels::scatter_add, index, values, zero)));
}

TEST_CASE("cuda indices outside their tensor: the rest is done, the next read throws") {
  const auto message = [](auto&& f) {
    f();
    std::string words = "nothing thrown";
    try {
      Tensor::zeros({1}, DType::float32, kGpu).to(kCpu);
    } catch (const Error& e) {
      words = e.what();
    }
    cuda::throw_index_fault();  // once is enough
    return words;
  };
  const Tensor x = exact_values({1, 5, 4}, 16, DType::float32).to(kGpu);
  const Tensor rows = Tensor::from_vector(std::vector<int64_t>{0, 7, 2}).to(kGpu);
  const Tensor source = Tensor::full({1, 3, 4}, 1.0, DType::float32, kGpu);
  CHECK(message([&] { selected(x, rows); }) ==
        "[index_select] index 7 at place 1 is outside [0, 5)");
  const Tensor y = Tensor::zeros({1, 5, 4}, DType::float32, kGpu);
  CHECK(message([&] { kernels::index_add(rows, source, y); }) ==
        "[index_add] index 7 at place 1 is outside [0, 5)");
  const auto sums = y.to_vector<double>();
  for (size_t i = 0; i < sums.size(); ++i) CHECK(sums[i] == (i / 4 == 0 || i / 4 == 2 ? 1.0 : 0.0));
  const auto column = [](std::vector<int64_t> v) {
    const auto k = static_cast<int64_t>(v.size());
    return Tensor::from_vector(v, {1, k, 1}).to(kGpu);
  };
  const Tensor narrow = exact_values({1, 5, 1}, 17, DType::float32).to(kGpu);
  CHECK(message([&] {
          gathered(narrow, column({4, -1}));
        }) == "[gather] index -1 at place 1 is outside [0, 5)");
  const Tensor two = Tensor::full({1, 2, 1}, 1.0, DType::float32, kGpu);
  CHECK(message([&] {
          kernels::scatter_add(column({5, 1}), two, narrow);
        }) == "[scatter_add] index 5 at place 0 is outside [0, 5)");
  std::vector<int64_t> many(100, 3);
  many[60] = 99;
  const Tensor ones = Tensor::full({1, 100, 1}, 1.0, DType::float32, kGpu);
  CHECK(message([&] { kernels::scatter_add(column(many), ones, narrow); }) ==
        "[scatter_add] index 99 at place 60 is outside [0, 5)");
}

}  // namespace
}  // namespace macgrad::testing
