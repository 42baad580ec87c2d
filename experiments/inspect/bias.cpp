// The loop over draws. Numerators and denominators come from the n×n estimate of the kernel, made
// of primitive ops from the draw's columns; outputs and gradients from the rmfa op itself, so that
// what is measured is what trains.
#include "macgrad/experiments/inspect/bias.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

#include "macgrad/autograd/engine.h"
#include "macgrad/autograd/ops.h"
#include "macgrad/experiments/common/interrupt.h"
#include "macgrad/experiments/common/machine.h"
#include "macgrad/experiments/common/output_files.h"
#include "macgrad/experiments/common/plots.h"
#include "macgrad/experiments/common/progress.h"
#include "macgrad/nn/attention_settings.h"
#include "macgrad/nn/maclaurin_draw.h"

namespace macgrad::experiments {
namespace {

constexpr uint32_t kDataStream = 1, kDrawStream = 2;
constexpr double kNone = std::numeric_limits<double>::quiet_NaN();

// Means and sums of squared deviations over draws (Welford), element by element.
class Moments {
 public:
  void add(const Tensor& value) {
    const auto x = value.to_vector<double>();
    if (mean_.empty()) {
      mean_.assign(x.size(), 0.0);
      squares_.assign(x.size(), 0.0);
    }
    ++count_;
    before_ = mean_;
    for (size_t i = 0; i < x.size(); ++i) {
      mean_[i] += (x[i] - mean_[i]) / static_cast<double>(count_);
      squares_[i] += (x[i] - before_[i]) * (x[i] - mean_[i]);
    }
  }
  double mean(size_t i) const { return mean_[i]; }
  double variance(size_t i) const { return squares_[i] / std::max<double>(1.0, count_ - 1.0); }

