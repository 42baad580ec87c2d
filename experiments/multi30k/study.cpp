#include "macgrad/experiments/multi30k/study.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>

#include "macgrad/experiments/common/machine.h"
#include "macgrad/experiments/common/output_files.h"
#include "macgrad/experiments/common/progress.h"
#include "macgrad/experiments/multi30k/commands.h"
#include "macgrad/experiments/multi30k/plot.h"
#include "macgrad/experiments/multi30k/presets.h"
#include "macgrad/experiments/multi30k/run_to_end.h"
#include "macgrad/experiments/multi30k/training.h"

namespace macgrad::experiments {
namespace fs = std::filesystem;
namespace {

using Settings = Multi30kSettings;

// The middle of the table, from which every other RMFA run differs in one thing.
void rmfa(Settings& s) {
  s.attention = "rmfa";
  s.ppsbn = true;
  s.kernel = "exp";
  s.features = 128;
  s.draws = "optimal";
  s.redraw = "step";
  s.logit_scale = 1.0;
}

template <const char* kernel>
void with_kernel(Settings& s) {
  rmfa(s);
  s.kernel = kernel;
}
constexpr char kInv[] = "inv", kLog[] = "log", kTrigh[] = "trigh", kSqrt[] = "sqrt";

template <int features>
void with_features(Settings& s) {
  rmfa(s);
  s.features = features;
}

// The logit scale is trained as its logarithm, which 1,500 updates of Adam move by little more than
// the sum of their learning rates, 1.6: from 1 it ends below 6 wherever it would go.
template <int start>
void trained_scale(Settings& s) {
  s.train_logit_scale = true;
  s.logit_scale = start;
}

template <int start, int features>
void rmfa_from_scale(Settings& s) {
  with_features<features>(s);
  trained_scale<start>(s);
}

// RMFA with what the rows before it show to be missing.
template <int start, int features>
void rmfa_mended(Settings& s) {
  rmfa_from_scale<start, features>(s);
  s.presbn = "row";
  s.denominator = "floor:0.25";
}

void rmfa_poly2(Settings& s) {
  rmfa_mended<8, 256>(s);
  s.kernel = "poly:c=1,k=2";
}

template <int start>
void softmax_from_scale(Settings& s) {
  s.ppsbn = true;
  trained_scale<start>(s);
}

constexpr StudyRun kRuns[] = {
    {"softmax", "softmax attention, the size of transformer-tiny", [](Settings&) {}},
    {"softmax-ppsbn", "Figure 3: ppSBN around softmax", [](Settings& s) { s.ppsbn = true; }},
    {"rmfa", "RMFA exp, D 128, optimal, redrawn every step", rmfa},
    {"exact", "the same kernel without random features",
     [](Settings& s) {
       rmfa(s);
       s.attention = "exact";
     }},
    {"rmfa-trained-scale", "a trained logit scale, from 1", rmfa_from_scale<1, 128>},
    {"softmax-ppsbn-trained-scale", "ppSBN around softmax, logit scale trained from 1",
     softmax_from_scale<1>},
    {"exact-trained-scale", "exact kernel, logit scale trained from 1",
     [](Settings& s) {
       rmfa_from_scale<1, 128>(s);
       s.attention = "exact";
     }},
    {"softmax-ppsbn-scale-8", "ppSBN around softmax, logit scale trained from 8",
     softmax_from_scale<8>},
    {"softmax-ppsbn-scale-16", "ppSBN around softmax, logit scale trained from 16",
     softmax_from_scale<16>},
    {"softmax-ppsbn-scale-32", "ppSBN around softmax, logit scale trained from 32",
     softmax_from_scale<32>},
    {"softmax-ppsbn-row", "its preSBN by rows in the encoder too",
     [](Settings& s) {
       s.ppsbn = true;
       s.presbn = "row";
     }},
    {"softmax-ppsbn-row-scale-16", "both: preSBN by rows, logit scale trained from 16",
     [](Settings& s) {
       softmax_from_scale<16>(s);
       s.presbn = "row";
     }},
    {"rmfa-scale-8", "RMFA, logit scale trained from 8", rmfa_from_scale<8, 128>},
    {"rmfa-row-scale-8", "RMFA, preSBN by rows, scale from 8, denominators floored at 0.25",
     rmfa_mended<8, 128>},
    {"rmfa-512-row-scale-8", "the same with 512 features", rmfa_mended<8, 512>},
    {"rmfa-poly2-row-scale-8",
     "kernel (1 + t)^2 and 256 features: less noise for as sharp a kernel", rmfa_poly2},
    {"rmfa-poly2-row-scale-8-low-floor", "its denominators floored at 0.001, the default",
     [](Settings& s) {
       rmfa_poly2(s);
       s.denominator = "floor";
     }},
    {"exact-poly2-row-scale-8", "that kernel without random features",
     [](Settings& s) {
       rmfa_poly2(s);
       s.attention = "exact";
     }},
    {"rmfa-inv", "kernel inv", with_kernel<kInv>},
    {"rmfa-log", "kernel log", with_kernel<kLog>},
    {"rmfa-trigh", "kernel trigh", with_kernel<kTrigh>},
    {"rmfa-sqrt", "kernel sqrt", with_kernel<kSqrt>},
    {"rmfa-64", "64 features", with_features<64>},
    {"rmfa-256", "256 features", with_features<256>},
    {"rmfa-never", "one draw for the whole training",
     [](Settings& s) {
       rmfa(s);
       s.redraw = "never";
     }},
    {"rmfa-iid", "independent draws, as the paper's",
     [](Settings& s) {
       rmfa(s);
       s.draws = "iid";
     }},
};

// What rows differ in, or stand for as a whole: given to all of them, their names would lie.
const std::vector<std::string> kRowOptions{"--preset",   "--attention",   "--kernel",
                                           "--features", "--draws",       "--redraw",
                                           "--ppsbn",    "--logit-scale", "--train-logit-scale",
                                           "--presbn",   "--denominator"};

const StudyRun& study_run(const std::string& name) {
  std::string names;
  for (const StudyRun& run : kRuns) {
    if (run.name == name) return run;
    names += fmt::format("{}{}", names.empty() ? "" : ", ", run.name);
  }
  throw Error("--only: unknown \"{}\"; known: {}", name, names);
}

// One row of the tables: what a complete run measured, or why there is nothing.
struct Row {
  const StudyRun* run;
  Settings settings;
  std::optional<Json> results;
  std::string failure;
};

// Fills what the runs in the rows' folders came to, by now: another process may train some of them.
void read_rows(std::vector<Row>& rows) {
  std::vector<std::pair<std::string, Json>> complete;
  for (Row& row : rows) {
    row.results = complete_results(row.settings);
    if (row.results) {
      complete.emplace_back(row.run->name, *row.results);
      continue;
    }
    row.failure = failure_of(row.settings).value_or("");
    if (row.failure.empty() && fs::exists(row.settings.common.out))
      say(stderr, "note: {}: incomplete or of other settings, and so not in the tables\n",
          row.settings.common.out);
  }
  check_same_data(complete);
}

// NaN where there is none; JSON writes what is not finite as null.
double score(const Json& results, const std::string& split, const char* name) {
  const Json& scores = results.at("scores");
  if (!scores.contains(split) || !scores.at(split).at(name).is_number()) return NAN;
  return scores.at(split).at(name).get<double>();
}

std::string shown(double value, int digits) {
  return std::isnan(value) ? "" : fmt::format("{:.{}f}", value, digits);
}

void write_tables(const RunDirectory& out, const Settings& settings, const std::vector<Row>& rows) {
  std::vector<std::string> columns{"run",          "question",         "updates",
                                   "valid_loss",   "valid_perplexity", "valid_bleu",
                                   "wall_seconds", "failure"};
  for (const std::string& split : settings.test) columns.push_back(split + "_bleu");
  std::vector<std::vector<CsvValue>> cells;
  std::string page = fmt::format(
      "Every run: {}; {} and no more, so that scores are for comparison alone; updates of at most "
      "{} tokens, warm-up {}, seed {}; {}, beam {}.\n\n"
      "| run | | updates | validation loss | perplexity | BLEU: val |",
      settings.toy ? "toy" : fmt::format("{}-{}", settings.source, settings.target),
      settings.max_updates > 0 ? fmt::format("{} updates", group_digits(settings.max_updates))
                               : fmt::format("{} epochs", settings.epochs),
      group_digits(settings.batch_tokens * settings.accumulate), settings.warmup,
      settings.common.seed,
      settings.average > 0 ? fmt::format("the mean of the last {} epochs", settings.average)
                           : "the epoch of the lowest validation loss",
      settings.beam);
  std::string rule = "\n|---|---|---|---|---|---|";
  for (const std::string& split : settings.test) {
    page += fmt::format(" {} |", split);
    rule += "---|";
  }
  page += rule + "\n";
  for (const Row& row : rows) {
    if (!row.results && row.failure.empty()) continue;
    std::vector<CsvValue> line{std::string(row.run->name), std::string(row.run->question)};
    if (!row.results) {
      line.resize(7);
      line.emplace_back(row.failure);
      line.resize(columns.size());
      page += fmt::format("| `{}` | {} | {} |\n", row.run->name, row.run->question, row.failure);
    } else {
      const Json& r = *row.results;
      const double loss = score(r, "val", "loss"), bleu = score(r, "val", "bleu");
      const auto updates = r.at("updates").get<int64_t>();
      line.insert(line.end(), {updates, csv_number(loss), csv_number(std::exp(loss)),
                               csv_number(bleu), r.at("wall_seconds").get<double>(), CsvValue{}});
      page += fmt::format("| `{}` | {} | {} | {} | {} | {} |", row.run->name, row.run->question,
                          group_digits(updates), shown(loss, 3), shown(std::exp(loss), 2),
                          shown(bleu, 2));
      for (const std::string& split : settings.test) {
        const double test = score(r, split, "bleu");
        line.push_back(csv_number(test));
        page += fmt::format(" {} |", shown(test, 2));
      }
      page += "\n";
    }
    cells.push_back(std::move(line));
  }
  CsvWriter(out.file("study.csv"), columns, cells);
  write_file_atomically(out.file("study.md"), std::string_view(page));
  say("\n{}\n", page);
}

void draw(const RunDirectory& out, const std::vector<Row>& rows) {
  std::vector<std::string> figure3, all;
  for (const Row& row : rows) {
    if (!row.results) continue;
    const std::string folder = out.file(row.run->name);
    all.push_back(folder);
    if (row.run->name == "softmax" || row.run->name == "softmax-ppsbn") figure3.push_back(folder);
  }
  if (figure3.size() == 2) draw_runs(figure3, Band::range, out.file("figure3"));
  if (!all.empty()) draw_runs(all, Band::range, out.file("curves"));
}

}  // namespace

std::span<const StudyRun> study_runs() {
  return kRuns;
}

Multi30kSettings study_settings() {
  Multi30kSettings s;
  apply_preset(s, "transformer-tiny");
  // Its recipe is made for thousands of updates: 1,500 of 4,096 tokens (5.8 million target tokens)
  // came to BLEU 22, this one came to 27 in 800 of 2,048 (1.5 million; En-De, val, greedy).
  s.norm = "pre";
  s.dropout = 0.1;
  s.batch_tokens = 2048;
  s.lr = 2e-3;
  s.warmup = 200;
  s.clip = 1.0;
  s.max_updates = 1500;
  s.patience = 0;
  s.average = 0;
  s.bleu_every = 1;
  s.test = {"test_2016_flickr"};
  return s;
}

int run_study(const Multi30kSettings& settings, const std::vector<std::string>& only) {
  std::vector<const StudyRun*> asked;
  for (const std::string& name : only) asked.push_back(&study_run(name));
  const RunDirectory out(settings.common.out, "multi30k-study", Holds::runs);
  if (settings.common.out.empty()) say("--out {} goes on with these runs\n", out.path());
  const auto wanted = [&](const StudyRun& run) {
    return only.empty() || std::find(asked.begin(), asked.end(), &run) != asked.end();
  };
  // Every row is checked before the first one runs for half an hour.
  std::vector<Row> rows;
  for (const StudyRun& run : kRuns) {
    Row& row = rows.emplace_back(Row{&run, settings, {}, ""});
    run.change(row.settings);
    row.settings.common.out = out.file(run.name);
    if (!wanted(run)) continue;
    check_settings(row.settings);
    check_run_to_end(row.settings, std::string(run.name));
  }
  for (const Row& row : rows) {
    if (!wanted(*row.run)) continue;
    try {
      if (const int code = run_to_end(row.settings, std::string(row.run->name)); code != 0)
        return code;
    } catch (const NotFinite& error) {
      say(stderr, "{}: {}\n", row.run->name, error.what());
    }
  }
  read_rows(rows);
  write_tables(out, settings, rows);
  try {
    draw(out, rows);
  } catch (const std::exception& error) {
    say(stderr, "warning: the curves are not drawn: {}\n", error.what());
  }
  return std::any_of(rows.begin(), rows.end(),
                     [&](const Row& row) { return wanted(*row.run) && row.results; })
             ? 0
             : 1;
}

int study_command(int argc, const char* const* argv) {
  Multi30kSettings settings = study_settings();
  if (asks_for_toy(argc, argv)) make_toy(settings);
  std::vector<std::string> only;
  bool list = false;
  return run_program(
      argc, argv, "multi30k study",
      "Trains a table of models, one factor at a time, and compares them; --out goes on with it.",
      [&](Options& options) {
        declare_options(options, settings, /*one_model=*/false);
        options.refuse(
            kRowOptions,
            "is set by the rows of the study; leave it out, and choose rows with --only");
        options.words("--only", only,
                      "Rows to train (default: all); the tables hold every complete one");
        options.flag("--list", list, "Print the rows and end");
      },
      [&] {
        if (list) {
          for (const StudyRun& run : study_runs()) say("{:28} {}\n", run.name, run.question);
          return 0;
        }
        return run_study(settings, only);
      });
}

}  // namespace macgrad::experiments
