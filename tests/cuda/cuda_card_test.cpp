// Cards that differ: kernels compiled for another architecture, and shared memory of 99, 163 and
// 227 KiB per block (compute capability 8.6, 8.0 and 9.0). `supports` accepts a call exactly when
// its launches go through, and a fused op whose backward pass does not fit runs its composite.
#include <doctest/doctest.h>

#include <cmath>
#include <string>

#include "macgrad/autograd/attention.h"
#include "macgrad/autograd/engine.h"
#include "macgrad/autograd/fused.h"
#include "macgrad/core/kernels/attention.h"
#include "macgrad/core/kernels/linear_attention.h"
#include "macgrad/core/kernels/rmfa.h"
#include "macgrad/cuda/math_mode.h"
#include "macgrad/cuda/register.h"
#include "macgrad/cuda/runtime.h"
#include "macgrad/tests/composites_allowed.h"
#include "macgrad/tests/cuda/device.h"
#include "macgrad/tests/op_cases.h"

namespace macgrad::testing {
namespace {

TEST_CASE("a card without an image among the compiled architectures is not usable") {
  using cuda::architecture_refusal;
  CHECK(architecture_refusal(7, 5, "80 90") ==
        "compiled for sm_80, sm_90, this card is sm_75: the kernels need compute capability 8.0 or "
        "later");
  CHECK(architecture_refusal(8, 0, "80 90") == "");
  CHECK(architecture_refusal(8, 9, "80-real") == "");
  CHECK(architecture_refusal(8, 0, "86-real") != "");
  CHECK(architecture_refusal(9, 0, "80-real") != "");
  CHECK(architecture_refusal(12, 0, "90") == "");
  CHECK(architecture_refusal(12, 0, "90-real") ==
        "compiled for sm_90, this card is sm_120: rebuild with -DCMAKE_CUDA_ARCHITECTURES=120");
  CHECK(architecture_refusal(10, 0, "80-virtual 90-real") == "");
  CHECK(architecture_refusal(8, 0, "90-virtual") ==
        "compiled for compute_90, this card is sm_80: rebuild with -DCMAKE_CUDA_ARCHITECTURES=80");
  CHECK(architecture_refusal(9, 0, "90a-real") == "");
  CHECK(architecture_refusal(10, 0, "90a") ==
        "compiled for sm_90a, this card is sm_100: rebuild with -DCMAKE_CUDA_ARCHITECTURES=100");
  CHECK(architecture_refusal(10, 3, "100f") == "");
  CHECK(architecture_refusal(7, 5, "all") == "");
  CHECK(architecture_refusal(9, 0, "") == "");
#ifdef MACGRAD_CUDA_EMULATED
  CHECK(cuda_status().usable);
  emulation::properties().major = 7;
  emulation::properties().minor = 5;
  const CudaStatus status = cuda_status();
  emulation::properties().major = 9;
  emulation::properties().minor = 0;
  CHECK_FALSE(status.usable);
  CHECK(status.reason.find("compiled for sm_90, this card is sm_75") == 0);
#endif
}

/// The card with this much shared memory per block, while alive.
class CardWith {
 public:
  explicit CardWith(size_t shared_bytes) : card_(cuda::card()) {
    cuda::Card other = card_;
    other.shared_bytes = shared_bytes;
    cuda::set_card(other);
    limit_emulator(shared_bytes);
  }
  ~CardWith() {
    cuda::set_card(card_);
    limit_emulator(card_.shared_bytes);
  }
  CardWith(const CardWith&) = delete;
  CardWith& operator=(const CardWith&) = delete;

