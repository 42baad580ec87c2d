// Softmax attention on CUDA against the CPU's kernels: float32 against float32, rounded modes and
// bfloat16 against float64, over masks, layouts, widths and lengths; dropout, padding that holds
// NaN, and the order of threads. B batch, H heads, T queries, S keys, d and dv widths.
#include <doctest/doctest.h>

#include <cmath>
#include <limits>
#include <string>

#include "macgrad/core/kernels/attention.h"
#include "macgrad/cuda/math_mode.h"
#include "macgrad/cuda/step_values.h"
#include "macgrad/tests/cuda/device.h"
#include "macgrad/tests/op_cases.h"
#ifdef MACGRAD_CUDA_EMULATED
#include "macgrad/tests/cuda/emulation/machine.h"
#endif

namespace macgrad::testing {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

struct Case {
  int64_t B = 2, H = 2, T = 37, S = 53, d = 20, dv = 20;
  bool causal = false;
  bool masks = false;  // with holes; the last entry's keys are all padding
  bool strided = false;
  double dropout = 0;
  int64_t room = 4;  // between strided rows: rows lie 16 bytes apart, or not
};

struct Operands {
  Tensor q, k, v, grad, key_valid, query_valid;
  SoftmaxAttentionArgs args;
};
struct Results {
  Tensor out, statistics, dq, dk, dv;
};

Tensor allocate(const Case& c, int64_t n, int64_t width, DType dtype, Device device = kCpu) {
  const Tensor all = c.strided ? Tensor::empty({c.B, n, c.H, width + c.room}, dtype, device)
                                     .slice(3, 0, width)
                                     .transpose(1, 2)
                               : Tensor::empty({c.B, c.H, n, width}, dtype, device);
  all.fill(kNan);
  return all;
}

// Values that every dtype holds exactly; rows that are not valid hold NaN.
Operands operands(const Case& c, DType dtype) {
  Operands o;
  if (c.masks) {
    o.key_valid = random_mask({c.B, c.S}, 50);
    o.query_valid = random_mask({c.B, c.T}, 51);
    o.key_valid.slice(0, c.B - 1, c.B).fill(0);
  }
  const auto values = [&](int64_t n, int64_t width, uint32_t draw, const Tensor& valid) {
    const Tensor t = allocate(c, n, width, dtype);
    t.copy_from(exact_values({c.B, c.H, n, width}, draw, dtype));
    if (valid.defined()) {
      for (int64_t b = 0; b < c.B; ++b)
        for (int64_t i = 0; i < n; ++i)
          if (!valid.data<bool>()[b * n + i]) t.select(0, b).select(1, i).fill(kNan);
    }
    return t;
  };
  o.q = values(c.T, c.d, 52, o.query_valid);
  o.k = values(c.S, c.d, 53, o.key_valid);
  o.v = values(c.S, c.dv, 54, o.key_valid);
  o.grad = values(c.T, c.dv, 55, o.query_valid);
  o.args = {.scale = 1.5 / std::sqrt(static_cast<double>(std::max<int64_t>(1, c.d))),
            .causal = c.causal,
            .dropout = c.dropout,
            .key = {.seed = 0x123456789abcdefull, .stream = 3, .draw = 5, .step = 7}};
  return o;
}

Results run(const Case& c, const Operands& o) {
  const DType dtype = o.q.dtype();
  const Device device = o.q.device();
  Results r{allocate(c, c.T, c.dv, dtype, device),
            Tensor::full({c.B, c.H, c.T, 2}, kNan, compute_dtype(dtype), device),
            allocate(c, c.T, c.d, dtype, device), allocate(c, c.S, c.d, dtype, device),
            allocate(c, c.S, c.dv, dtype, device)};
  kernels::softmax_attention_forward({.in = {.q = o.q,
                                             .k = o.k,
                                             .v = o.v,
                                             .key_valid = o.key_valid,
                                             .query_valid = o.query_valid,
                                             .args = o.args},
                                      .out = r.out,
                                      .statistics = r.statistics});
  kernels::softmax_attention_backward({.in = {.q = o.q,
                                              .k = o.k,
                                              .v = o.v,
                                              .key_valid = o.key_valid,
                                              .query_valid = o.query_valid,
                                              .args = o.args},
                                       .out = r.out,
                                       .statistics = r.statistics,
                                       .grad = o.grad,
                                       .dq = r.dq,
                                       .dk = r.dk,
                                       .dv = r.dv});
  return r;
}

Operands moved(Operands o) {
  for (Tensor* t : {&o.q, &o.k, &o.v, &o.grad, &o.key_valid, &o.query_valid})
    if (t->defined()) *t = on_gpu(*t);
  return o;
}

Operands in_float64(Operands o) {
  for (Tensor* t : {&o.q, &o.k, &o.v, &o.grad}) *t = t->to(DType::float64);
  return o;
}

void check_same(const Results& got, const Results& expected, double tolerance) {
  const auto agree = [&](const char* what, const Tensor& a, const Tensor& b) {
    CAPTURE(what);
    CHECK(difference(a.to(kCpu).to(DType::float64), b.to(kCpu).to(DType::float64)) <= tolerance);
  };
  agree("out", got.out, expected.out);
  agree("statistics", got.statistics, expected.statistics);
  agree("dq", got.dq, expected.dq);
  agree("dk", got.dk, expected.dk);
  agree("dv", got.dv, expected.dv);
}

// A case in one arithmetic; its tolerance is that of the rounding of its inputs.
void check_case(const Case& c, DType dtype, cuda::MathMode mode) {
  INFO("B", c.B, " H", c.H, " T", c.T, " S", c.S, " d", c.d, " dv", c.dv, " causal ", c.causal,
       " masks ", c.masks, " strided ", c.strided, " dropout ", c.dropout, " ", name(dtype),
       " mode ", static_cast<int>(mode));
  const bool exact = dtype == DType::float32 && mode == cuda::MathMode::exact;
  cuda::set_math_mode(mode);
  const Results got = run(c, moved(operands(c, dtype)));
  cuda::set_math_mode(cuda::MathMode::exact);
  check_same(got, run(c, operands(c, DType::float64)),
             exact                          ? 4e-6
             : mode == cuda::MathMode::tf32 ? 2e-3
                                            : 1.5e-2);
}

void check_all(const Case& c) {
  check_case(c, DType::float32, cuda::MathMode::exact);
  check_case(c, DType::float32, cuda::MathMode::tf32);
  check_case(c, DType::float32, cuda::MathMode::bf16);
  check_case(c, DType::bfloat16, cuda::MathMode::exact);
}

TEST_CASE("cuda attention: widths") {
  for (const auto& [d, dv] : {std::pair{20, 20}, {64, 64}, {128, 128}, {1, 3}, {33, 70}})
    check_all({.B = 1, .d = d, .dv = dv, .masks = d == 33});
}

TEST_CASE("cuda attention: masks, causal at the ends, strides") {
  check_all({.masks = true});
  check_all({.H = 1, .causal = true});
  check_all({.H = 1, .T = 70, .S = 41, .causal = true, .masks = true});
  check_all({.H = 1, .T = 66, .S = 131, .causal = true});
  check_all({.H = 1, .d = 24, .dv = 16, .masks = true, .strided = true, .room = 8});
  check_all({.H = 1, .d = 24, .dv = 16, .causal = true, .strided = true, .room = 3});
}

TEST_CASE("cuda attention: lengths down to 0") {
  for (const auto& [T, S] :
       {std::pair{1, 1}, {1, 9}, {9, 1}, {64, 64}, {65, 129}, {0, 5}, {5, 0}}) {
    for (const bool causal : {false, true}) {
      check_case({.B = 1, .H = 1, .T = T, .S = S, .d = 8, .dv = 4, .causal = causal},
                 DType::float32, cuda::MathMode::exact);
      check_case({.B = 1, .H = 1, .T = T, .S = S, .d = 8, .dv = 4, .causal = causal},
                 DType::bfloat16, cuda::MathMode::exact);
    }
  }
  check_all({.B = 0, .T = 3, .S = 4});
}

TEST_CASE("cuda attention: dropout") {
  check_all({.H = 1, .dropout = 0.3});
  check_all({.B = 1, .T = 67, .S = 70, .causal = true, .masks = false, .dropout = 0.5});
  check_all({.T = 6, .S = 33, .masks = true, .dropout = 0.2});
  // With the unit matrix as values the result is the weights: those dropped are 0, on both devices.
  const Case c{.B = 1, .T = 66, .S = 71, .d = 16, .dv = 71, .dropout = 0.4};
  Operands o = operands(c, DType::float32);
  o.v.fill(0);
  for (int64_t h = 0; h < c.H; ++h)
    for (int64_t j = 0; j < c.S; ++j)
      o.v.select(1, h).slice(1, j, j + 1).slice(2, j, j + 1).fill(1);
  const auto expected = run(c, o).out.to_vector<double>();
  for (const bool live : {false, true}) {
    Operands moved_there = moved(o);
    if (live) {
      moved_there.args.key.step = kLiveStep;
      cuda::set_step_values({.step = o.args.key.step});
    }
    for (const auto mode : {cuda::MathMode::exact, cuda::MathMode::tf32, cuda::MathMode::bf16}) {
      cuda::set_math_mode(mode);
      const auto got = run(c, moved_there).out.to_vector<double>();
      cuda::set_math_mode(cuda::MathMode::exact);
      int64_t different = 0, dropped = 0;
      for (size_t i = 0; i < got.size(); ++i) {
        different += (got[i] == 0) != (expected[i] == 0);
        dropped += got[i] == 0;
      }
      CHECK(different == 0);
      CHECK(dropped > 0);
    }
  }
}

TEST_CASE("cuda attention: large scores and NaN where it is seen") {
  Case c{.B = 1, .H = 1, .T = 5, .S = 70, .d = 8, .dv = 4};
  Operands o = operands(c, DType::float32);
  o.args.scale = 200;
  // Scores reach 200·8·2·2; a weight is wrong by as much as its score.
  check_same(run(c, moved(o)), run(c, in_float64(o)), 6400 * 0x1p-24 + 4e-6);
  o.args.scale = 0.5;
  o.q.select(2, 3).fill(kNan);  // one query: its own row, and every key's gradient
  check_same(run(c, moved(o)), run(c, in_float64(o)), 4e-6);
}

TEST_CASE("cuda attention: what it refuses, and why") {
  const auto support = [](int64_t d, int64_t dv, DType dtype) {
    const Tensor q = Tensor::empty({1, 1, 2, d}, dtype, kGpu),
                 v = Tensor::empty({1, 1, 2, dv}, dtype, kGpu);
    const Tensor none;
    return kernels::softmax_attention_forward.supports(
        kGpu, {.q = q, .k = q, .v = v, .key_valid = none, .query_valid = none, .args = {}});
  };
  CHECK(support(128, 128, DType::float32).ok);
  CHECK(support(128, 1, DType::bfloat16).ok);
  CHECK(support(129, 64, DType::float32).reason.find("129") != std::string::npos);
  CHECK(support(64, 200, DType::float32).reason.find("200") != std::string::npos);
  CHECK(support(64, 64, DType::float64).reason.find("float64") != std::string::npos);
}

#ifdef MACGRAD_CUDA_EMULATED
TEST_CASE("cuda attention: the order of the threads changes no bit") {
  const Case c{.B = 1, .H = 1, .T = 70, .S = 75, .causal = true, .masks = false, .dropout = 0.25};
  for (const auto mode : {cuda::MathMode::exact, cuda::MathMode::tf32, cuda::MathMode::bf16}) {
    cuda::set_math_mode(mode);
    const Operands o = moved(operands(c, DType::float32));
    const Results first = run(c, o);
    for (const auto order : {emulation::Order::backward, emulation::Order::scattered}) {
      emulation::set_order(order);
      check_same(run(c, o), first, 0);
    }
    emulation::set_order(emulation::Order::forward);
  }
  cuda::set_math_mode(cuda::MathMode::exact);
}
#endif

}  // namespace
}  // namespace macgrad::testing
