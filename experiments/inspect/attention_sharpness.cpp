#include "macgrad/experiments/inspect/attention_sharpness.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

#include "macgrad/experiments/common/attention_options.h"
#include "macgrad/experiments/common/machine.h"
#include "macgrad/experiments/common/output_files.h"
#include "macgrad/experiments/common/progress.h"
#include "macgrad/experiments/inspect/attention_seen.h"

namespace macgrad::experiments {
namespace {

using Values = std::vector<double>;

// The rows of a matrix (T, S) of which two entries or more are visible, without the hidden ones.
std::vector<Values> visible_rows(const Values& matrix, const Values& logits, size_t keys) {
  std::vector<Values> rows;
  for (size_t i = 0; i < matrix.size(); i += keys) {
    Values row;
    for (size_t j = i; j < i + keys; ++j)
      if (!std::isnan(logits[j])) row.push_back(matrix[j]);
    if (row.size() >= 2) rows.push_back(std::move(row));
  }
  return rows;
}

double sum(const Values& row) {
  double total = 0.0;
  for (const double x : row) total += x;
  return total;
}

bool has_weights(const Values& kernel) {
  return sum(kernel) > 0.0;
}

// Divided by their sum, which is at least `floor` a key.
Values weights(Values row, double floor) {
  const double total = std::max(sum(row), floor * static_cast<double>(row.size()));
  for (double& x : row) x /= total;
  return row;
}

// What the heads and sentences of one attention add up to.
struct Sums {
  double rows = 0, keys = 0, effective = 0, largest = 0, entries = 0, squared_deviation = 0;
  double error = 0, beyond_mean = 0, least_sum = INFINITY;  // a key
  int64_t without_weights = 0;

  void add_exact(const Values& logits, const Values& kernel) {
    const auto n = static_cast<double>(logits.size());
    const double mean = sum(logits) / n;
    for (const double t : logits) squared_deviation += (t - mean) * (t - mean);
    least_sum = std::min(least_sum, sum(kernel) / n);
    double entropy = 0, largest_of_row = 0;
    for (const double w : weights(kernel, 0.0)) {
      if (w > 0) entropy -= w * std::log(w);
      largest_of_row = std::max(largest_of_row, w);
    }
    rows += 1;
    keys += n;
    entries += n;
    effective += std::exp(entropy);
    largest += largest_of_row;
  }

