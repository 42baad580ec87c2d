// Rows of softmax attention, RMFA and other feature maps at the same sizes, lengths 200 to 4000
// (16,000 on a GPU), compared with each other, and the memory that they take besides their
// operands; linear attention on as many given features, compared with RMFA; softmax attention at
// the size of a translation batch.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "macgrad/autograd/engine.h"
#include "macgrad/autograd/linear_attention.h"
#include "macgrad/autograd/ops.h"
#include "macgrad/core/generator.h"
#include "macgrad/core/kernels/linear_attention.h"
#include "macgrad/core/kernels/rmfa.h"
#include "macgrad/core/kernels/sbn.h"
#include "macgrad/experiments/bench/groups.h"
#include "macgrad/nn/attention_settings.h"
#include "macgrad/nn/maclaurin_draw.h"

namespace macgrad::experiments {
namespace {

struct Inputs {
  Variable q, k, v, grad;
};

using Attention = std::function<Variable(const Variable&, const Variable&, const Variable&)>;

// The rows of one precision.
class AttentionRows {
 public:
  AttentionRows(BenchTable& table, const Precision& precision)
      : AttentionRows(table, precision, table.place().sizes.head_dim, "") {}
  /// `of_size` is part of the names of rows of another head dimension.
  AttentionRows(BenchTable& table, const Precision& precision, int64_t head_dim,
                std::string of_size)
      : table_(table),
        sizes_(with_head_dim(table.place().sizes, head_dim)),
        of_size_(std::move(of_size)),
        precision_(precision) {
    const nn::DotProductKernel kernel = nn::dot_product_kernel("exp");
    nn::FeatureSettings settings;
    settings.features = sizes_.features;
    settings.head_dim = sizes_.head_dim;
    draw_ = nn::draw_features(kernel, settings, DrawKey{1, 2, 0, 0}, precision.dtype);
    draw_.omega = draw_.omega.to(table.place().device);
    draw_.weight = draw_.weight.to(table.place().device);
    for (const auto& [map, matrix] : {std::pair{"positive", "orf"}, {"trig", "iid"}}) {
      nn::AttentionSettings s;
      s.map = nn::feature_map(map);
      s.matrix = nn::projection_matrix(matrix);
      s.features = sizes_.features;
      s.unit_rows_given = true;
      maps_.emplace_back(
          fmt::format("{}/{}", map, matrix),
          nn::make_feature_map(nullptr, "map", s,
                               {nn::AttentionRole::self, sizes_.heads, sizes_.head_dim, &random_},
                               &scale_));
    }
  }

  // Both attentions at length n.
  void length(int64_t n, bool causal) const {
    const char* kind = causal ? " causal" : "";
    const std::string softmax_name = fmt::format("softmax_attention{}{} n={}", of_size_, kind, n);
    const std::string size = fmt::format("{}{} D={} n={}", of_size_, kind, sizes_.features, n);
    const std::string rmfa_name = "rmfa" + size;
    std::vector<std::pair<std::string, nn::FeatureMap*>> maps;  // rows of other feature maps
    for (const auto& [name, map] : maps_) maps.emplace_back(name + size, map.get());
    AttentionMask mask;
    mask.causal = causal;
    const double product = 2e-9 * static_cast<double>(sizes_.batch * sizes_.heads) *
                           static_cast<double>(n * n) * static_cast<double>(sizes_.head_dim) *
                           (causal ? 0.5 : 1.0);
    const auto compare = [&](const std::string& name, const std::string& other) {
      for (const char* part : {"forward", "forward+backward"})
        table_.compare(part_name(name, part), part_name(other, part));
    };
    if (wants_either(softmax_name) || wants_either(rmfa_name) ||
        std::any_of(maps.begin(), maps.end(),
                    [&](const auto& map) { return wants_either(map.first); })) {
      const Inputs in = make_inputs(sizes_.batch, n);
      forward_and_backward(softmax_name, in, 2 * product, 5 * product, softmax_of(mask));
      rmfa_rows(rmfa_name, in, n, mask);
      compare(rmfa_name, softmax_name);
      for (const auto& [name, map] : maps) {
        const Attention attention = [&, map = map](const Variable& q, const Variable& k,
                                                   const Variable& v) {
          return map->attend(q, k, v, Variable(), mask, 0.0, nullptr);
        };
        forward_and_backward(name, in, 0, 0, attention);
        note_memory(name, in, attention);
        compare(name, rmfa_name);
      }
    }
    for (const bool log : {false, true}) linear_rows(n, mask, log, rmfa_name);
  }

