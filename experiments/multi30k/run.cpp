// Joins the parts into one run: log lines, and after each epoch metrics.csv, curves, translations
// and the checkpoint. Ctrl-C ends it cleanly, and a failed one says which checkpoint stays.
#include "experiments/multi30k/run.h"

#include <algorithm>
#include <cmath>

#include "experiments/common/interrupt.h"
#include "experiments/common/machine.h"
#include "experiments/common/plots.h"
#include "experiments/common/progress.h"
#include "experiments/multi30k/checkpoint.h"
#include "experiments/multi30k/evaluation.h"
#include "experiments/multi30k/training.h"

namespace macgrad::experiments {
namespace {

// A row of metrics.csv; what was not measured (stopped before validation) is NaN.
struct Metrics {
  int64_t epoch = 0;
  double train_loss = NAN, valid_loss = NAN, bleu = NAN;
  double seconds = 0;  // of the training updates
  int64_t tokens = 0;

  double perplexity() const { return std::exp(valid_loss); }
  double tokens_per_second() const {
    return seconds > 0 ? static_cast<double>(tokens) / seconds : 0.0;
  }
};

std::vector<CsvValue> csv_row(const Metrics& m) {
  std::vector<CsvValue> row{m.epoch};
  for (const double value :
       {m.train_loss, m.valid_loss, m.perplexity(), m.bleu, m.seconds, m.tokens_per_second()}) {
    if (std::isnan(value)) {
      row.emplace_back();
    } else {
      row.emplace_back(value);
    }
  }
  return row;
}

void draw_curves(const RunDirectory& out, const std::vector<Metrics>& rows,
                 const std::string& title) {
  CurvePlot loss, bleu;
  loss.title = bleu.title = title;
  loss.x_label = bleu.x_label = "epoch";
  loss.y_label = "loss a token (nats)";
  bleu.y_label = "BLEU of greedy translations";
  Curve train{"training", {}, {}, {}}, valid{"validation", {}, {}, {}},
      score{"validation", {}, {}, {}};
  for (const Metrics& m : rows) {
    const auto x = static_cast<double>(m.epoch);
    for (Curve* curve : {&train, &valid, &score}) curve->x.push_back(x);
    train.y.push_back(m.train_loss);
    valid.y.push_back(m.valid_loss);
    score.y.push_back(m.bleu);
  }
  loss.curves = {train, valid};
  bleu.curves = {score};
  for (const auto& [plot, name] : {std::pair(&loss, "loss"), std::pair(&bleu, "bleu")}) {
    const std::vector<double>& y = plot->curves.back().y;
    const bool empty = std::all_of(y.begin(), y.end(), [](double v) { return std::isnan(v); });
    // gnuplot fails on curves without points: a run stopped before its first validation.
    if (!empty && !write_plot(*plot, out.file(name))) return;
  }
}

StepReport step_report(const UpdateReport& r, bool rmfa) {
  StepReport report{r.update, {{"loss", r.loss}, {"norm", r.norm}, {"lr", r.lr}}, r.tokens};
  if (r.replays > 0)
    report.fields.emplace_back("replayed",
                               static_cast<double>(r.replays) / static_cast<double>(r.update));
  if (r.large_draws > 0)
    report.fields.emplace_back("large draws", static_cast<double>(r.large_draws));
  if (rmfa) {
    report.fields.emplace_back("floored", static_cast<double>(r.rmfa.floored));
    report.fields.emplace_back("ratio", r.rmfa.smallest_ratio);
  }
  return report;
}

std::string epoch_line(const Metrics& m, const EpochSummary& e, bool rmfa) {
  std::string line = fmt::format(
      "epoch {} | train loss {:.4f} | valid loss {:.4f} | perplexity {:.2f} | BLEU {:.2f} | {} | "
      "{} tok/s",
      m.epoch, m.train_loss, m.valid_loss, m.perplexity(), m.bleu, format_duration(m.seconds),
      group_digits(std::llround(m.tokens_per_second())));
  if (rmfa)
    line += fmt::format(" | {} denominators floored, smallest ratio {}",
                        group_digits(e.rmfa.floored), format_short(e.rmfa.smallest_ratio));
  return line;
}

void print_start(const Multi30kSettings& s, const TranslationData& data, Trainer& trainer,
                 const std::string& folder) {
  fmt::print("{}: {} training and {} validation pairs, vocabularies of {} and {} tokens\n",
             data.name, group_digits(static_cast<int64_t>(data.train.size())),
             group_digits(static_cast<int64_t>(data.valid.size())),
             group_digits(data.source.size()), group_digits(data.target.size()));
  fmt::print(
      "model: {} + {} layers, width {}, {} heads, ffn {}, {}-norm, dropout {}, {} parameters\n",
      s.layers, s.layers, s.d_model, s.heads, s.ffn, s.norm, s.dropout,
      group_digits(trainer.model().parameter_count()));
  fmt::print("{}", trainer.model().describe());
  fmt::print(
      "training: {} epochs, {} updates of at most {} x {} tokens, lr {} ({}, warm-up {}), label "
      "smoothing {}, {}, {} threads\n",
      s.epochs, group_digits(trainer.total_updates()), s.accumulate, s.batch_tokens, s.lr,
      s.schedule, s.warmup, s.label_smoothing, s.common.precision, s.common.threads);
  if (s.attention == "rmfa" && !s.ppsbn)
    fmt::print(
        "note: without --ppsbn queries and keys have no bound, and neither has the error of "
        "RMFA\n");
  fmt::print("results: {}\n", folder);
  std::fflush(stdout);
}

// The state of a run that its stages share.
class Run {
 public:
  explicit Run(const Multi30kSettings& settings)
      : settings_(settings),
        rmfa_(settings.attention == "rmfa"),
        data_(load_translation_data(settings)),
        trainer_(settings, data_),
        out_(settings.common.out, "multi30k"),
        metrics_(out_.file("metrics.csv"), {"epoch", "train_loss", "valid_loss", "valid_perplexity",
                                            "valid_bleu", "seconds", "tokens_per_second"}),
        valid_batches_(ordered_batches(data_.valid, {settings.batch_tokens, 1})) {
    const EncodedPairs scored = first_pairs(data_.valid, settings.valid_bleu_sentences);
    scored_ = scored.size();
    scored_batches_ = ordered_batches(scored, {settings.batch_tokens, 1});
    save_codecs(settings, data_.codecs(), out_.path());
    save_settings("running");
  }

