// The rows of the bench on the CUDA device, at sizes that say nothing about speed: every row runs,
// in every precision, under names of its own.
#include <doctest/doctest.h>

#include <cmath>
#include <set>

#include "macgrad/core/kernels/arrays.h"
#include "macgrad/cuda/register.h"
#include "macgrad/experiments/bench/groups.h"
#include "macgrad/tests/cuda/device.h"
#include "macgrad/tests/cuda/rounding.h"
#include "macgrad/tests/op_cases.h"

namespace macgrad::testing {
namespace {

using namespace experiments;

BenchPlace tiny_place() {
  BenchPlace place;
  place.device = kGpu;
  place.precisions = precisions_of(DeviceType::cuda);
  place.set_math = [](const std::string& mode) { set_cuda_math(mode); };
  place.library_product = cublas_product;
  place.seconds = 0.0;
  place.print = false;
  BenchSizes& s = place.sizes;
  s.copy = 256;
  s.square = 16;
  s.products = {{8, 4, 12}};
  s.weight_gradient = {16, 8, 4};
  s.linear = {8, 4, 8};
  s.softmax = {8, 32};
  s.layer_norm = {512, 64};
  s.cross_entropy = {4, 40};
  s.backward_rows = true;
  s.batch = 1;
  s.heads = 2;
  s.head_dim = 8;
  s.features = 16;
  s.lengths = {20};
  s.causal_lengths = {9};
  s.short_batch = 2;
  s.short_length = 5;
  s.models = {{"small", 1, 16, 16, 2, 2, 4, 12}};
  s.decoded = {2, 3};
  return place;
}

TEST_CASE("cuda bench: every row runs in every precision") {
  BenchTable table({}, tiny_place());
  bench_limits(table);
  bench_rows(table);
  bench_attention(table);
  bench_training(table);
  bench_recording(table);
  bench_decoding(table);
  for (const std::string& failure : table.failures()) FAIL_CHECK(failure);
  std::set<std::string> names;
  for (const BenchRow& row : table.rows()) {
    CAPTURE(row.name);
    CHECK(names.insert(row.name).second);
    CHECK(row.ms > 0);
  }
  for (const char* name :
       {"limit/copy 0 MiB", "limit/sgemm 16x16x16 tf32", "adam 0 MiB",
        "linear 8x4 -> 8 bf16 storage", "layer_norm_backward 512x64",
        "rmfa D=16 n=20 forward+backward bf16 storage", "rmfa causal D=16 n=9 forward",
        "linear_attention M=16 n=20 forward+backward", "positive/orf D=16 n=20 forward+backward",
        "linear_attention log causal M=16 n=9 forward tf32", "softmax_attention n=20 forward tf32",
        "training step small rmfa+ppsbn D=16 bf16", "training step small softmax replayed tf32",
        "training step small softmax replayed bf16 storage",
        "training step small rmfa+ppsbn D=16 bf16 storage", "recording norms small softmax",
        "recording everything small rmfa+ppsbn", "decoding softmax n=3",
        "decoding rmfa+ppsbn D=16 n=2"})
    CHECK_MESSAGE(names.count(name) == 1, name);
  // Limits come before what is read against them, and notes carry the shares.
  const BenchRow* rmfa = table.find("rmfa D=16 n=20 forward tf32");
  REQUIRE(rmfa);
  CHECK(rmfa->note.find("of the 16^3 rate") != std::string::npos);
  CHECK(rmfa->note.find("of the copy's GB/s") != std::string::npos);
  CHECK(rmfa->extra_bytes >= 0);
}

TEST_CASE("cuda bench: the limit of products is the library's call, not the slot") {
  struct Calls : KernelObserver {
    int64_t matmul = 0;
    void after(const KernelCall& call) override {
      matmul += std::string_view(call.name) == "matmul";
    }
  };
  for (const DType dtype : {DType::float32, DType::bfloat16}) {
    CAPTURE(name(dtype));
    const Tensor a = exact_values({9, 5}, 1, dtype), b = exact_values({5, 13}, 2, dtype);
    const Tensor expected = Tensor::empty({9, 13}, dtype);
    kernels::matmul(a, b, expected, 1.0, 0.0);
    // Either operand, or both, transposed in memory.
    const auto turned = [](const Tensor& t) {
      return t.transpose(0, 1).contiguous().transpose(0, 1);
    };
    for (const auto& [left, right] :
         {std::pair{a, b}, {turned(a), b}, {a, turned(b)}, {turned(a), turned(b)}}) {
      const Tensor c = Tensor::full({9, 13}, std::nan(""), dtype, kGpu);
      Calls calls;
      KernelObserver* const previous = set_kernel_observer(&calls);
      cublas_product(on_gpu(left), on_gpu(right), c);
      set_kernel_observer(previous);
      CHECK(calls.matmul == 0);
      CHECK(difference(c, expected) <= rounding_tolerance(dtype, 5));
    }
  }
  // It is what the rows of the limit run.
  BenchPlace place = tiny_place();
  place.precisions = {{}};
  int64_t products = 0;
  place.library_product = [&](const Tensor& a, const Tensor& b, const Tensor& c) {
    ++products;
    cublas_product(a, b, c);
  };
  BenchTable table({"limit/sgemm 16x16x16"}, place);
  bench_limits(table);
  CHECK(products > 0);
}

TEST_CASE("cuda bench: a filter leaves rows out without running them") {
  BenchTable table({"softmax_attention n=20 forward bf16"}, tiny_place());
  bench_limits(table);
  bench_rows(table);
  bench_attention(table);
  bench_training(table);
  bench_recording(table);
  bench_decoding(table);
  REQUIRE(table.rows().size() == 2);  // "... bf16" and "... bf16 storage"
}

}  // namespace
}  // namespace macgrad::testing
