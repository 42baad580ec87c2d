// Adam and the sum of squares of the CUDA backend against the CPU's over lists of tensors: sizes,
// dtypes together, alignment, more tensors than one table holds, steps read from device memory.
#include <doctest/doctest.h>

#include <cmath>
#include <limits>

#include "macgrad/core/kernels/elementwise.h"
#include "macgrad/core/kernels/optimizer.h"
#include "macgrad/cuda/step_values.h"
#include "macgrad/tests/cuda/device.h"
#include "macgrad/tests/cuda/orders.h"
#include "macgrad/tests/op_cases.h"

namespace macgrad::testing {
namespace {

// What one optimizer works on; every list has a tensor a parameter.
struct Lists {
  Tensors params, grads, first, second;
  Tensors masters = {};
};

Lists lists_of(const std::vector<int64_t>& sizes, const std::vector<DType>& dtypes) {
  Lists l;
  for (size_t i = 0; i < sizes.size(); ++i) {
    const Shape shape{sizes[i]};
    const DType dtype = dtypes[i % dtypes.size()];
    const auto draw = static_cast<uint32_t>(4 * i);
    l.params.push_back(exact_values(shape, draw, dtype));
    l.grads.push_back(exact_values(shape, draw + 1, dtype));
    l.first.push_back(exact_values(shape, draw + 2, dtype));
    // Second moments are positive.
    const Tensor positive = Tensor::empty(shape, dtype);
    kernels::abs(exact_values(shape, draw + 3, dtype), positive);
    l.second.push_back(positive);
  }
  return l;
}

// bfloat16 parameters and gradients with float32 masters and moments.
Lists lists_with_masters(const std::vector<int64_t>& sizes) {
  Lists l = lists_of(sizes, {DType::float32});
  l.masters = l.params;
  for (Tensors* list : {&l.params, &l.grads})
    for (Tensor& t : *list) t = t.to(DType::bfloat16);
  return l;
}

// A copy on `device`; where `off` is set, at addresses one element off the start of a block.
Lists copy_of(const Lists& l, Device device, bool off = false) {
  const auto copies = [&](const Tensors& list) {
    Tensors result;
    for (const Tensor& t : list) {
      const int64_t n = t.numel();
      const Tensor memory = Tensor::empty({n + 1}, t.dtype(), device);
      result.push_back(memory.slice(0, off ? 1 : 0, off ? n + 1 : n));
      result.back().copy_from(t.to(device));
    }
    return result;
  };
  return {copies(l.params), copies(l.grads), copies(l.first), copies(l.second), copies(l.masters)};
}

void run(const Lists& l, const AdamArgs& args) {
  kernels::adam(l.params, l.masters, l.grads, l.first, l.second, args);
}

void check_near(const Lists& got, const Lists& expected) {
  const auto compare = [](const Tensors& a, const Tensors& b) {
    for (size_t i = 0; i < a.size(); ++i) {
      CAPTURE(i);
      const DType dtype = b[i].dtype();
      CHECK(difference(a[i].to(kCpu), b[i]) <= (dtype == DType::float64   ? 1e-14
                                                : dtype == DType::float32 ? 5e-7
                                                                          : 8e-3));
    }
  };
  compare(got.params, expected.params);
  compare(got.first, expected.first);
  compare(got.second, expected.second);
  compare(got.masters, expected.masters);
}

const std::vector<DType> kMixed = {DType::float32, DType::bfloat16, DType::float64};

TEST_CASE("cuda adam: sizes, dtypes in one list, alignment, both kinds of decay") {
  const Lists start = lists_of({1, 5, 2048, 2049, 0, 5000, 33, 4100, 1030}, kMixed);
  for (const bool decoupled : {true, false}) {
    AdamArgs args{.lr = 0.01, .beta1 = 0.9, .beta2 = 0.98, .eps = 1e-9, .weight_decay = 0.1};
    args.decoupled = decoupled;
    args.grad_scale = 0.25;
    const Lists expected = copy_of(start, kCpu);
    const Lists aligned = copy_of(start, kGpu), off = copy_of(start, kGpu, true);
    for (args.step = 1; args.step < 4; ++args.step) {
      run(expected, args);
      run(aligned, args);
      run(off, args);
    }
    check_near(aligned, expected);
    check_near(off, expected);
    for (size_t i = 0; i < start.params.size(); ++i)
      CHECK(same_bits(aligned.params[i], off.params[i]));
  }
  Lists mixed = copy_of(lists_of({3}, {DType::float32}), kGpu);
  mixed.first[0] = mixed.first[0].to(DType::float64);
  CHECK_THROWS_WITH(run(mixed, {}),
                    "[adam] parameter 0 is float32, its gradient float32, its moments float64 and "
                    "float32; the gradient must be float32, moments float32");
}

TEST_CASE("cuda adam with masters: one launch, sizes, alignment, parameters are masters rounded") {
  const Lists start = lists_with_masters({1, 5, 2048, 2049, 0, 5000, 33, 4100, 1030});
  for (const bool decoupled : {true, false}) {
    AdamArgs args{.lr = 0.01, .beta1 = 0.9, .beta2 = 0.98, .eps = 1e-9, .weight_decay = 0.1};
    args.decoupled = decoupled;
    args.grad_scale = 0.25;
    const Lists expected = copy_of(start, kCpu);
    const Lists aligned = copy_of(start, kGpu), off = copy_of(start, kGpu, true);
    for (args.step = 1; args.step < 4; ++args.step) {
      run(expected, args);
#ifdef MACGRAD_CUDA_EMULATED
      const uint64_t before = emulation::launches();
#endif
      run(aligned, args);
#ifdef MACGRAD_CUDA_EMULATED
      CHECK(emulation::launches() - before == 1);
#endif
      run(off, args);
    }
    check_near(aligned, expected);
    check_near(off, expected);
    for (size_t i = 0; i < start.params.size(); ++i) {
      CHECK(same_bits(aligned.masters[i], off.masters[i]));
      CHECK(same_bits(aligned.params[i], aligned.masters[i].to(DType::bfloat16)));
      CHECK(same_bits(off.params[i], aligned.params[i]));
    }
  }
  Lists wrong = copy_of(lists_with_masters({3}), kGpu);
  wrong.masters[0] = wrong.params[0];
  CHECK_THROWS_WITH(run(wrong, {}),
                    "[adam] parameter 0 is bfloat16, its master bfloat16; masters are float32 and "
                    "belong to bfloat16 parameters");
}

TEST_CASE("cuda adam: parameters, or masters, below the bound are set to it") {
  AdamArgs args{.lr = 0.01, .beta1 = 0.9, .beta2 = 0.98, .eps = 1e-9, .weight_decay = 0.1};
  args.lower_bound = 0.1;
  for (const Lists& start : {lists_of({5, 2048, 2049}, kMixed), lists_with_masters({5, 2048})}) {
    const Lists free = copy_of(start, kGpu), bounded = copy_of(start, kGpu);
    run(bounded, args);
    AdamArgs without = args;
    without.lower_bound = AdamArgs{}.lower_bound;
    run(free, without);
    for (const bool masters : {false, true}) {
      const Tensors &got = masters ? bounded.masters : bounded.params,
                    &plain = masters ? free.masters : free.params;
      for (size_t i = 0; i < got.size(); ++i) {
        const Tensor bound = Tensor::full(got[i].shape(), 0.1, got[i].dtype());
        const Tensor expected = Tensor::empty(got[i].shape(), got[i].dtype());
        kernels::maximum(plain[i].to(kCpu), bound, expected);
        CHECK(same_bits(got[i], expected));
        CHECK(difference(plain[i].to(kCpu), expected) > 0);
      }
    }
  }
}

// `count` tensors of one to seven elements, next to each other in memory.
Tensors pieces_of(const Tensor& flat, size_t count) {
  Tensors result;
  int64_t begin = 0;
  for (size_t i = 0; i < count; ++i) {
    const auto n = static_cast<int64_t>(1 + i % 7);
    result.push_back(flat.slice(0, begin, begin + n));
    begin += n;
  }
  return result;
}

TEST_CASE("cuda adam and sum_of_squares: more tensors than a small and a large table hold") {
  for (const size_t count : {size_t{200}, size_t{800}}) {
    const Lists whole = lists_of({4 * static_cast<int64_t>(count)}, {DType::float32});
    const auto cut = [&](const Lists& l) {
      return Lists{pieces_of(l.params[0], count), pieces_of(l.grads[0], count),
                   pieces_of(l.first[0], count), pieces_of(l.second[0], count)};
    };
    const Lists there = copy_of(whole, kGpu);
#ifdef MACGRAD_CUDA_EMULATED
    const uint64_t before = emulation::launches();
    run(cut(there), {});
    CHECK(emulation::launches() - before == (count == 200 ? 1 : 2));
#else
    run(cut(there), {});
#endif
    run(cut(whole), {});
    check_near(there, whole);
    const Tensor sum = Tensor::empty({1}, DType::float64);
    const Tensor got = Tensor::empty({1}, DType::float64, kGpu);
    kernels::sum_of_squares(cut(whole).grads, sum);
    kernels::sum_of_squares(cut(there).grads, got);
    CHECK(same_bits(got, sum));
  }
}

TEST_CASE("cuda sum_of_squares: dtypes together, exact, in any order of threads") {
  const Lists l = lists_of({1, 4096, 0, 9000, 4097, 77, 12345}, kMixed);
  const Lists there = copy_of(l, kGpu), off = copy_of(l, kGpu, true);
  const auto squares = [](const Tensors& list, Device device) {
    const Tensor total = Tensor::empty({1}, DType::float64, device);
    kernels::sum_of_squares(list, total);
    return total;
  };
  const Tensor expected = squares(l.params, kCpu);
  CHECK(same_bits(same_in_any_order([&] { return squares(there.params, kGpu); }), expected));
  CHECK(same_bits(squares(off.params, kGpu), expected));
  CHECK(squares({Tensor::full({3}, std::nan(""), DType::float32, kGpu)}, kGpu).item() !=
        squares({Tensor::zeros({3}, DType::float32, kGpu)}, kGpu).item());
  CHECK_THROWS_WITH(squares({Tensor::zeros({3}, DType::int64, kGpu)}, kGpu),
                    "[sum_of_squares] needs floating tensors, got int64");
}

void run(const Lists& l, const SgdArgs& args, bool momentum) {
  kernels::sgd(l.params, l.masters, l.grads, momentum ? l.first : Tensors{}, args);
}

TEST_CASE("cuda sgd: sizes, dtypes in one list, masters, alignment, with and without momentum") {
  for (const bool masters : {false, true}) {
    const std::vector<int64_t> sizes{1, 5, 2048, 2049, 0, 5000, 33, 4100, 1030};
    const Lists start = masters ? lists_with_masters(sizes) : lists_of(sizes, kMixed);
    for (const bool momentum : {true, false}) {
      SgdArgs args{.lr = 0.01, .momentum = 0.9, .weight_decay = 0.1, .grad_scale = 0.25};
      args.clip_value = 0.125;
      const Lists expected = copy_of(start, kCpu);
      const Lists aligned = copy_of(start, kGpu), off = copy_of(start, kGpu, true);
      for (int step = 0; step < 3; ++step)
        for (const Lists* l : {&expected, &aligned, &off}) run(*l, args, momentum);
      check_near(aligned, expected);
      check_near(off, expected);
      CHECK(difference(expected.params[5], start.params[5]) > 0);
      // Read from device memory.
      const Lists live = copy_of(start, kGpu);
      SgdArgs reading = args;
      reading.lr = 2.0;
      reading.grad_scale = 0.5;
      reading.momentum = 0.0;
      reading.step = kLiveUpdate;
      cuda::set_step_values({.lr = 0.005, .grad_scale = 0.5, .momentum = 0.9});
      for (int step = 0; step < 3; ++step) run(live, reading, momentum);
      for (size_t i = 0; i < start.params.size(); ++i)
        CHECK(same_bits(live.params[i], aligned.params[i]));
      // Gradients that are not finite change nothing.
      const Tensor total =
          Tensor::full({1}, std::numeric_limits<double>::infinity(), DType::float64, kGpu);
      cuda::clip_live_gradients(total, 0.0);
      run(live, reading, momentum);
      for (size_t i = 0; i < start.params.size(); ++i)
        CHECK(same_bits(live.params[i], aligned.params[i]));
    }
  }
  const Lists mixed = copy_of(lists_of({3}, {DType::float32}), kGpu);
  CHECK_THROWS_WITH(kernels::sgd(mixed.params, Tensors{}, mixed.grads,
                                 Tensors{mixed.first[0].to(DType::float64)}, SgdArgs{}),
                    "[sgd] parameter 0 is float32, its gradient float32, its moments float64; the "
                    "gradient must be float32, moments float32");
}

void check_live_steps(const Lists& start) {
  AdamArgs args{.lr = 0.02, .beta1 = 0.8, .weight_decay = 0.01, .clip_value = 0.25};
  // As one over a number of tokens: a norm times it is not exact.
  args.grad_scale = 1.0 / 3;
  args.step = 4;
  AdamArgs live = args;
  live.lr = 2.0;  // a group's factor
  live.grad_scale = 1.0;
  live.beta1 = 0.5;  // that of the step values holds
  live.step = kLiveUpdate;
  const Lists given = copy_of(start, kGpu), read = copy_of(start, kGpu);
  cuda::set_step_values({.update = 4, .lr = 0.01, .grad_scale = 1.0 / 3, .momentum = 0.8});
  run(given, args);
  run(read, live);
  for (size_t i = 0; i < start.params.size(); ++i)
    CHECK(same_bits(given.params[i], read.params[i]));

  // Clipped to a norm of 1.
  const Tensor total = Tensor::empty({1}, DType::float64, kGpu);
  kernels::sum_of_squares(read.grads, total);
  args.grad_scale = 1.0 / std::sqrt(total.item());
  const Lists again = copy_of(read, kCpu);
  cuda::set_step_values({.update = 4, .lr = 0.01, .grad_scale = 1.0 / 3, .momentum = 0.8});
  cuda::clip_live_gradients(total, 1.0);
  run(read, live);
  run(again, args);
  check_near(read, again);

  // Gradients that are not finite change nothing.
  const Lists kept = copy_of(read, kCpu);
  read.grads[0].fill(std::numeric_limits<double>::infinity());
  kernels::sum_of_squares(read.grads, total);
  cuda::set_step_values({.update = 5, .lr = 0.01, .momentum = 0.8});
  cuda::clip_live_gradients(total, 1.0);
  run(read, live);
  for (size_t i = 0; i < start.params.size(); ++i) {
    CHECK(same_bits(read.params[i], kept.params[i]));
    CHECK(same_bits(read.second[i], kept.second[i]));
    if (!kept.masters.empty()) CHECK(same_bits(read.masters[i], kept.masters[i]));
  }
}

TEST_CASE("cuda adam: step, rate and scale from device memory, clipping there, a skipped step") {
  for (const Lists& start :
       {lists_of({70, 3000}, {DType::float32}), lists_with_masters({70, 3000})})
    check_live_steps(start);
}

}  // namespace
}  // namespace macgrad::testing