 private:
  double count_ = 0;
  std::vector<double> mean_, squares_, before_;
};

// One quantity (H, n, width): its exact value and its moments over draws.
struct Quantity {
  std::string name;
  std::vector<double> exact;
  int64_t width = 1;
  Moments moments;
};

struct Data {
  Variable q, k, v, cotangent;  // (1, H, n, d)
  double scale;                 // of q·k
  Tensor shown;                 // (n, n) of the compute dtype, 1 where key j is visible
};

Data make_data(const BiasSettings& s) {
  const NoGrad off;
  Generator generator(s.common.seed, kDataStream);
  const auto normal = [&] {
    return Variable(Tensor::randn({1, s.heads, s.length, s.dim}, generator, dtype_of(s.common),
                                  device_of(s.common)));
  };
  Data d;
  d.q = pre_sbn(normal(), Tensor(), SbnStatistics::row, 1e-13, nullptr);
  d.k = pre_sbn(normal(), Tensor(), SbnStatistics::row, 1e-13, nullptr);
  d.v = normal();
  d.cotangent = normal();
  d.scale = s.logit_scale / std::sqrt(static_cast<double>(s.dim));
  std::vector<double> shown;
  for (int64_t i = 0; i < s.length; ++i)
    for (int64_t j = 0; j < s.length; ++j) shown.push_back(s.causal && j > i ? 0.0 : 1.0);
  d.shown = Tensor::from_vector(shown, Shape{s.length, s.length})
                .to(dtype_of(s.common))
                .to(device_of(s.common));
  return d;
}

// Numerators (1, H, n, d) and denominators (1, H, n, 1) of kernel values (1, H, n, n).
std::pair<Variable, Variable> sums(const Variable& values, const Data& d, const Variable& v) {
  const Variable visible = values * Variable(d.shown);
  return {matmul(visible, v), sum(visible, {3}, true)};
}

Variable kernel_values(const Data& d, const nn::FeatureDraw& draw, const RmfaArgs& args) {
  const auto phi = [&](const Variable& x) {
    return maclaurin_features(x, draw.omega, draw.weight, args);
  };
  if (args.linear == 0 && draw.weight.numel() == 0)
    return matmul(d.q, transpose(d.k, 2, 3)) * 0.0 + draw.constant;
  return matmul(phi(d.q), transpose(phi(d.k), 2, 3)) + draw.constant;
}

// Output and gradients of `attention`.
Tensors with_gradients(
    const Data& d,
    const std::function<Variable(const Variable&, const Variable&, const Variable&)>& attention) {
  const Variable q(d.q.value(), true), k(d.k.value(), true), v(d.v.value(), true);
  const Variable out = attention(q, k, v);
  Tensors result{out.value()};
  for (const Variable& g : grad({out}, {q, k, v}, {d.cotangent})) result.push_back(g.value());
  return result;
}

BiasRow row_of(const Quantity& quantity, const BiasSettings& s, int64_t draws, int64_t position,
               const std::vector<double>& predicted) {
  BiasRow row;
  row.quantity = quantity.name;
  row.position = position;
  double variance = 0;
  for (size_t i = 0; i < quantity.exact.size(); ++i) {
    const int64_t at = static_cast<int64_t>(i) / quantity.width % s.length;
    if (position >= 0 && at != position) continue;
    const double bias = quantity.moments.mean(i) - quantity.exact[i];
    row.exact += quantity.exact[i] * quantity.exact[i];
    row.bias += bias * bias;
    variance += quantity.moments.variance(i);
    if (!predicted.empty()) row.predicted += predicted[i] * predicted[i];
  }
  row.exact = std::sqrt(row.exact);
  row.bias = std::sqrt(row.bias);
  row.deviation = std::sqrt(variance);
  row.bias_se = std::sqrt(variance / static_cast<double>(draws));
  row.predicted = predicted.empty() ? kNone : std::sqrt(row.predicted);
  return row;
}

// N Var(D̂)/D³ - Cov(N̂, D̂)/D², with covariances of the same draws: Cov(N̂, D̂) follows from the
// variances of N̂ + c D̂ for any c, so `combined` holds the moments of N̂ + N/D·D̂.
std::vector<double> predicted_bias(const Quantity& numerator, const Quantity& denominator,
                                   const Moments& combined) {
  std::vector<double> bias(numerator.exact.size());
  for (size_t i = 0; i < bias.size(); ++i) {
    const auto row = i / static_cast<size_t>(numerator.width);
    const double n = numerator.exact[i], d = denominator.exact[row], ratio = n / d;
    const double var_n = numerator.moments.variance(i), var_d = denominator.moments.variance(row);
    const double both = combined.variance(i);
    const double covariance =
        ratio != 0 ? (both - var_n - ratio * ratio * var_d) / (2.0 * ratio) : 0.0;
    bias[i] = n * var_d / (d * d * d) - covariance / (d * d);
  }
  return bias;
}

}  // namespace

Json to_json(const BiasSettings& s) {
  return {{"kernel", s.kernel},           {"draws", s.draws},   {"features", s.features},
          {"length", s.length},           {"heads", s.heads},   {"dim", s.dim},
          {"redraws", s.redraws},         {"p", s.p},           {"logit_scale", s.logit_scale},
          {"denominator", s.denominator}, {"causal", s.causal}, {"common", to_json(s.common)}};
}

BiasResult measure_bias(const BiasSettings& s, const std::function<bool(int64_t done)>& progress) {
  const nn::DotProductKernel kernel = nn::dot_product_kernel(s.kernel);
  nn::FeatureSettings f;
  f.method = nn::draw_method(s.draws);
  f.features = s.features;
  f.head_dim = s.dim;
  f.p = s.p;
  f.logit_scale = s.logit_scale;
  const nn::FeaturePlan plan = nn::feature_plan(kernel, f);
  const Data d = make_data(s);
  AttentionMask mask;
  mask.causal = s.causal;
  RmfaArgs args;
  args.floor = nn::parse_denominator_floor(s.denominator) * kernel.coefficient(0);

  const Tensors exact =
      with_gradients(d, [&](const Variable& q, const Variable& k, const Variable& v) {
        const auto [numerator, denominator] =
            sums(kernel(matmul(q * d.scale, transpose(k, 2, 3))), d, v);
        return numerator / denominator;
      });
  const auto [numerator, denominator] =
      sums(kernel(matmul(d.q * d.scale, transpose(d.k, 2, 3))), d, d.v);
  const auto quantity = [](const std::string& name, const Tensor& value) {
    return Quantity{name, value.to_vector<double>(), value.size(3), {}};
  };
  Quantity quantities[] = {quantity("numerator", numerator.value()),
                           quantity("denominator", denominator.value()),
                           quantity("output", exact[0]),
                           quantity("dq", exact[1]),
                           quantity("dk", exact[2]),
                           quantity("dv", exact[3])};
  const Variable ratio = numerator / denominator;
  Moments combined;
  BiasResult result;
  for (int64_t r = 1; r <= s.redraws; ++r) {
    const DrawKey key{s.common.seed, kDrawStream, 0, static_cast<uint32_t>(r)};
    nn::FeatureDraw draw = nn::draw_features(kernel, f, plan, key, dtype_of(s.common));
    draw.omega = draw.omega.to(device_of(s.common));
    draw.weight = draw.weight.to(device_of(s.common));
    args.levels = draw.levels;
    args.constant = draw.constant;
    args.linear = draw.linear;
    {
      const NoGrad off;
      const auto [n, c] = sums(kernel_values(d, draw, args), d, d.v);
      quantities[0].moments.add(n.value());
      quantities[1].moments.add(c.value());
      combined.add((n + ratio * c).value());
    }
    Tensor seen;
    const Tensors estimate =
        with_gradients(d, [&](const Variable& q, const Variable& k, const Variable& v) {
          return rmfa(q, k, v, mask, draw.omega, draw.weight, args, &seen);
        });
    for (size_t i = 0; i < estimate.size(); ++i) quantities[2 + i].moments.add(estimate[i]);
    result.denominators += read_statistics(seen);
    result.draws = r;
    if (!progress(r)) break;
  }
  const std::vector<double> predicted = predicted_bias(quantities[0], quantities[1], combined);
  for (const Quantity& q : quantities)
    for (int64_t position = -1; position < s.length; ++position)
      result.rows.push_back(row_of(q, s, result.draws, position,
                                   q.name == "output" ? predicted : std::vector<double>{}));
  return result;
}

namespace {

void draw_curves(const BiasSettings& s, const BiasResult& result, const RunDirectory& out) {
  Panels panels;
  panels.title = fmt::format("RMFA {} {}, D = {}, n = {}{}: {} draws", s.kernel, s.draws,
                             s.features, s.length, s.causal ? ", causal" : "", result.draws);
  const auto panel = [&](const std::string& title, double BiasRow::*value) {
    CurvePlot plot;
    plot.title = title;
    plot.x_label = "position";
    plot.y_label = "of the exact norm";
    plot.log_y = true;
    int style = 0;
    for (const char* name : {"numerator", "denominator", "output", "dq", "dk", "dv"}) {
      Curve curve;
      curve.name = name;
      curve.style = ++style;
      for (const BiasRow& row : result.rows) {
        if (row.quantity != name || row.position < 0) continue;
        curve.x.push_back(static_cast<double>(row.position));
        curve.y.push_back(row.exact > 0 && row.*value > 0 ? row.*value / row.exact : kNone);
      }
      plot.curves.push_back(curve);
    }
    panels.plots.push_back(plot);
  };
  panel("bias (mean of the draws - exact)", &BiasRow::bias);
  panel("what chance makes of no bias", &BiasRow::bias_se);
  panel("deviation of one draw", &BiasRow::deviation);
  write_plot(panels, out.file("bias"));
}

}  // namespace

int run_bias(BiasSettings& s) {
  apply_common_options(s.common);
  const InterruptGuard guard;
  const RunDirectory out(s.common.out, "inspect-bias");
  BiasResult result;
  {
    Progress progress(s.redraws, "draw");
    result = measure_bias(s, [&](int64_t done) {
      progress.step({done, {}, 0});
      return !guard.interrupted();
    });
  }
  const std::vector<std::string> columns{"quantity", "position",  "exact",    "bias",
                                         "bias_se",  "deviation", "predicted"};
  std::vector<std::vector<CsvValue>> cells;
  say("{:<12} {:>10} {:>10} {:>10} {:>10}\n", "", "bias", "by chance", "predicted", "deviation");
  for (const BiasRow& row : result.rows) {
    cells.push_back({row.quantity, row.position < 0 ? CsvValue{std::string("all")} : row.position,
                     row.exact, row.bias, row.bias_se, row.deviation, csv_number(row.predicted)});
    if (row.position >= 0) continue;
    const auto share = [&](double value) {
      return std::isnan(value) ? std::string() : fmt::format("{:.3g}", value / row.exact);
    };
    say("{:<12} {:>10} {:>10} {:>10} {:>10}\n", row.quantity, share(row.bias), share(row.bias_se),
        share(row.predicted), share(row.deviation));
  }
  CsvWriter(out.file("bias.csv"), columns, cells);
  say("Norms over all positions, as shares of the exact ones; {} draws, {} denominators {}, "
      "smallest per key {:.3g}.\n",
      group_digits(result.draws), group_digits(result.denominators.floored),
      s.denominator == "none" ? "<= 0" : "floored", result.denominators.smallest_ratio);
  Json json{{"settings", to_json(s)},
            {"draws", result.draws},
            {"floored", result.denominators.floored},
            {"smallest_ratio", result.denominators.smallest_ratio}};
  json.update(provenance());
  write_json(out.file("bias.json"), json);
  draw_curves(s, result, out);
  say("Results: {}\n", out.path());
  if (guard.interrupted()) say(stderr, "Stopped early, after {} draws.\n", result.draws);
  return guard.exit_code();
}

int bias_command(int argc, const char* const* argv) {
  BiasSettings s;
  return run_program(
      argc, argv, "inspect bias",
      "Bias and variance of RMFA over its draws, of numerators, denominators, outputs and "
      "gradients, by position.",
      [&](Options& options) {
        add_common_options(options, s.common);
        options.text("--kernel", s.kernel, "Dot-product kernel: " + nn::dot_product_kernel_names(),
                     "NAME");
        options.choice("--draws", s.draws, nn::draw_method_names(), "Draw method");
        options.number("--features", s.features, at_least(1), "Random features D");
        options.number("--length", s.length, at_least(1), "Sequence length n");
        options.number("--heads", s.heads, at_least(1), "Heads H");
        options.number("--dim", s.dim, at_least(1), "Head dimension d");
        options.number("--redraws", s.redraws, between(1, 1 << 30), "Draws R");
        options.number("--logit-scale", s.logit_scale, above(0), "tau: logits are tau q.k/sqrt(d)");
        options.number("--p", s.p, above(1), "Degree law P[N = n] = (1 - 1/p) p^-n");
        options.text("--denominator", s.denominator,
                     "Small denominators: floor (as in training), floor:DELTA, none", "POLICY");
        options.flag("--causal", s.causal, "Key j visible to query i when j <= i");
        options.check([&] {
          if (options.given("--p") && s.draws == "optimal")
            throw UsageError(
                "--p has no effect with --draws optimal, which has a degree law of its own");
        });
      },
      [&] { return run_bias(s); });
}

}  // namespace macgrad::experiments