  void add_estimate(const Values& kernel, const Values& estimate, double floor) {
    const Values exact = weights(kernel, 0.0), estimated = weights(estimate, floor);
    const double mean = 1.0 / static_cast<double>(exact.size());
    for (size_t j = 0; j < exact.size(); ++j) {
      error += (estimated[j] - exact[j]) * (estimated[j] - exact[j]);
      beyond_mean += (exact[j] - mean) * (exact[j] - mean);
    }
  }
};

// One head of one sentence.
void add(Sums& sums, const SeenAttention& seen, const Multi30kSettings& settings,
         const nn::DotProductKernel& kernel, int64_t sentence, int64_t redraws) {
  const HeadRows& q = seen.normalises ? seen.unit_q : seen.q;
  const HeadRows& k = seen.normalises ? seen.unit_k : seen.k;
  const auto keys = static_cast<size_t>(k.n);
  const Values logits = logits_of(seen, q, k), values = kernel_values(kernel, logits);
  for (size_t i = 0; i < logits.size(); ++i)
    require(std::isnan(logits[i]) || !std::isnan(values[i]),
            "{}: a logit of {:.4g} is outside the radius of {}", seen.name, logits[i],
            kernel.name());
  const std::vector<Values> logit_rows = visible_rows(logits, logits, keys),
                            exact_rows = visible_rows(values, logits, keys);
  for (size_t i = 0; i < exact_rows.size(); ++i) {
    if (has_weights(exact_rows[i]))
      sums.add_exact(logit_rows[i], exact_rows[i]);
    else
      ++sums.without_weights;
  }
  if (!attention_settings(settings).reads("draws")) return;
  double floor = nn::parse_denominator_floor(settings.denominator) * kernel(0.0);
  if (floor == 0.0) floor = -INFINITY;  // as they come
  for (int64_t r = 0; r < std::max<int64_t>(redraws, 1); ++r) {
    const nn::FeatureDraw draw =
        redraws == 0
            ? seen.draw
            : nn::draw_features(kernel, seen.draw.settings, seen.draw.plan,
                                {settings.common.seed, kViewDraws, static_cast<uint32_t>(sentence),
                                 static_cast<uint32_t>(r)},
                                DType::float64);
    const std::vector<Values> rows =
        visible_rows(kernel_estimate(seen, draw, q, k).total, logits, keys);
    for (size_t i = 0; i < rows.size(); ++i)
      if (has_weights(exact_rows[i])) sums.add_estimate(exact_rows[i], rows[i], floor);
  }
}

std::string shown(double value) {
  return std::isnan(value) ? std::string() : fmt::format("{:.3g}", value);
}

void print(const std::vector<AttentionSharpness>& list) {
  say("{:<36} {:>6} {:>9} {:>6} {:>10} {:>8} {:>8} {:>8}\n", "", "tau", "logit dev", "keys",
      "effective", "largest", "least", "error");
  for (const AttentionSharpness& a : list)
    say("{:<36} {:>6.3g} {:>9.3f} {:>6.1f} {:>10.2f} {:>8.3f} {:>8} {:>8}\n", a.attention,
        a.logit_scale, a.logit_deviation, a.keys, a.effective_keys, a.largest_weight,
        shown(a.least_denominator), shown(a.weight_error));
  for (const AttentionSharpness& a : list)
    if (a.without_weights > 0)
      say("{}: {} queries left out, whose sum of f(t) is not above 0\n", a.attention,
          a.without_weights);
}

int run_attention(StepSettings& s, int64_t redraws) {
  apply_common_options(s.model.common);
  check_settings(s.model);
  ModelStep model(s);
  const RunDirectory out(s.model.common.out, "inspect-attention");
  const auto step = record_step(model, /*open=*/true);
  const std::vector<AttentionSharpness> list = attention_sharpness(model, *step, redraws);
  std::vector<std::vector<CsvValue>> cells;
  for (const AttentionSharpness& a : list)
    cells.push_back({a.attention, a.logit_scale, a.logit_deviation, a.keys, a.effective_keys,
                     a.largest_weight, csv_number(a.least_denominator), csv_number(a.weight_error),
                     a.without_weights});
  CsvWriter(out.file("attention.csv"),
            {"attention", "logit_scale", "logit_deviation", "keys", "effective_keys",
             "largest_weight", "least_denominator", "weight_error", "without_weights"},
            cells);
  Json settings{{"settings", to_json(s.model)},
                {"sentences", model.rows()},
                {"checkpoint", s.checkpoint},
                {"redraws", redraws}};
  settings.update(provenance());
  write_json(out.file("attention.json"), settings);
  print(list);
  say("Means over {} sentences of the training text; what the columns are: README.md of "
      "inspect.\nResults: {}\n",
      model.rows(), out.path());
  return 0;
}

}  // namespace

std::vector<AttentionSharpness> attention_sharpness(ModelStep& model, const RecordedStep& step,
                                                    int64_t redraws) {
  const Multi30kSettings& s = model.settings();
  const nn::DotProductKernel kernel = shown_kernel(s);
  std::vector<AttentionSharpness> list;
  for (const std::string& name : attention_paths(model)) {
    AttentionSharpness& a = list.emplace_back();
    a.attention = name;
    Sums sums;
    for (int64_t sentence = 0; sentence < model.rows(); ++sentence)
      for (int64_t head = 0; head < s.heads; ++head) {
        const SeenAttention seen = see_attention(model, step, name, head, sentence);
        a.logit_scale = seen.scale;
        add(sums, seen, s, kernel, sentence, redraws);
      }
    require(sums.rows > 0,
            "{}: no query sees two keys with a sum of f(t) above 0; take more --sentences", name);
    a.without_weights = sums.without_weights;
    a.logit_deviation = std::sqrt(sums.squared_deviation / sums.entries);
    a.keys = sums.keys / sums.rows;
    a.effective_keys = sums.effective / sums.rows;
    a.largest_weight = sums.largest / sums.rows;
    a.least_denominator =
        kernel(0.0) > 0.0 ? sums.least_sum / kernel(0.0) : std::numeric_limits<double>::quiet_NaN();
    a.weight_error = attention_settings(s).reads("draws")
                         ? sums.error / sums.beyond_mean
                         : std::numeric_limits<double>::quiet_NaN();
  }
  return list;
}

int attention_command(int argc, const char* const* argv) {
  StepSettings s;
  int64_t redraws = 4;
  return run_program(
      argc, argv, "inspect attention",
      "How far each attention is from a mean over its keys, and how much of that RMFA's features "
      "leave.",
      [&](Options& options) {
        s = step_settings(argc, argv);
        s.sentences = 16;
        declare_step_options(options, s, {});
        options.number(
            "--redraws", redraws, between(0, 10000),
            "Fresh feature draws per sentence; 0: the model's own, the default of models "
            "with --redraw never");
        options.check([&] {
          const nn::AttentionSettings attention = attention_settings(s.model);
          const std::string words =
              s.model.attention + (attention.kind.uses_map ? " --map " + s.model.map : "");
          if (!attention.reads("logit_scale"))
            throw UsageError("--attention {} has no logits to measure; use {}", words,
                             readers_of("logit_scale"));
          if (options.given("--redraws") && !attention.reads("draws"))
            throw UsageError("--redraws has no effect with --attention {}; use {}", words,
                             readers_of("draws"));
          if (!options.given("--redraws") && s.model.redraw == "never") redraws = 0;
        });
      },
      [&] { return run_attention(s, redraws); });
}

}  // namespace macgrad::experiments
