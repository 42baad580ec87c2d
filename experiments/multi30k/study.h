// `multi30k study`: what ppSBN and each choice of RMFA do to translation, one factor at a time, all
// runs at the same budget of updates. The paper (arXiv 2408.11656) translates with softmax
// attention alone, with and without ppSBN (Figure 3); the rest of the table asks what it leaves
// open.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "macgrad/experiments/multi30k/settings.h"

namespace macgrad::experiments {

struct StudyRun {
  std::string_view name;      // of its folder
  std::string_view question;  // what it answers
  void (*change)(Multi30kSettings& settings);
};
std::span<const StudyRun> study_runs();

/// A model of transformer-tiny's size with a recipe that learns soon and a budget that many runs
/// can afford: pre-norm, dropout 0.1, 1,500 updates of 2,048 tokens, no early stopping.
Multi30kSettings study_settings();

/// Runs the table (or the rows that `only` names) in OUT/NAME, each started, continued or left
/// alone as it needs, then writes OUT/study.csv, study.md and the curves of all rows there that are
/// complete with these settings. A run whose loss is no longer finite is a row that says so.
/// Several processes may train rows of one folder; each writes the tables of what is complete by
/// then. Returns the exit code of the run that was interrupted; 1 when no row asked for is
/// complete, else 0. Throws when complete rows were trained on different data.
int run_study(const Multi30kSettings& settings, const std::vector<std::string>& only);

}  // namespace macgrad::experiments