 private:
  static void limit_emulator([[maybe_unused]] size_t bytes) {
#ifdef MACGRAD_CUDA_EMULATED
    emulation::properties().shared_bytes = bytes;
#endif
  }
  cuda::Card card_;
};

struct MathModeScope {
  explicit MathModeScope(cuda::MathMode mode) { cuda::set_math_mode(mode); }
  ~MathModeScope() { cuda::set_math_mode(cuda::MathMode::exact); }
};

template <class F>
std::string failure_of(F&& f) {
  try {
    f();
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

/// Whether this card has as much as the card that a test wants to see: a real one may have less.
bool has_shared_memory(int kibibytes) {
  return size_t{1024} * static_cast<size_t>(kibibytes) <= cuda::card().shared_bytes;
}

struct Shapes {
  int64_t d, dv;
};
constexpr int64_t kLength = 3, kKeys = 5;  // some keys lie before all queries

/// Operands of attention.
struct Operands {
  Tensor q, k, v, grad, out, dq, dk, dv;
  Tensor statistics, den;  // kept by softmax attention and by RMFA

  Operands(const Shapes& s, DType dtype) {
    const auto values = [&](int64_t n, int64_t width, uint32_t draw) {
      return exact_values({1, 1, n, width}, draw, dtype).to(kGpu);
    };
    q = values(kLength, s.d, 1), k = values(kKeys, s.d, 2), v = values(kKeys, s.dv, 3);
    grad = values(kLength, s.dv, 4), out = values(kLength, s.dv, 5);
    dq = values(kLength, s.d, 6), dk = values(kKeys, s.d, 7), dv = values(kKeys, s.dv, 8);
    statistics = Tensor::full({1, 1, kLength, 2}, 1.0, DType::float32, kGpu);
    den = Tensor::full({1, 1, kLength}, 1.0, DType::float32, kGpu);
  }
};

/// One pass of an op: what `supports` answers, and the call.
struct Pass {
  std::string name;
  Support support;
  std::function<void()> call;
};

std::vector<Pass> attention_passes(const Shapes& s, DType dtype, bool causal) {
  const auto x = std::make_shared<Operands>(s, dtype);
  const SoftmaxAttentionArgs args{.scale = 0.5, .causal = causal, .dropout = 0, .key = {}};
  const Tensor none;
  return {
      {"softmax attention forward",
       kernels::softmax_attention_forward.supports(
           kGpu,
           {.q = x->q, .k = x->k, .v = x->v, .key_valid = none, .query_valid = none, .args = args}),
       [=] {
         kernels::softmax_attention_forward({.in = {.q = x->q,
                                                    .k = x->k,
                                                    .v = x->v,
                                                    .key_valid = none,
                                                    .query_valid = none,
                                                    .args = args},
                                             .out = x->out,
                                             .statistics = x->statistics});
       }},
      {"softmax attention backward",
       kernels::softmax_attention_backward.supports(
           kGpu,
           {.q = x->q, .k = x->k, .v = x->v, .key_valid = none, .query_valid = none, .args = args}),
       [=] {
         kernels::softmax_attention_backward({.in = {.q = x->q,
                                                     .k = x->k,
                                                     .v = x->v,
                                                     .key_valid = none,
                                                     .query_valid = none,
                                                     .args = args},
                                              .out = x->out,
                                              .statistics = x->statistics,
                                              .grad = x->grad,
                                              .dq = x->dq,
                                              .dk = x->dk,
                                              .dv = x->dv});
       }}};
}

std::vector<Pass> rmfa_passes(const Shapes& s, DType dtype, bool causal) {
  const auto x = std::make_shared<Operands>(s, dtype);
  RmfaArgs args;
  args.levels = {3, 1};
  args.constant = 1;
  args.linear = 0.5;
  args.causal = causal;
  const Tensor omega = exact_signs({s.d, 4}, 9, dtype).to(kGpu);
  const Tensor weight = exact_values({3}, 10, dtype).to(kGpu);
  const Tensor seen = Tensor::empty({4}, DType::float64, kGpu);
  const Tensor none;
  const auto with_operands = [=](const auto& f) {
    return f(RmfaOperands{.q = x->q,
                          .k = x->k,
                          .v = x->v,
                          .key_valid = none,
                          .query_valid = none,
                          .omega = omega,
                          .weight = weight,
                          .args = args});
  };
  const auto supports = [&](const auto& slot) {
    return with_operands([&](const RmfaOperands& in) { return slot.supports(kGpu, in); });
  };
  return {{"rmfa forward", supports(kernels::rmfa_forward),
           [=] {
             with_operands([&](const RmfaOperands& in) {
               kernels::rmfa_forward({.in = in, .out = x->out, .den = x->den, .stats = seen});
             });
           }},
          {"rmfa backward", supports(kernels::rmfa_backward), [=] {
             with_operands([&](const RmfaOperands& in) {
               kernels::rmfa_backward({.in = in,
                                       .out = x->out,
                                       .den = x->den,
                                       .grad = x->grad,
                                       .dq = x->dq,
                                       .dk = x->dk,
                                       .dv = x->dv});
             });
           }}};
}

std::vector<Pass> linear_passes(const Shapes& s, DType dtype, bool causal) {
  const auto x = std::make_shared<Operands>(s, dtype);
  const Tensor sums = Tensor::full({1, 1, kLength, 3}, 1.0, DType::float64, kGpu);
  const Tensor seen = Tensor::empty({4}, DType::float64, kGpu), none;
  static const LinearAttentionArgs args{.constant = 1.0};
  const auto with_operands = [=](const auto& f) {
    return f(LinearAttentionOperands{.phi_q = x->q,
                                     .phi_k = x->k,
                                     .v = x->v,
                                     .log_weight = none,
                                     .key_valid = none,
                                     .query_valid = none,
                                     .args = args,
                                     .causal = causal});
  };
  const auto supports = [&](const auto& slot) {
    return with_operands(
        [&](const LinearAttentionOperands& in) { return slot.supports(kGpu, in); });
  };
  return {{"linear attention forward", supports(kernels::linear_attention_forward),
           [=] {
             with_operands([&](const LinearAttentionOperands& in) {
               kernels::linear_attention_forward(
                   {.in = in, .out = x->out, .sums = sums, .stats = seen});
             });
           }},
          {"linear attention backward", supports(kernels::linear_attention_backward), [=] {
             with_operands([&](const LinearAttentionOperands& in) {
               kernels::linear_attention_backward({.in = in,
                                                   .out = x->out,
                                                   .sums = sums,
                                                   .grad = x->grad,
                                                   .dphi_q = x->dq,
                                                   .dphi_k = x->dk,
                                                   .dv = x->dv,
                                                   .dlog_weight = none});
             });
           }}};
}

TEST_CASE("supports accepts a call exactly when its launches go through, on every card") {
  int accepted = 0, refused = 0;
  const auto check = [&](const Pass& pass) {
    const std::string failure = failure_of(pass.call);
    CHECK((failure == "") == pass.support.ok);
    CHECK((failure == "" || failure.find("bytes of shared memory per block") != std::string::npos));
    (pass.support.ok ? accepted : refused)++;
  };
  for (const int kibibytes : {99, 163, 227}) {
    if (!has_shared_memory(kibibytes)) continue;
    const CardWith card(size_t{1024} * static_cast<size_t>(kibibytes));
    for (const DType dtype : {DType::float32, DType::float64})
      for (const bool causal : {false, true})
        for (const Pass& pass : linear_passes({65, 130}, dtype, causal)) {
          INFO(kibibytes, " KiB, ", pass.name, " ", std::string(name(dtype)), " causal ", causal);
          CHECK(pass.support.ok == (dtype == DType::float32 || kibibytes > 99));
          check(pass);
        }
    for (const auto mode : {cuda::MathMode::exact, cuda::MathMode::tf32, cuda::MathMode::bf16}) {
      const MathModeScope scope(mode);
      for (const DType dtype : {DType::float32, DType::bfloat16}) {
        if (dtype == DType::bfloat16 && mode != cuda::MathMode::exact) continue;  // the same
        for (const Shapes& s : {Shapes{20, 32}, Shapes{64, 64}, Shapes{65, 8}, Shapes{16, 128}}) {
          for (const bool causal : {false, true}) {
            for (const auto& passes :
                 {attention_passes(s, dtype, causal), rmfa_passes(s, dtype, causal)}) {
              for (const Pass& pass : passes) {
                INFO(kibibytes, " KiB, ", pass.name, " ", std::string(name(dtype)), " mode ",
                     static_cast<int>(mode), " d ", s.d, " dv ", s.dv, " causal ", causal);
                check(pass);
              }
            }
          }
        }
      }
    }
  }
  if (!has_shared_memory(227)) return;
  CHECK(accepted > 100);
  CHECK(refused > 80);
}

TEST_CASE("a fused op whose backward pass does not fit runs its composite when it records") {
  if (!has_shared_memory(227)) return;
  // d = 128: the forward kernels of RMFA fit 163 KiB, the backward kernels do not.
  const CardWith card(163 << 10);
  const CompositesAllowed allowed;
  RmfaArgs args;
  args.levels = {3, 1};
  args.constant = 1;
  const Operands x({128, 16}, DType::float32);
  const Tensor omega = exact_signs({128, 4}, 9, DType::float32).to(kGpu);
  const Tensor weight = exact_values({3}, 10, DType::float32).to(kGpu);
  const Variable q(x.q, true), k(x.k), v(x.v);
  const auto call = [&] { return rmfa(q, k, v, {}, omega, weight, args); };
  const Variable recorded = call();
  CHECK(recorded.node()->op != "rmfa");
  const Tensor gradient = grad({sum(recorded)}, {q})[0].value();
  const Tensor expected = [&] {
    const Unfused composite;
    return grad({sum(call())}, {q})[0].value();
  }();
  CHECK(difference(gradient.to(kCpu), expected.to(kCpu)) == 0);
  {
    const NoGrad inference;
    const Tensor none;
    CHECK(kernels::rmfa_forward
              .supports(kGpu, {.q = x.q,
                               .k = x.k,
                               .v = x.v,
                               .key_valid = none,
                               .query_valid = none,
                               .omega = omega,
                               .weight = weight,
                               .args = args})
              .ok);
    CHECK(difference(call().value().to(kCpu), recorded.value().to(kCpu)) < 1e-4);
  }
  const CardWith larger(227 << 10);
  CHECK(call().node()->op == "rmfa");
}

}  // namespace
}  // namespace macgrad::testing
