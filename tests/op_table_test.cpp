// The modes of the op table (tests/op_cases.h) that every row runs: by definition, between dtypes,
// against central differences, on strided and expanded operands, at odd sizes, on poisoned memory.
#include <doctest/doctest.h>

#include <cmath>
#include <fstream>
#include <set>

#include "macgrad/autograd/gradcheck.h"
#include "macgrad/core/allocator.h"
#include "macgrad/tests/op_cases.h"
#include "macgrad/tests/op_table_checks.h"

namespace macgrad::testing {
namespace {

TEST_CASE("op table: float64 values and gradients follow the definition") {
  const Threads one(1);
  for (const OpCase& row : op_cases()) {
    if (!row.reference) continue;
    guarded(row, [&] {
      const Tensors inputs = make_inputs(row.inputs, DType::float64);
      Values values;
      for (const Tensor& t : inputs) values.push_back(t.to_vector<double>());
      const auto check = [&](const Tensor& got, const std::vector<double>& expected,
                             const std::string& what) {
        REQUIRE_MESSAGE(static_cast<int64_t>(expected.size()) == got.numel(), row.name);
        const Tensor want = Tensor::from_vector(expected, got.shape());
        check_within(row, {difference(got, want), what}, row.tol64, "by definition");
      };
      const Evaluation got = evaluate(row, inputs, row.gradient_reference ? 1 : 0);
      check(got.value, row.reference(values), "value");
      if (!row.gradient_reference) return;
      const Values expected =
          row.gradient_reference(values, cotangent_of(got.value).to_vector<double>());
      REQUIRE_MESSAGE(expected.size() == got.gradients.size(), row.name);
      for (size_t i = 0; i < expected.size(); ++i)
        check(got.gradients[i], expected[i], fmt::format("gradient {}", i));
    });
  }
}

TEST_CASE("op table: float32 and bfloat16 agree with float64, values and derivatives") {
  const Threads one(1);
  for (const OpCase& row : op_cases()) {
    for (const DType dtype : {DType::float32, DType::bfloat16}) {
      if (dtype == DType::bfloat16 && !row.bfloat16) continue;
      guarded(row, [&] {
        const Tensors inputs = make_inputs(row.inputs, dtype);
        // Second derivatives take a second rounding of every intermediate: float32 only.
        const int order = dtype == DType::bfloat16 ? std::min(1, order_of(row)) : order_of(row);
        const Worst worst =
            compare(evaluate(row, inputs, order), evaluate(row, in_float64(inputs), order));
        check_within(row, worst, tolerance(row, dtype), name(dtype));
      });
    }
  }
}

TEST_CASE("op table: gradients and second derivatives against central differences") {
  const Threads one(1);
  for (const OpCase& row : op_cases()) {
    if (!row.gradient || !row.numeric) continue;
    guarded(row, [&] {
      const Tensors inputs = make_inputs(row.inputs, DType::float64);
      Variables x;
      for (size_t i = 0; i < inputs.size(); ++i)
        x.emplace_back(inputs[i], row.inputs[i].differentiable);
      const GradcheckResult result =
          gradcheck(row.f, x, {.rtol = 1e-5, .atol = 2e-7, .order = row.second ? 2 : 1});
      CHECK_MESSAGE(result.ok, row.name, ": ", result.message);
    });
  }
}

TEST_CASE("op table: strided operands give what contiguous ones give") {
  const Threads one(1);
  for (const OpCase& row : op_cases()) {
    guarded(row, [&] {
      for (const DType dtype : {DType::float64, DType::float32}) {
        const Tensors inputs = make_inputs(row.inputs, dtype);
        Tensors views;
        for (const Tensor& t : inputs) views.push_back(strided(t));
        const Worst worst =
            compare(evaluate(row, views, order_of(row)), evaluate(row, inputs, order_of(row)));
        check_within(row, worst, tolerance(row, dtype), "strided");
      }
    });
  }
}

TEST_CASE("op table: expanded operands give what copies give") {
  const Threads one(1);
  for (const OpCase& row : op_cases()) {
    if (!row.expandable) continue;
    guarded(row, [&] {
      const Tensors inputs = make_inputs(row.inputs, DType::float64);
      Tensors expanded, copies;
      for (const Tensor& t : inputs) {
        const bool any = t.rank() > 0 && t.size(0) > 0;
        expanded.push_back(any ? t.slice(0, 0, 1).expand(t.shape()) : t);
        copies.push_back(expanded.back().clone());
      }
      const int order = std::min(1, order_of(row));
      const Worst worst = compare(evaluate(row, expanded, order), evaluate(row, copies, order));
      check_within(row, worst, row.tol64, "expanded");
    });
  }
}

TEST_CASE("op table: odd sizes, in float32 against float64, contiguous and strided") {
  const Threads one(1);
  for (const OpCase& row : op_cases()) {
    if (!row.sized) continue;
    for (const int64_t n : {0, 1, 63, 100}) {
      if (n < row.smallest) continue;
      guarded(row, [&] {
        const Tensors inputs = make_inputs(row.sized(n), DType::float32);
        const int order = std::min(1, order_of(row));
        const Evaluation expected = evaluate(row, in_float64(inputs), order);
        const std::string mode = fmt::format("size {}", n);
        check_within(row, compare(evaluate(row, inputs, order), expected), 3 * row.tol32,
                     mode.c_str());
        Tensors views;
        for (const Tensor& t : inputs) views.push_back(strided(t));
        check_within(row, compare(evaluate(row, views, order), expected), 3 * row.tol32,
                     (mode + " strided").c_str());
      });
    }
  }
}

// Outputs that a kernel forgot to write would show the NaN of fresh memory; a write outside them
// would break a guard word.
TEST_CASE("op table: poisoned memory changes no result, and no guard word breaks") {
  const Threads one(1);
  const uint64_t before = guard_violations();
  for (const OpCase& row : op_cases()) {
    guarded(row, [&] {
      std::vector<std::vector<OpInput>> sizes{row.inputs};
      if (row.sized) sizes.push_back(row.sized(63));
      for (const auto& specification : sizes) {
        const Tensors inputs = make_inputs(specification, DType::float32);
        const int order =
            specification.data() == sizes[0].data() ? order_of(row) : std::min(1, order_of(row));
        const Evaluation clean = evaluate(row, inputs, order);
        const PoisonScope poison;
        check_within(row, compare(evaluate(row, inputs, order), clean), 0.0, "poisoned");
      }
    });
    CHECK_MESSAGE(guard_violations() == before, row.name, " wrote outside its memory");
    if (guard_violations() != before) break;
  }
}

// Name of the op that a line of a header declares, or "".
std::string declared_op(const std::string& line) {
  for (const std::string result :
       {"Variable ", "Variables ", "Tensor ", "std::pair<Variable, Tensor> "}) {
    if (!line.starts_with(result)) continue;
    const size_t end =
        line.find_first_not_of("abcdefghijklmnopqrstuvwxyz_0123456789", result.size());
    if (end != std::string::npos && end > result.size() && line[end] == '(')
      return line.substr(result.size(), end - result.size());
  }
  return "";
}

TEST_CASE("op table: one row at least for every op of the headers") {
  std::set<std::string> rows;
  for (const OpCase& row : op_cases()) rows.insert(row.op);
  size_t seen = 0;
  for (const char* header :
       {"ops.h", "attention.h", "linear_attention.h", "projected_attention.h"}) {
    const std::string path = std::string(MACGRAD_FIXTURES) + "/../../autograd/" + header;
    std::ifstream file(path);
    REQUIRE_MESSAGE(file.good(), "cannot read ", path);
    for (std::string line; std::getline(file, line);) {
      const std::string op = declared_op(line);
      if (op.empty()) continue;
      CHECK_MESSAGE(rows.contains(op), op, " of autograd/", header,
                    " has no row in tests/op_cases");
      ++seen;
    }
  }
  CHECK(seen > 80);  // the headers are still read
}

}  // namespace
}  // namespace macgrad::testing
