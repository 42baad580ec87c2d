// Joins the parts into one run. After each epoch metrics.csv, translations, model files and the
// checkpoint are written, the checkpoint last: whenever a run is killed, the next sitting writes
// again what is newer than its checkpoint. Ctrl-C ends a run after the update under way.
#include "macgrad/experiments/multi30k/run.h"

#include <chrono>
#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "macgrad/experiments/common/interrupt.h"
#include "macgrad/experiments/common/machine.h"
#include "macgrad/experiments/common/output_files.h"
#include "macgrad/experiments/common/progress.h"
#include "macgrad/experiments/multi30k/metrics.h"
#include "macgrad/experiments/multi30k/plot.h"
#include "macgrad/experiments/multi30k/resume.h"
#include "macgrad/experiments/multi30k/run_files.h"
#include "macgrad/experiments/multi30k/split_scores.h"
#include "macgrad/experiments/multi30k/training.h"

namespace macgrad::experiments {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

StepReport step_report(const nn::StepReport& r, const nn::TrainingStepBase& step,
                       bool denominators) {
  StepReport report{r.step, {{"loss", r.loss}, {"norm", r.gradient_norm}, {"lr", r.lr}}, r.count};
  if (step.replays() > 0)
    report.fields.emplace_back("replayed",
                               static_cast<double>(step.replays()) / static_cast<double>(r.step));
  if (step.left_out() > 0)
    report.fields.emplace_back("large draws", static_cast<double>(step.left_out()));
  if (denominators) {
    report.fields.emplace_back("floored", static_cast<double>(r.denominators.floored));
    report.fields.emplace_back("ratio", r.denominators.smallest_ratio);
  }
  return report;
}

std::string epoch_line(const Metrics& m, const EpochSummary& e, bool denominators) {
  std::string line =
      fmt::format("epoch {} | train loss {:.4f} | valid loss {:.4f} | perplexity {:.2f}", m.epoch,
                  m.train_loss, m.valid_loss, m.perplexity());
  if (!std::isnan(m.bleu)) line += fmt::format(" | BLEU {:.2f}", m.bleu);
  line += fmt::format(" | {} | {} tok/s", format_duration(m.seconds),
                      group_digits(std::llround(m.tokens_per_second())));
  if (denominators)
    line += fmt::format(" | {} denominators floored, smallest ratio {}",
                        group_digits(e.denominators.floored),
                        format_short(e.denominators.smallest_ratio));
  return line;
}

// The first `count`; 0: all.
std::vector<std::string> first_lines(std::vector<std::string> lines, int64_t count) {
  if (count > 0) lines.resize(std::min(lines.size(), static_cast<size_t>(count)));
  return lines;
}

void print_start(const Multi30kSettings& s, const TranslationData& data, Trainer& trainer,
                 const std::string& folder) {
  say("{}: {} training and {} validation pairs, vocabularies of {} and {} tokens\n", data.name,
      group_digits(static_cast<int64_t>(data.train.size())),
      group_digits(static_cast<int64_t>(data.valid.size())), group_digits(data.source.size()),
      group_digits(data.target.size()));
  say("model: {} + {} layers, width {}, {} heads, ffn {}, {}-norm, dropout {}, {} parameters\n",
      s.layers, s.layers, s.d_model, s.heads, s.ffn, s.norm, s.dropout,
      group_digits(trainer.model().parameter_count()));
  say("{}", trainer.model().describe());
  say("training: {} epochs, {} updates of at most {} x {} tokens, lr {} ({}, warm-up {}), label "
      "smoothing {}, {}, {} threads\n",
      s.epochs, group_digits(trainer.total_updates()), s.accumulate, s.batch_tokens, s.lr,
      s.schedule, s.warmup, s.label_smoothing, s.common.precision, s.common.threads);
  if (attention_settings(s).reads("denominator") && !s.ppsbn)
    say("note: without --ppsbn queries and keys have no bound, and neither has the error of random "
        "features\n");
  say("results: {}\n", folder);
  std::fflush(stdout);
}

// The state of a run that its stages share.
class Run {
 public:
  Run(const Multi30kSettings& settings, Start start)
      : settings_(settings),
        has_denominators_(attention_settings(settings).reads("denominator")),
        data_(load_translation_data(settings, start == Start::resume ? settings.common.out : "")),
        tests_(load_tests(settings, data_)),
        trainer_(settings, data_),
        files_(settings, data_, start == Start::resume),
        valid_batches_(ordered_batches(data_.valid, settings.batch_tokens)),
        scored_(first_lines(data_.valid_source, settings.valid_bleu_sentences)),
        references_(first_lines(data_.references, settings.valid_bleu_sentences)) {
    if (start == Start::resume) {
      state_ = files_.load(trainer_.model(), trainer_.optimizer());
      trainer_.restore(state_.place);
      earlier_seconds_ = state_.wall_seconds;
      // Stopped by --max-updates within an epoch, and validated there: the epoch goes on.
      if (validated() && !trainer_.epoch_complete() && !trainer_.finished())
        state_.epochs.pop_back();
      write_metrics(files_.out(), state_.epochs);
    }
    state_.sittings.push_back(sitting());
    // The next --resume goes on with the options given beside this one.
    if (start == Start::resume && files_.saved_settings() != to_json(settings_)) save_checkpoint();
    save_settings("running");
  }

