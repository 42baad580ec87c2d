// Sameness across thread counts, oversubscribed ones included: integers, masks and signs to the
// bit, values to 1e-6 of their scale, and everything to the bit from run to run at one count. It
// also stands in for a race detector, which cannot follow OpenMP.
#include <doctest/doctest.h>

#include <set>

#include "macgrad/core/kernels/elementwise.h"
#include "macgrad/core/kernels/random.h"
#include "macgrad/tests/op_cases.h"

namespace macgrad::testing {
namespace {

const std::vector<int> kCounts = {2, 3, 8, 16};

// Long enough that loops are cut into several blocks; short where the work is quadratic.
int64_t size_of(const OpCase& row) {
  if (row.op == "softmax_attention") return 150;
  if (row.name == "matmul of odd rows") return 300;
  const bool is_attention =
      row.op == "rmfa" || row.op == "linear_attention" || row.op == "projected_attention";
  return is_attention ? 300 : 40'001;
}

// Elementwise ops share one loop: a few stand for all.
bool is_stood_for(const OpCase& row) {
  static const std::set<std::string> elementwise = {
#define MACGRAD_NAME(op, ...) #op,
      MACGRAD_UNARY_OPS(MACGRAD_NAME) MACGRAD_BINARY_OPS(MACGRAD_NAME)
#undef MACGRAD_NAME
          "sinh",
      "cosh"};
  static const std::set<std::string> chosen = {"exp", "gelu", "mul", "maximum"};
  return elementwise.contains(row.op) && !chosen.contains(row.op);
}

TEST_CASE("ops give the same values at 1, 2, 3, 8 and 16 threads") {
  for (const OpCase& row : op_cases()) {
    if (!row.sized || is_stood_for(row)) continue;
    CAPTURE(row.name);
    const Tensors inputs = make_inputs(row.sized(size_of(row)), DType::float32);
    const int order = row.gradient ? 1 : 0;
    const Evaluation expected = [&] {
      const Threads one(1);
      return evaluate(row, inputs, order);
    }();
    for (const int count : kCounts) {
      const Threads threads(count);
      const Evaluation got = evaluate(row, inputs, order);
      const Worst worst = compare(got, expected);
      const bool within = worst.value <= 1e-6;
      CHECK_MESSAGE(within, row.name, " at ", count, " threads: ", worst.where, " differs by ",
                    worst.value);
      if (count != 3) continue;
      CHECK_MESSAGE(compare(evaluate(row, inputs, order), got).value == 0, row.name, " at ", count,
                    " threads differs from run to run");
    }
  }
}

TEST_CASE("random numbers, masks and indices are the same bits at any thread count") {
  const Shape shape{3, 50'001};
  const DrawKey key{1, 2, 3, 4};
  const auto all = [&] {
    std::vector<Tensor> list;
    for (const DType dtype : {DType::float32, DType::float64, DType::bfloat16}) {
      for (const auto* slot : {&kernels::random_uniform, &kernels::random_signs}) {
        list.push_back(Tensor::empty(shape, dtype));
        (*slot)(list.back(), key);
      }
      const Tensor ones = Tensor::full(shape, 1, dtype);
      list.push_back(Tensor::empty(shape, dtype));
      kernels::dropout(ones, list.back(), 0.3, key);
    }
    const Variable x(exact_values(shape, 1, DType::float32));
    list.push_back(max(x, 1).second);
    list.push_back(min(x, 0).second);
    list.push_back(less(x.value(), 0.25));
    list.push_back(embedding(x, random_index({41}, 3, 2)).value().slice(1, 0, 5).contiguous());
    return list;
  };
  const auto expected = [&] {
    const Threads one(1);
    return all();
  }();
  for (const int count : kCounts) {
    const Threads threads(count);
    const auto got = all();
    for (size_t i = 0; i < got.size(); ++i) {
      CAPTURE(count);
      CAPTURE(i);
      CHECK(max_abs_difference(got[i], expected[i]) == 0);
    }
  }
}

TEST_CASE("normals agree across thread counts to rounding, and to the bit from run to run") {
  const Tensor a = Tensor::empty({100'001}), b = Tensor::empty({100'001});
  const auto draw = [](const Tensor& t, int count) {
    const Threads threads(count);
    kernels::random_normal(t, {9, 8, 7, 6});
  };
  draw(a, 1);
  for (const int count : kCounts) {
    draw(b, count);
    CHECK(difference(b, a) <= 1e-6);
    const Tensor again = Tensor::empty({100'001});
    draw(again, count);
    CHECK(max_abs_difference(again, b) == 0);
  }
}

TEST_CASE("large sums and products agree across thread counts") {
  const Variable x(exact_values({300, 700}, 1, DType::float32), true);
  const Variable w(exact_values({700, 130}, 2, DType::float32), true);
  const auto f = [](const Variables& v) {
    const Variable y = matmul(v[0], v[1]) * (1.0 / 64);
    return logsumexp(y, 1) + sum(tanh(y), {1}) + var(v[0], {1});
  };
  const auto run = [&](int count) {
    const Threads threads(count);
    return evaluate(f, {x.value(), w.value()}, {true, true}, 1);
  };
  const Evaluation expected = run(1);
  for (const int count : kCounts) CHECK(compare(run(count), expected).value <= 1e-6);
}

}  // namespace
}  // namespace macgrad::testing
