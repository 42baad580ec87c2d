// Coverage: every slot of core/kernels.h is exercised by a row of the op table, or by a call below
// when no op leads to it, in each dtype it serves.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <regex>
#include <set>
#include <string>

#include "macgrad/core/kernels/arrays.h"
#include "macgrad/core/kernels/optimizer.h"
#include "macgrad/core/kernels/random.h"
#include "macgrad/tests/op_cases.h"
#include "macgrad/tests/slot_coverage.h"

namespace macgrad::testing {
namespace {

// Slots of fused ops whose CPU kernels take float32 and float64 only.
const std::set<std::string> kNoBfloat16 = {"softmax_attention_forward",
                                           "softmax_attention_backward",
                                           "rmfa_forward",
                                           "rmfa_backward",
                                           "linear_attention_forward",
                                           "linear_attention_backward",
                                           "projected_attention_forward",
                                           "projected_attention_backward"};

// Slots that no differentiable op calls: each with its definition.
void run_other_slots(DType dtype) {
  const Shape shape{5, 13};
  const DrawKey key{7, 1, 2, 3};
  const double step = dtype == DType::bfloat16 ? 1e-2 : 1e-6;
  const auto drawn = [&](const Kernel<void(Out, DrawKey)>& slot) {
    const Tensor y = Tensor::empty(shape, dtype);
    slot(y, key);
    return y.to_vector<double>();
  };
  const auto uniform = drawn(kernels::random_uniform), signs = drawn(kernels::random_signs);
  for (size_t i = 0; i < uniform.size(); ++i) {
    CHECK(uniform[i] >= 0);
    CHECK(uniform[i] < 1);
    if (dtype != DType::float64)
      CHECK(uniform[i] == doctest::Approx(uniform_from_bits(random_bits(key, i))).epsilon(step));
    CHECK(signs[i] == ((random_bits(key, i) >> 31) ? 1.0 : -1.0));
  }
  double squares = 0;
  for (double v : drawn(kernels::random_normal)) {
    CHECK(std::isfinite(v));
    squares += v * v;
  }
  CHECK(squares / 65 == doctest::Approx(1).epsilon(0.6));

  const Tensor filled = Tensor::empty({3, 4}, dtype).transpose(0, 1);
  kernels::fill(filled, 0.75);
  for (double v : filled.to_vector<double>()) CHECK(v == 0.75);

  const Tensor a = exact_values({7}, 1, dtype), b = exact_values({2, 3}, 2, dtype);
  const Tensor total = Tensor::empty({1}, DType::float64);
  kernels::sum_of_squares(Tensors{a, b}, total);
  double expected = 0;
  for (const Tensor& t : {a, b})
    for (double v : t.to_vector<double>()) expected += v * v;
  CHECK(total.item() == doctest::Approx(expected).epsilon(step));

  // Values: maclaurin_draw_test.cpp.
  run_feature_draw(dtype, kCpu);

  // Two steps of AdamW by definition.
  const AdamArgs args{.lr = 0.1, .beta1 = 0.5, .beta2 = 0.75, .eps = 1e-3, .weight_decay = 0.25};
  const Tensor p = exact_values({7}, 3, dtype), g = exact_values({7}, 4, dtype);
  const Tensor first = Tensor::zeros({7}, dtype), second = Tensor::zeros({7}, dtype);
  auto want = p.to_vector<double>();
  const auto gradient = g.to_vector<double>();
  std::vector<double> m(7, 0.0), v(7, 0.0);
  for (int64_t t = 1; t <= 2; ++t) {
    AdamArgs now = args;
    now.step = t;
    kernels::adam(Tensors{p}, Tensors{}, Tensors{g}, Tensors{first}, Tensors{second}, now);
    for (size_t i = 0; i < 7; ++i) {
      m[i] = 0.5 * m[i] + 0.5 * gradient[i];
      v[i] = 0.75 * v[i] + 0.25 * gradient[i] * gradient[i];
      const double corrected = m[i] / (1 - std::pow(0.5, t));
      const double root = std::sqrt(v[i] / (1 - std::pow(0.75, t)));
      want[i] -= 0.1 * (corrected / (root + 1e-3) + 0.25 * want[i]);
    }
  }
  const double limit = dtype == DType::bfloat16 ? 2e-2 : dtype == DType::float32 ? 1e-6 : 1e-12;
  CHECK(difference(p, Tensor::from_vector(want)) < limit);

  // Two steps of SGD by definition, clipped by value.
  const Tensor q = exact_values({7}, 5, dtype), moment = Tensor::zeros({7}, dtype);
  want = q.to_vector<double>();
  std::vector<double> moved(7, 0.0);
  for (int t = 0; t < 2; ++t) {
    kernels::sgd(Tensors{q}, Tensors{}, Tensors{g}, Tensors{moment},
                 {.lr = 0.125, .momentum = 0.5, .weight_decay = 0.25, .clip_value = 0.75});
    for (size_t i = 0; i < 7; ++i) {
      moved[i] = 0.5 * moved[i] + std::clamp(gradient[i], -0.75, 0.75) + 0.25 * want[i];
      want[i] -= 0.125 * moved[i];
    }
  }
  CHECK(difference(q, Tensor::from_vector(want)) < limit);
  CHECK(difference(moment, Tensor::from_vector(moved)) < limit);
}

TEST_CASE("every list of kernels is part of the list of all") {
  const std::filesystem::path core = std::filesystem::path(MACGRAD_FIXTURES) / "../../core";
  const auto text = [](const std::filesystem::path& file) {
    std::ifstream in(file);
    return std::string{std::istreambuf_iterator<char>(in), {}};
  };
  const std::string all = text(core / "kernels.h");
  int families = 0;
  for (const auto& header : std::filesystem::directory_iterator(core / "kernels"))
    for (std::string rest = text(header.path()); !rest.empty();) {
      static const std::regex made("\\nMACGRAD_(SCRATCH_)?KERNELS\\((\\w+)\\)");
      std::smatch list;
      if (!std::regex_search(rest, list, made)) break;
      CHECK_MESSAGE(all.find(list.str(2) + "(") != std::string::npos, "core/kernels.h lacks ",
                    list.str(2));
      ++families;
      rest = list.suffix();
    }
  CHECK(families > 8);
}

TEST_CASE("every kernel slot is exercised in every dtype it serves") {
  const Threads one(1);
  const std::vector<DType> dtypes = {DType::float32, DType::float64, DType::bfloat16};
  Noted noted;
  for (const OpCase& row : op_cases()) {
    for (const DType dtype : dtypes) {
      if (dtype == DType::bfloat16 && !row.bfloat16) continue;
      CAPTURE(row.name);
      evaluate(row, make_inputs(row.inputs, dtype), row.gradient ? 1 : 0);
    }
  }
  for (const DType dtype : dtypes) run_other_slots(dtype);
  for (const std::string& slot : kAllSlots) {
    for (const DType dtype : dtypes) {
      if (dtype == DType::bfloat16 && kNoBfloat16.contains(slot)) continue;
      CHECK_MESSAGE(noted.seen_on(DeviceType::cpu, slot, dtype), "no row exercises kernels::", slot,
                    " in ", name(dtype), " on cpu; add one to tests/op_cases_*.cpp");
    }
  }
}

}  // namespace
}  // namespace macgrad::testing