  int run() {
    print_start(settings_, data_, trainer_, out_.path());
    {
      Progress progress(trainer_.total_updates(), "step");
      for (int64_t epoch = 1; epoch <= settings_.epochs && !trainer_.finished(); ++epoch) {
        train_epoch(epoch, progress);
        if (guard_.interrupted()) break;
        progress.resume();
      }
    }
    const bool complete = !guard_.interrupted();
    save_settings(complete ? "complete" : "interrupted");
    draw_curves(out_, rows_,
                fmt::format("{}, {}{}", data_.name, settings_.attention,
                            settings_.ppsbn ? " + ppSBN" : ""));
    if (complete) {
      print_samples();
      fmt::print("Results: {}\n", out_.path());
    } else {
      fmt::print(stderr, "Interrupted: checkpoint after update {} and metrics are in {}\n",
                 trainer_.updates(), out_.path());
    }
    return guard_.exit_code();
  }

 private:
  // Trains, validates, and saves checkpoint and metrics; when interrupted, saves what there is.
  void train_epoch(int64_t epoch, Progress& progress) {
    EpochSummary summary;
    try {
      summary = trainer_.train_epoch(epoch, [&](const UpdateReport& r) {
        progress.step(step_report(r, rmfa_));
        if (r.skipped)
          progress.note(fmt::format("update {} skipped: its gradients are not finite", r.update));
        return !guard_.interrupted();
      });
    } catch (const NotFinite& error) {
      progress.finish();
      save_settings("failed");
      throw Error("{}. {}", error.what(),
                  saved_epoch_ > 0 ? fmt::format("The checkpoint of epoch {} stays in {}",
                                                 saved_epoch_, out_.file("checkpoint.safetensors"))
                                   : std::string("There is no checkpoint: no epoch had ended"));
    }
    Metrics m;
    m.epoch = epoch;
    m.train_loss = summary.loss;
    m.seconds = summary.seconds;
    m.tokens = summary.tokens;
    save_checkpoint(out_.file("checkpoint.safetensors"), trainer_.model(), trainer_.optimizer(),
                    {epoch, trainer_.updates()}, settings_);
    saved_epoch_ = epoch;
    if (!guard_.interrupted()) validate(m);
    metrics_.row(csv_row(m));
    rows_.push_back(m);
    progress.note(epoch_line(m, summary, rmfa_));
    const std::vector<std::string> refused = trainer_.refused_replays();
    for (; refusals_told_ < refused.size(); ++refusals_told_)
      progress.note("updates of some batch shapes run eagerly: " + refused[refusals_told_]);
  }

  void validate(Metrics& m) {
    const Stop stop = [&] { return guard_.interrupted(); };
    const auto loss = validation_loss(trainer_.model(), valid_batches_, settings_.device(), stop);
    if (!loss) return;
    m.valid_loss = *loss;
    const auto lines = translate(trainer_.model(), data_.target, scored_batches_, scored_,
                                 settings_.device(), stop);
    if (!lines) return;
    translations_ = *lines;
    const std::vector<std::string> references(
        data_.references.begin(), data_.references.begin() + static_cast<std::ptrdiff_t>(scored_));
    m.bleu = corpus_bleu(translations_, {references}, settings_.bleu()).score;
    std::string text;
    for (const std::string& line : translations_) text += line + "\n";
    write_file_atomically(out_.file("translations.txt"), std::string_view(text));
  }

  void save_settings(const std::string& state) {
    Json json{{"settings", to_json(settings_)},
              {"state", state},
              {"data", data_.facts},
              {"bleu",
               {{"signature", bleu_signature(1, settings_.bleu())},
                {"sentences", scored_},
                {"translations", "greedy"}}},
              {"parameters", trainer_.model().parameter_count()},
              {"attention", trainer_.model().describe()},
              {"total_updates", trainer_.total_updates()},
              {"updates", trainer_.updates()},
              {"skipped_updates", trainer_.optimizer().skipped()}};
    json.update(provenance());
    write_json(out_.file("settings.json"), json);
  }

  void print_samples() const {
    for (size_t i = 0; i < std::min<size_t>(3, translations_.size()); ++i)
      fmt::print("source      {}\nreference   {}\ntranslation {}\n\n", data_.valid_source[i],
                 data_.references[i], translations_[i]);
  }

  const Multi30kSettings& settings_;
  const bool rmfa_;
  const InterruptGuard guard_;
  TranslationData data_;
  Trainer trainer_;
  RunDirectory out_;
  CsvWriter metrics_;
  std::vector<Batch> valid_batches_;
  std::vector<Batch> scored_batches_;
  size_t scored_ = 0;
  int64_t saved_epoch_ = 0;
  size_t refusals_told_ = 0;
  std::vector<Metrics> rows_;
  std::vector<std::string> translations_;
};

}  // namespace

int run_multi30k(Multi30kSettings& settings) {
  apply_common_options(settings.common);
  check_settings(settings);
  return Run(settings).run();
}

}  // namespace macgrad::experiments