  int run() {
    print_start(settings_, data_, trainer_, files_.out().path());
    if (trainer_.updates() > 0)
      say("resumed after update {} (epoch {})\n", group_digits(trainer_.updates()),
          state_.place.epoch);
    std::fflush(stdout);
    const std::string ended_by = train();
    const bool complete = !guard_.interrupted() && save_results(ended_by);
    save_settings(complete ? "complete" : "interrupted");
    if (complete) {
      print_samples();
      say("Results: {}\n", files_.out().path());
    } else {
      say(stderr, "Interrupted after update {}. {}\n", trainer_.updates(), files_.what_stays());
    }
    if (!state_.epochs.empty()) draw();
    return guard_.exit_code();
  }

 private:
  bool validated() const {
    return !state_.epochs.empty() && state_.epochs.back().epoch == state_.place.epoch;
  }

  // Epochs until the run ends or is interrupted; says why it ended.
  std::string train() {
    Progress progress(trainer_.total_updates(), "step");
    while (!guard_.interrupted()) {
      if (validated()) {
        if (trainer_.finished())
          return state_.place.updates == settings_.max_updates ? "updates" : "epochs";
        if (settings_.patience > 0 && state_.epochs_without_improvement() >= settings_.patience)
          return "patience";
        ++state_.place.epoch;
      }
      train_epoch(progress);
      progress.resume();
    }
    return "interrupt";
  }

  // Trains and validates one epoch, or what is left of it. An interrupted one is left to the next
  // sitting.
  void train_epoch(Progress& progress) {
    const int64_t epoch = state_.place.epoch;
    last_save_ = Clock::now();
    EpochSummary summary;
    try {
      summary = trainer_.train_epoch(epoch, [&](const nn::StepReport& r) {
        progress.step(step_report(r, trainer_.step(), has_denominators_));
        if (r.skipped)
          progress.note(fmt::format("update {} skipped: its gradients are not finite", r.step));
        if (guard_.interrupted()) return false;
        if (settings_.checkpoint_minutes > 0 &&
            seconds_since(last_save_) >= 60 * settings_.checkpoint_minutes)
          save_checkpoint();
        return true;
      });
    } catch (const NotFinite& error) {
      progress.finish();
      const std::string reason = fmt::format("{}. {}", error.what(), files_.what_stays());
      save_settings("failed", reason);
      throw NotFinite("{}", reason);
    }
    Metrics m;
    m.epoch = epoch;
    m.train_loss = summary.loss();
    m.seconds = summary.seconds;
    m.tokens = summary.tokens;
    m.updates = trainer_.updates();
    if (!guard_.interrupted() && validate(m)) {
      const bool best = state_.add(m);
      files_.save_epoch(trainer_.model(), epoch, best);
      write_metrics(files_.out(), state_.epochs);
      progress.note(epoch_line(m, summary, has_denominators_));
    }
    save_checkpoint();
    const std::vector<std::string>& refused = trainer_.step().eager_reasons();
    for (; refusals_told_ < refused.size(); ++refusals_told_)
      progress.note("updates of some batch shapes run eagerly: " + refused[refusals_told_]);
  }