  // The size of translation: short sentences, many of them.
  void short_sentences() const {
    const std::string name = fmt::format("softmax_attention {}x{}x{}x{} causal", sizes_.short_batch,
                                         sizes_.heads, sizes_.short_length, sizes_.head_dim);
    if (!wants_either(name)) return;
    AttentionMask mask;
    mask.causal = true;
    forward_and_backward(name, make_inputs(sizes_.short_batch, sizes_.short_length), 0, 0,
                         softmax_of(mask));
  }

 private:
  static BenchSizes with_head_dim(BenchSizes sizes, int64_t head_dim) {
    sizes.head_dim = head_dim;
    return sizes;
  }
  // The precision stands last: "rmfa D=128 n=200 forward tf32".
  std::string part_name(const std::string& name, const std::string& part) const {
    return row_name(name + " " + part, precision_);
  }
  bool wants_either(const std::string& name) const {
    return table_.wants(part_name(name, "forward")) ||
           table_.wants(part_name(name, "forward+backward"));
  }

  // q and k of `columns`, v and the cotangent of head_dim columns.
  Inputs normal_inputs(int64_t batch, int64_t n, int64_t columns) const {
    Inputs in;
    Generator generator(7, 5);
    for (Variable* x : {&in.q, &in.k, &in.v, &in.grad}) {
      const bool side = x == &in.q || x == &in.k;
      *x = Variable(Tensor::randn({batch, sizes_.heads, n, side ? columns : sizes_.head_dim},
                                  generator, precision_.dtype, table_.place().device));
    }
    return in;
  }
  Inputs make_inputs(int64_t batch, int64_t n) const {
    Inputs in = normal_inputs(batch, n, sizes_.head_dim);
    for (Variable* x : {&in.q, &in.k})
      *x = pre_sbn(*x, Tensor(), SbnStatistics::row, 1e-12, nullptr).detach();
    return in;
  }

  Attention softmax_of(const AttentionMask& mask) const {
    const double scale = 1 / std::sqrt(static_cast<double>(sizes_.head_dim));
    return [mask, scale](const Variable& q, const Variable& k, const Variable& v) {
      return softmax_attention(q, k, v, mask, scale);
    };
  }

  void forward_and_backward(const std::string& name, const Inputs& in, double gflop_forward,
                            double gflop_backward, const Attention& f) const {
    // Read q, k, v, write the output; back: those and the cotangent read, dq, dk, dv written.
    double gbyte = 0;
    for (const Variable* x : {&in.q, &in.k, &in.v, &in.grad})
      gbyte += 1e-9 * static_cast<double>(x->value().bytes());
    {
      const NoGrad off;
      table_.run({.name = part_name(name, "forward"),
                  .precision = precision_.name,
                  .gflop = gflop_forward,
                  .gbyte = gbyte},
                 [&] { (void)f(in.q, in.k, in.v); });
    }
    const Variable q(in.q.value(), true), k(in.k.value(), true), v(in.v.value(), true);
    table_.run({.name = part_name(name, "forward+backward"),
                .precision = precision_.name,
                .gflop = gflop_forward + gflop_backward,
                .gbyte = 3 * gbyte},
               [&] {
                 (void)grad({f(q, k, v)}, {q, k, v}, {in.grad});
               });
  }

  // Largest memory while f runs, in addition to what lived before and what it returns.
  double extra_bytes(const std::function<Variables()>& f) const {
    const Device device = table_.place().device;
    const size_t before = memory_stats(device).current_bytes;
    reset_peak(device);
    const Variables kept = f();
    size_t results = 0;
    for (const Variable& v : kept) results += v.value().bytes();
    return static_cast<double>(memory_stats(device).peak_bytes) -
           static_cast<double>(before + results);
  }

  void rmfa_rows(const std::string& name, const Inputs& in, int64_t n,
                 const AttentionMask& mask) const {
    RmfaArgs args;
    args.levels = draw_.levels;
    args.constant = draw_.constant;
    args.linear = draw_.linear;
    const Attention attention = [&](const Variable& q, const Variable& k, const Variable& v) {
      return rmfa(q, k, v, mask, draw_.omega, draw_.weight, args);
    };
    // What the merged features need, as README.md in this folder counts it.
    const double tokens = static_cast<double>(sizes_.batch * sizes_.heads * n);
    const auto d = static_cast<double>(sizes_.head_dim);
    const auto P = static_cast<double>(draw_.projections());
    const auto M = static_cast<double>(draw_.levels.empty() ? 0 : draw_.levels[0]);
    const double gflop = 1e-9 * tokens * (4 * d * P + 4 * (M + 1) * (d + 1));
    forward_and_backward(name, in, gflop, 2 * gflop, attention);
    const std::string forward_name = part_name(name, "forward");
    const BenchRow* forward = table_.find(forward_name);
    const std::string reached = forward ? shares(*forward) : "";
    if (!reached.empty()) table_.note(forward_name, reached);
    note_memory(name, in, attention);
  }

