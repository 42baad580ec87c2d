#include "macgrad/experiments/nmse/command.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "macgrad/experiments/common/attention_options.h"
#include "macgrad/experiments/common/interrupt.h"
#include "macgrad/experiments/common/machine.h"
#include "macgrad/experiments/common/output_files.h"
#include "macgrad/experiments/common/plots.h"
#include "macgrad/experiments/common/progress.h"
#include "macgrad/experiments/nmse/measure.h"
#include "macgrad/nn/allocation.h"

namespace macgrad::experiments {
namespace {

constexpr double kMostDraws = 1 << 30;  // numbers of draws are 32-bit keys

// The paper's grid takes hours on a CPU: it runs only when part of a grid is given.
bool wants_quick(int argc, const char* const* argv) {
  bool quick = true;
  for (int i = 1; i < argc; ++i) {
    const std::string_view word(argv[i]);
    const std::string_view option = word.substr(0, word.find('='));
    if (option == "--quick") return true;
    for (const char* grid : {"--lengths", "--features", "--repeats", "--batch", "--heads"})
      if (option == grid) quick = false;
  }
  return quick;
}

void declare(Options& o, NmseSettings& s) {
  add_common_options(o, s.common);
  o.words("--kernel", s.kernels, "Kernels: " + nn::pair_kernel_names());
  const auto list = [&](const char* name, std::vector<std::string>& values, const std::string& text,
                        const std::vector<std::string>& words) {
    o.words(name, values, fmt::format("{}: {}", text, fmt::join(words, ", ")), words);
  };
  list("--map", s.maps, "Feature maps", feature_map_names());
  list("--matrix", s.matrices, "Projection matrices of " + maps_reading("matrix"),
       projection_matrix_names());
  list("--draws", s.draws, "Draw methods of " + maps_reading("draws"), nn::draw_method_names());
  o.integers("--lengths", s.lengths, "Sequence lengths n");
  o.integers("--features", s.features, "Random features D");
  o.number("--batch", s.batch, at_least(1), "Batch size B");
  o.number("--heads", s.heads, at_least(1), "Heads H");
  o.number("--dim", s.dim, at_least(1), "Head dimension d");
  o.number("--repeats", s.repeats, between(1, kMostDraws), "Fresh data and draws this many times");
  o.number("--p", s.p, above(1), "Degree law P[N = n] = (1 - 1/p) p^-n");
  o.choice("--presbn", s.presbn, {"batch", "row", "none"}, "preSBN statistics");
  o.number("--presbn-eps", s.eps, at_least(0), "Epsilon of preSBN");
  o.number("--logit-scale", s.logit_scale, above(0), "tau: logits are tau q.k/sqrt(d)");
  o.flag("--gradients", s.gradients, "Measure the gradients of q, k and v as well");
  o.flag("--quick", s.quick,
         "A small grid, below two minutes on two cores; the default unless one of "
         "--lengths, --features, --repeats, --batch, --heads is given");
  o.check([&o, &s] {
    for (const std::string setting : {"matrix", "features", "draws", "p"}) {
      nn::AttentionSettings a;
      a.kind = nn::attention_kind("linear");
      const bool read = std::any_of(s.maps.begin(), s.maps.end(), [&](const std::string& map) {
        a.map = nn::feature_map(map);
        return a.reads(setting);
      });
      if (o.given(option_of(setting)) && !read)
        throw UsageError("{} has no effect with --map {}; add --map {}", option_of(setting),
                         fmt::join(s.maps, ","), maps_reading(setting));
    }
    if (o.given("--p") && s.draws == std::vector<std::string>(s.draws.size(), "optimal"))
      throw UsageError("--p has no effect with --draws optimal, which has a degree law of its own");
    if (o.given("--presbn-eps") && s.presbn == "none")
      throw UsageError("--presbn-eps has no effect with --presbn none");
  });
}

std::vector<std::string> column_names(bool gradients) {
  std::vector<std::string> names{"kernel",
                                 "map",
                                 "matrix",
                                 "draws",
                                 "length",
                                 "features",
                                 "log10_nmse",
                                 "log10_nmse_se",
                                 "log10_nmse_mean",
                                 "log10_nmse_taylor1",
                                 "log10_speedup",
                                 "log10_speedup_plain",
                                 "linear_ms",
                                 "draw_ms",
                                 "softmax_ms",
                                 "plain_ms",
                                 "unsafe_denominators",
                                 "smallest_ratio",
                                 "repeats"};
  if (gradients)
    for (const char* who : {"", "_mean", "_taylor1"})
      for (const char* which : {"dq", "dk", "dv"})
        names.push_back(fmt::format("log10_nmse_{}{}", which, who));
  return names;
}

std::vector<CsvValue> csv_row(const NmseRow& r) {
  std::vector<CsvValue> row{r.kernel,
                            r.map,
                            r.matrix,
                            r.draws,
                            r.length,
                            r.features,
                            r.approximate.log10,
                            r.approximate.se,
                            r.mean.log10,
                            r.taylor1.log10,
                            r.speedup(),
                            r.speedup_plain(),
                            r.linear_ms,
                            r.draw_ms,
                            r.softmax_ms,
                            r.plain_ms,
                            r.unsafe_denominators,
                            r.smallest_ratio,
                            r.repeats};
  for (const auto* list : {&r.approximate_gradients, &r.mean_gradients, &r.taylor1_gradients})
    for (const LogError& e : *list) row.emplace_back(e.log10);
  return row;
}

// "positive/orf", "maclaurin optimal".
std::string map_label(const NmseRow& r) {
  std::string label = r.map;
  if (!r.matrix.empty()) label += "/" + r.matrix;
  if (!r.draws.empty()) label += " " + r.draws;
  return label;
}

void print_header(bool gradients) {
  say("{:<8} {:<20} {:>6} {:>6} {:>15} {:>8} {:>8} {:>8} {:>8}{}\n", "kernel", "map", "n", "D",
      "log10 NMSE", "mean(V)", "taylor1", "speedup", "unsafe",
      gradients ? fmt::format(" {:>7} {:>7} {:>7}", "dQ", "dK", "dV") : "");
}

void print_row(const NmseRow& r) {
  say("{:<8} {:<20} {:>6} {:>6} {:>7.2f} ± {:<5.2f} {:>8.2f} {:>8.2f} {:>8.2f} {:>8}", r.kernel,
      map_label(r), r.length, r.features, r.approximate.log10, r.approximate.se, r.mean.log10,
      r.taylor1.log10, r.speedup(), r.unsafe_denominators);
  for (const LogError& e : r.approximate_gradients) say(" {:>7.2f}", e.log10);
  say("\n");
}

Json json_row(const NmseRow& r, const std::vector<std::string>& names) {
  Json row;
  const auto values = csv_row(r);
  for (size_t i = 0; i < names.size(); ++i)
    std::visit(
        [&](const auto& v) {
          if constexpr (std::is_same_v<std::decay_t<decltype(v)>, std::monostate>) {
            row[names[i]] = nullptr;
          } else {
            row[names[i]] = v;
          }
        },
        values[i]);
  return row;
}

// The two heat maps of Figure 4 for each kernel and map.
void draw_maps(const NmseSettings& s, const RunDirectory& out, const std::vector<NmseRow>& rows) {
  // Rows of one kernel and map, in order of their first appearance.
  std::vector<std::vector<const NmseRow*>> groups;
  for (const NmseRow& r : rows) {
    const auto same = std::find_if(groups.begin(), groups.end(), [&](const auto& group) {
      return group[0]->kernel == r.kernel && map_label(*group[0]) == map_label(r);
    });
    if (same == groups.end())
      groups.push_back({&r});
    else
      same->push_back(&r);
  }
  for (const std::vector<const NmseRow*>& group : groups) {
    const std::string& kernel = group[0]->kernel;
    const std::string label = map_label(*group[0]);
    std::vector<int64_t> features;
    for (const NmseRow* r : group)
      if (std::find(features.begin(), features.end(), r->features) == features.end())
        features.push_back(r->features);
    HeatMap error, speed;
    error.title = fmt::format("log10 NMSE, {}, {}", kernel, label);
    speed.title = fmt::format("log10 (softmax time / linear time), {}, {}", kernel, label);
    error.value_label = "log10 NMSE";
    speed.value_label = "log10 acceleration";
    for (HeatMap* map : {&error, &speed}) {
      map->x_label = "features D";
      map->y_label = "length n";
      for (int64_t f : features) map->columns.push_back(fmt::format("{}", f));
      for (int64_t n : s.lengths) map->rows.push_back(fmt::format("{}", n));
    }
    for (int64_t n : s.lengths) {
      for (int64_t f : features) {
        const auto r = std::find_if(group.begin(), group.end(), [&](const NmseRow* one) {
          return one->length == n && one->features == f;
        });
        error.values.push_back(r != group.end() ? (*r)->approximate.log10 : NAN);
        speed.values.push_back(r != group.end() ? (*r)->speedup() : NAN);
      }
    }
    std::string suffix = fmt::format("{}_{}", kernel, label);
    std::replace_if(
        suffix.begin(), suffix.end(), [](char c) { return c == '/' || c == ' '; }, '_');
    if (!write_plot(error, out.file("nmse_" + suffix))) return;
    if (!write_plot(speed, out.file("speed_" + suffix))) return;
  }
}

int run_nmse(NmseSettings& s) {
  apply_common_options(s.common);
  for (const std::string& k : s.kernels) {
    const nn::PairKernel kernel = nn::pair_kernel(k);
    nn::check_domain(kernel.function(), s.logit_scale, s.dim);
    require(s.presbn != "none" || std::isinf(kernel.radius()),
            "--presbn none with --kernel {}: its series converges for |t| < {} only, and preSBN is "
            "what keeps queries and keys that small; use --presbn batch or row",
            k, kernel.radius());
  }
  const RunDirectory out(s.common.out, "nmse");
  const InterruptGuard guard;
  const auto names = column_names(s.gradients);
  CsvWriter csv(out.file("nmse.csv"), names);
  std::vector<NmseRow> rows;
  int64_t cells = 0;
  for (const MapChoice& choice : map_choices(s)) cells += std::ssize(choice.features);
  cells *= static_cast<int64_t>(s.kernels.size() * s.lengths.size()) * s.repeats;
  bool complete = false;
  {
    Progress progress(cells, "cell");
    complete = measure(
        s,
        [&](int64_t done, int64_t, const std::string&) {
          progress.step({done, {}, 0});
          return !guard.interrupted();
        },
        [&](const std::vector<NmseRow>& finished) {
          for (const NmseRow& r : finished) {
            csv.row(csv_row(r));
            rows.push_back(r);
          }
          progress.resume();
        },
        [&](const std::string& text) { progress.note(text); });
  }
  print_header(s.gradients);
  for (const NmseRow& r : rows) print_row(r);
  for (const NmseRow& r : rows)
    if (std::isnan(r.plain_ms)) {
      say("The plain n×n form was skipped at n = {}: it would take more than a quarter of "
          "the memory.\n",
          r.length);
      break;
    }
  Json json{{"settings", to_json(s)}, {"complete", complete}};
  json.update(provenance());
  for (const NmseRow& r : rows) json["rows"].push_back(json_row(r, names));
  write_json(out.file("nmse.json"), json);
  if (!rows.empty()) draw_maps(s, out, rows);
  say("Results: {}\n", out.path());
  if (complete) return 0;
  say(stderr,
      "Stopped early: lengths that were not finished are missing or have fewer "
      "repeats.\n");
  return guard.exit_code();
}

}  // namespace

int nmse_command(int argc, const char* const* argv) {
  NmseSettings settings;
  if (wants_quick(argc, argv)) make_quick(settings);
  return run_program(
      argc, argv, "nmse",
      "NMSE and speed of linear attention with random feature maps (Macformer, Figure 4).",
      [&](Options& options) { declare(options, settings); }, [&] { return run_nmse(settings); });
}

}  // namespace macgrad::experiments