  // False when interrupted.
  bool validate(Metrics& m) {
    const auto loss = validation_loss(trainer_.model(), valid_batches_, settings_.device(), stop_);
    if (!loss) return false;
    m.valid_loss = *loss;
    if (m.epoch % settings_.bleu_every != 0 && !trainer_.finished()) return true;
    const auto scored = score_translations(trainer_.model(), data_.codecs(), scored_, references_,
                                           settings_, {}, stop_);
    if (!scored) return false;
    m.bleu = scored->bleu;
    write_lines(files_.out().file("translations.txt"), scored->translations);
    return true;
  }

  // What has trained from here on: a run may go on elsewhere, and with another program.
  Sitting sitting() const {
    const Json facts = provenance();
    const Json& machine = facts.at("machine").at("model");
    return {trainer_.updates(), facts.at("build").value("commit", ""),
            machine.is_string() ? machine.get<std::string>() : "", settings_.common.device,
            settings_.common.threads};
  }

  void save_checkpoint() {
    state_.place = trainer_.place();
    state_.wall_seconds = earlier_seconds_ + seconds_since(start_);
    files_.save(trainer_.model(), trainer_.optimizer(), state_);
    last_save_ = Clock::now();
  }

  // Scores of the final model; false when interrupted.
  bool save_results(const std::string& ended_by) {
    const Json model = files_.load_final(trainer_.model(), state_);
    const auto scores =
        final_scores(trainer_.model(), data_, tests_, settings_, files_.out(), stop_);
    if (!scores) return false;
    translations_ = read_lines(files_.out().file("translations-val.txt"));
    Json json{{"settings", to_json(settings_)},
              {"model", model},
              {"scores", *scores},
              {"epochs", state_.epochs.size()},
              {"updates", state_.place.updates},
              {"ended_by", ended_by},
              {"best_epoch", state_.best_epoch},
              {"best_valid_loss", state_.best_loss},
              {"wall_seconds", earlier_seconds_ + seconds_since(start_)},
              {"sittings", to_json(state_.sittings)},
              {"data", data_.facts()}};
    json.update(provenance());
    write_json(files_.out().file("results.json"), json);
    return true;
  }

  void save_settings(const std::string& state, const std::string& failure = "") {
    Json json{{"settings", to_json(settings_)},
              {"state", state},
              {"data", data_.facts()},
              {"bleu",
               {{"signature", bleu_signature(1, settings_.bleu())}, {"sentences", scored_.size()}}},
              {"parameters", trainer_.model().parameter_count()},
              {"attention", trainer_.model().describe()},
              {"total_updates", trainer_.total_updates()},
              {"updates", trainer_.updates()},
              {"skipped_updates", trainer_.place().skipped}};
    if (!failure.empty()) json["failure"] = failure;
    json.update(provenance());
    write_json(files_.out().file("settings.json"), json);
  }

  // What cannot be drawn costs no result.
  void draw() const {
    try {
      draw_runs({files_.out().path()}, Band::range, files_.out().file("curves"));
    } catch (const std::exception& error) {
      say(stderr, "warning: the curves are not drawn: {}\n", error.what());
    }
  }

  void print_samples() const {
    for (size_t i = 0; i < std::min<size_t>(3, translations_.size()); ++i)
      say("source      {}\nreference   {}\ntranslation {}\n\n", data_.valid_source[i],
          data_.references[i], translations_[i]);
  }

  const Clock::time_point start_ = Clock::now();
  const Multi30kSettings& settings_;
  const bool has_denominators_;
  const InterruptGuard guard_;
  const Stop stop_ = [this] { return guard_.interrupted(); };
  TranslationData data_;
  std::vector<std::pair<std::string, TranslationSplit>> tests_;
  Trainer trainer_;
  RunFiles files_;
  std::vector<Batch> valid_batches_;
  std::vector<std::string> scored_, references_;  // translated after epochs
  RunState state_;
  double earlier_seconds_ = 0;
  Clock::time_point last_save_ = start_;
  size_t refusals_told_ = 0;
  std::vector<std::string> translations_;
};

}  // namespace

int run_multi30k(Multi30kSettings& settings, Start start) {
  apply_common_options(settings.common);
  check_settings(settings);
  if (start == Start::resume) {
    check_resume(settings);
  } else {
    check_no_run(settings.common.out);
  }
  return Run(settings, start).run();
}

}  // namespace macgrad::experiments
