// operator new that fails on request: giving memory back must not need any, and wherever an
// allocation fails the error can be caught and the library goes on.
#ifndef __SANITIZE_ADDRESS__  // which has an operator new of its own
#include <doctest/doctest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <cstdlib>
#include <limits>
#include <new>

#include "macgrad/autograd/attention.h"
#include "macgrad/autograd/engine.h"
#include "macgrad/autograd/linear_attention.h"
#include "macgrad/core/allocator.h"
#include "macgrad/core/cpu/parallel.h"
#include "macgrad/nn/attention_core.h"
#include "macgrad/nn/linear.h"
#include "macgrad/tests/op_cases.h"

namespace {
// Allocations of this thread that still succeed.
thread_local int64_t allowed = std::numeric_limits<int64_t>::max();
}  // namespace

void* operator new(size_t bytes) {
  void* p = allowed-- > 0 ? std::malloc(bytes) : nullptr;
  if (p == nullptr) throw std::bad_alloc();
  return p;
}
void operator delete(void* p) noexcept {
  std::free(p);
}
void operator delete(void* p, size_t) noexcept {
  std::free(p);
}

namespace macgrad::testing {
namespace {

class Allow {
 public:
  explicit Allow(int64_t count) { allowed = count; }
  ~Allow() { allowed = std::numeric_limits<int64_t>::max(); }
  Allow(const Allow&) = delete;
  Allow& operator=(const Allow&) = delete;
};

// Allocations of f, once what it keeps has been made.
template <class F>
int64_t allocations_of(F&& f) {
  f();
  const Allow any(std::numeric_limits<int64_t>::max() / 2);
  const int64_t before = allowed;
  f();
  return before - allowed;
}

TEST_CASE("a small fused op allocates little when nothing is recorded") {
  const Threads one(1);
  const NoGrad inference;
  const Variable q(Tensor::randn({2, 2, 4, 8}, 1)), k(Tensor::randn({2, 2, 4, 8}, 2)),
      v(Tensor::randn({2, 2, 4, 8}, 3));
  const Tensor omega = Tensor::randn({8, 6}, 4), weight = Tensor::randn({4}, 5);
  RmfaArgs args;
  args.levels = {4, 2};
  args.constant = 1.0;
  args.linear = 1.0;
  CHECK(allocations_of([&] { rmfa(q, k, v, {}, omega, weight, args); }) <= 30);
  CHECK(allocations_of([&] { linear_attention(q, k, v, {}, {}, {.log_features = true}); }) <= 30);
  CHECK(allocations_of([&] { softmax_attention(q, k, v, {}, 0.5); }) <= 30);
}

TEST_CASE("giving memory back needs no memory: tensors of many sizes") {
  std::vector<Tensor> tensors;
  for (int64_t n = 1; n < 3000; ++n) tensors.push_back(Tensor::empty({n % 700 + 1}));
  trim_cache();
  const Allow none(0);
  tensors.clear();
}

// In a process of its own, since private blocks are kept until the end.
TEST_CASE("giving memory back needs no memory: private blocks") {
  const pid_t child = ::fork();
  if (child == 0) {
    std::vector<Tensor> tensors;
    use_private_memory(kCpu, true);
    for (int64_t n = 0; n < 100; ++n) tensors.push_back(Tensor::empty({5000}));
    use_private_memory(kCpu, false);
    const Allow none(0);
    tensors.clear();
    ::_exit(0);
  }
  int status = 0;
  REQUIRE(::waitpid(child, &status, 0) == child);
  CHECK(status == 0);
}

TEST_CASE("giving memory back needs no memory: a deep graph, and one that branches") {
  const Threads one(1);
  Variable deep(Tensor::full({3}, 1.0), true);
  for (int i = 0; i < 100'000; ++i) deep = deep + 1.0;
  Variable wide(Tensor::full({3}, 1.0), true);
  for (int i = 0; i < 1000; ++i) wide = wide * wide + softmax(wide, 0) * sin(wide);
  const Allow none(0);
  deep = Variable();
  wide = Variable();
}

TEST_CASE("giving memory back needs no memory: leaving evaluation mode") {
  nn::ModelRandom random;
  nn::Linear model(nullptr, "linear", 3, 4, random);
  std::optional<nn::EvalScope> scope;
  scope.emplace(model);
  const Allow none(0);
  scope.reset();
}

// The k-th allocation fails, for every k until none does.
TEST_CASE("an allocation that fails anywhere in a step is an error that can be caught") {
  const Threads one(1);
  const Variable x(exact_values({2, 2, 6, 4}, 1, DType::float32), true);
  const Variable w(exact_values({4}, 2, DType::float32), true);
  const auto step = [&] {
    const Scope scope("step");
    const Variable h = pre_sbn(layer_norm(x, w, w, 1e-5), {}, SbnStatistics::batch, 1e-5, nullptr);
    const Variable y = softmax_attention(h, h, x, {}, 0.5);
    const Tensor target = Tensor::full({24}, 1, DType::int64);
    const Variable loss =
        cross_entropy(reshape(y, {24, 4}), target, 0.1) + logsumexp(reshape(y, {96}), 0);
    return grad({loss}, {x, w})[0].value().to_vector<double>();
  };
  const std::vector<double> expected = step();
  int64_t failures = 0;
  for (bool done = false; !done; ++failures) {
    try {
      const Allow some(failures);
      const auto got = step();
      done = true;
      allowed = std::numeric_limits<int64_t>::max();
      CHECK(got == expected);
    } catch (const std::bad_alloc&) {
    } catch (const Error&) {  // what a failed allocation was turned into
    }
  }
  CHECK(failures > 500);
  CHECK(step() == expected);
}

TEST_CASE("what a thread of a parallel region throws reaches the caller") {
  const Threads several(3);
  const auto fails_at = [](int64_t bad) {
    return [bad](int64_t i) {
      if (i == bad) throw std::bad_alloc();
    };
  };
  for (const int64_t bad : {0, 17, 99}) {
    CHECK_THROWS_AS(cpu::parallel_tasks(100, fails_at(bad)), std::bad_alloc);
    CHECK_THROWS_AS(
        cpu::parallel_blocks(100, 1, [&](int64_t begin, int64_t) { fails_at(bad)(begin); }),
        std::bad_alloc);
  }
  int64_t sum = 0;
  cpu::parallel_tasks(10, [&](int64_t i) {
#pragma omp atomic
    sum += i;
  });
  CHECK(sum == 45);
}

}  // namespace
}  // namespace macgrad::testing
#endif