  // Memory besides operands and results, and the time of the backward pass.
  void note_memory(const std::string& name, const Inputs& in, const Attention& attention) const {
    const std::string forward_name = part_name(name, "forward");
    const std::string both_name = part_name(name, "forward+backward");
    const BenchRow* forward = table_.find(forward_name);
    const BenchRow* both = table_.find(both_name);
    if (!forward || !both) return;
    const Variable q(in.q.value(), true), k(in.k.value(), true), v(in.v.value(), true);
    const double in_out = 4.0 * static_cast<double>(in.q.value().bytes());
    const double extra_forward = extra_bytes([&] {
      const NoGrad off;
      return Variables{attention(q, k, v)};
    });
    const double extra_both = extra_bytes([&] {
      return grad({attention(q, k, v)}, {q, k, v}, {in.grad});
    });
    table_.set_extra_bytes(forward_name, extra_forward);
    table_.set_extra_bytes(both_name, extra_both);
    // The output is alive during the backward pass and is one of the operands.
    const double extra_backward = extra_both - in_out / 4;
    table_.note(both_name,
                fmt::format("backward = {:.2f} x forward; memory besides inputs and outputs: "
                            "forward {:.1f} %, backward {:.1f} %",
                            both->ms / forward->ms - 1, 100 * extra_forward / in_out,
                            100 * extra_backward / (2 * in_out)));
  }

  // As many given features as the rows of RMFA draw, or their logarithms.
  void linear_rows(int64_t n, const AttentionMask& mask, bool log,
                   const std::string& rmfa_name) const {
    const std::string name =
        fmt::format("linear_attention{}{}{} M={} n={}", log ? " log" : "", of_size_,
                    mask.causal ? " causal" : "", sizes_.features, n);
    if (!wants_either(name)) return;
    Inputs in = normal_inputs(sizes_.batch, n, sizes_.features);
    LinearAttentionArgs args;
    args.log_features = log;
    if (!log)
      for (Variable* x : {&in.q, &in.k}) *x = exp(*x);
    const double tokens = static_cast<double>(sizes_.batch * sizes_.heads * n);
    const double gflop = 1e-9 * tokens * 4 * static_cast<double>(sizes_.features) *
                         static_cast<double>(sizes_.head_dim + 1);
    forward_and_backward(name, in, gflop, 2 * gflop,
                         [&](const Variable& q, const Variable& k, const Variable& v) {
                           return linear_attention(q, k, v, {}, mask, args);
                         });
    for (const char* part : {"forward", "forward+backward"})
      table_.compare(part_name(name, part), part_name(rmfa_name, part));
  }

  // What the row reaches of the GEMM library's rate in its own precision, and on a GPU of a copy's.
  std::string shares(const BenchRow& row) const {
    std::string text;
    if (const BenchRow* limit = table_.find(table_.gemm_limit(precision_)))
      text = fmt::format("{:.0f} % of the {}^3 rate",
                         100 * (row.gflop / row.ms) / (limit->gflop / limit->ms), sizes_.square);
    const BenchRow* copy = table_.find(table_.copy_limit());
    if (copy && table_.place().device.type != DeviceType::cpu)
      text += fmt::format("{}{:.0f} % of the copy's GB/s on {:.3f} GB", text.empty() ? "" : ", ",
                          100 * (row.gbyte / row.ms) / (copy->gbyte / copy->ms), row.gbyte);
    return text;
  }

  BenchTable& table_;
  const BenchSizes sizes_;
  const std::string of_size_;
  const Precision& precision_;
  nn::FeatureDraw draw_;
  nn::ModelRandom random_{1};
  nn::LogitScale scale_{nullptr, "scale", 1.0, false, nn::kEverywhere, sizes_.head_dim};
  std::vector<std::pair<std::string, std::unique_ptr<nn::FeatureMap>>> maps_;
};

}  // namespace

void bench_attention(BenchTable& table) {
  const BenchPlace& place = table.place();
  for_each_precision(place, [&](const Precision& precision) {
    const AttentionRows rows(table, precision);
    const auto attempt = [&](int64_t n, bool causal) {
      table.attempt(
          row_name(fmt::format("attention{} n={}", causal ? " causal" : "", n), precision),
          [&] { rows.length(n, causal); });
    };
    for (int64_t n : place.sizes.lengths) attempt(n, false);
    for (int64_t n : place.sizes.causal_lengths) attempt(n, true);
    // Features cost more next to the products of smaller heads.
    if (place.device.type == DeviceType::cpu)
      table.attempt(row_name("attention d=32 n=1000", precision),
                    [&] { AttentionRows(table, precision, 32, " d=32").length(1000, false); });
    table.attempt(row_name("attention of short sentences", precision),
                  [&] { rows.short_sentences(); });
  });
}

}  // namespace macgrad::experiments
