// Rows of softmax attention and RMFA at the same sizes, lengths 200 to 4000, compared with each
// other, and the memory that RMFA takes beside its operands; softmax attention at the size of a
// translation batch.
#include <fmt/format.h>

#include <cmath>

#include "autograd/attention.h"
#include "autograd/engine.h"
#include "autograd/ops.h"
#include "core/kernels.h"
#include "experiments/bench/groups.h"
#include "nn/maclaurin_draw.h"

namespace macgrad::experiments {
namespace {

constexpr int64_t kBatch = 16, kHeads = 8, kDim = 64, kFeatures = 128;

struct Inputs {
  Variable q, k, v, grad;
};

Inputs make_inputs(int64_t batch, int64_t n) {
  Inputs in;
  uint32_t draw = 0;
  for (Variable* x : {&in.q, &in.k, &in.v, &in.grad}) {
    Tensor t = Tensor::empty({batch, kHeads, n, kDim});
    kernels::random_normal(t, DrawKey{7, 5, draw++, 0});
    *x = Variable(t);
  }
  for (Variable* x : {&in.q, &in.k})
    *x = pre_sbn(*x, Tensor(), SbnStatistics::row, 1e-12, nullptr).detach();
  return in;
}

using Attention = std::function<Variable(const Variable&, const Variable&, const Variable&)>;

void forward_and_backward(BenchTable& table, const std::string& name, const Inputs& in,
                          double gflop_forward, double gflop_backward, const Attention& f) {
  const std::string forward = name + " forward", both = name + " forward+backward";
  {
    const NoGrad off;
    table.run({.name = forward, .gflop = gflop_forward}, [&] { (void)f(in.q, in.k, in.v); });
  }
  const Variable q(in.q.value(), true), k(in.k.value(), true), v(in.v.value(), true);
  table.run({.name = both, .gflop = gflop_forward + gflop_backward}, [&] {
    (void)grad({f(q, k, v)}, {q, k, v}, {in.grad});
  });
}

// Largest memory while f runs, beside what lived before and what it returns.
double extra_bytes(const std::function<Variables()>& f) {
  const size_t before = memory_stats().current_bytes;
  reset_peak();
  const Variables kept = f();
  size_t results = 0;
  for (const Variable& v : kept) results += v.value().bytes();
  return static_cast<double>(memory_stats().peak_bytes) - static_cast<double>(before + results);
}

void rmfa_rows(BenchTable& table, const Inputs& in, int64_t n, const nn::FeatureDraw& draw) {
  RmfaArgs args;
  args.levels = draw.levels;
  args.constant = draw.constant;
  args.linear = draw.linear;
  const Attention attention = [&](const Variable& q, const Variable& k, const Variable& v) {
    return rmfa(q, k, v, AttentionMask{}, draw.omega, draw.weight, args);
  };
  // What the merged features need, as README.md in this folder counts it.
  const double tokens = static_cast<double>(kBatch * kHeads * n);
  const auto P = static_cast<double>(draw.projections());
  const auto M = static_cast<double>(draw.levels.empty() ? 0 : draw.levels[0]);
  const double gflop = 1e-9 * tokens * (4 * kDim * P + 4 * (M + 1) * (kDim + 1));
  const std::string name = fmt::format("rmfa D={} n={}", kFeatures, n);
  forward_and_backward(table, name, in, gflop, 2 * gflop, attention);
  const BenchRow* forward = table.find(name + " forward");
  const BenchRow* both = table.find(name + " forward+backward");
  const BenchRow* limit = table.find(kGemmLimit);
  if (forward && limit)
    table.note(name + " forward",
               fmt::format("{:.0f} % of the 1024^3 rate",
                           100 * (forward->gflop / forward->ms) / (limit->gflop / limit->ms)));
  if (forward && both) {
    const Variable q(in.q.value(), true), k(in.k.value(), true), v(in.v.value(), true);
    const double in_out = 4.0 * static_cast<double>(in.q.value().bytes());
    const double extra_forward = extra_bytes([&] {
      const NoGrad off;
      return Variables{attention(q, k, v)};
    });
    const double extra_both = extra_bytes([&] {
      return grad({attention(q, k, v)}, {q, k, v}, {in.grad});
    });
    // The output is alive during the backward pass and is one of the operands.
    const double extra_backward = extra_both - in_out / 4;
    table.note(name + " forward+backward",
               fmt::format("backward = {:.2f} x forward; memory beside inputs and outputs: forward "
                           "{:.1f} %, backward {:.1f} %",
                           both->ms / forward->ms - 1, 100 * extra_forward / in_out,
                           100 * extra_backward / (2 * in_out)));
  }
}

}  // namespace

void bench_attention(BenchTable& table) {
  const nn::DotProductKernel kernel = nn::dot_product_kernel("exp");
  nn::FeatureSettings settings;
  settings.features = kFeatures;
  settings.head_dim = kDim;
  const nn::FeatureDraw draw = nn::draw_features(kernel, settings, DrawKey{1, 2, 0, 0});
  const double scale = 1 / std::sqrt(static_cast<double>(kDim));
  for (int64_t n : {200, 500, 1000, 2000, 4000}) {
    const std::string softmax_name = fmt::format("softmax_attention n={}", n);
    const std::string rmfa_name = fmt::format("rmfa D={} n={}", kFeatures, n);
    if (!table.wants(softmax_name + " forward") &&
        !table.wants(softmax_name + " forward+backward") && !table.wants(rmfa_name + " forward") &&
        !table.wants(rmfa_name + " forward+backward"))
      continue;
    const Inputs in = make_inputs(kBatch, n);
    const double product =
        2e-9 * static_cast<double>(kBatch * kHeads) * static_cast<double>(n * n) * kDim;
    forward_and_backward(table, softmax_name, in, 2 * product, 5 * product,
                         [&](const Variable& q, const Variable& k, const Variable& v) {
                           return softmax_attention(q, k, v, AttentionMask{}, scale);
                         });
    rmfa_rows(table, in, n, draw);
    table.compare(rmfa_name + " forward", softmax_name + " forward");
    table.compare(rmfa_name + " forward+backward", softmax_name + " forward+backward");
  }
  // The size of translation: short sentences, many of them.
  const std::string small = "softmax_attention 128x8x20x64 causal";
  if (table.wants(small + " forward") || table.wants(small + " forward+backward")) {
    AttentionMask mask;
    mask.causal = true;
    forward_and_backward(table, small, make_inputs(128, 20), 0, 0,
                         [&](const Variable& q, const Variable& k, const Variable& v) {
                           return softmax_attention(q, k, v, mask, scale);
                         });
  }
}

}  // namespace macgrad::experiments
