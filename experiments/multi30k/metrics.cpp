// One list of columns serves the table and the JSON lines.
#include "experiments/multi30k/metrics.h"

#include <algorithm>

#include "experiments/common/plots.h"

namespace macgrad::experiments {
namespace {

const std::vector<std::string> kColumns{
    "epoch",      "train_loss", "valid_loss",        "valid_perplexity",
    "valid_bleu", "seconds",    "tokens_per_second", "updates"};

std::vector<CsvValue> cells(const Metrics& m) {
  std::vector<CsvValue> row{m.epoch};
  for (const double value :
       {m.train_loss, m.valid_loss, m.perplexity(), m.bleu, m.seconds, m.tokens_per_second()}) {
    if (std::isnan(value)) {
      row.emplace_back();
    } else {
      row.emplace_back(value);
    }
  }
  row.emplace_back(m.updates);
  return row;
}

Json json_line(const Metrics& m) {
  Json line;
  const std::vector<CsvValue> row = cells(m);
  for (size_t i = 0; i < row.size(); ++i)
    std::visit(
        [&](const auto& value) {
          if constexpr (std::is_same_v<std::decay_t<decltype(value)>, std::monostate>)
            line[kColumns[i]] = nullptr;
          else
            line[kColumns[i]] = value;
        },
        row[i]);
  return line;
}

}  // namespace

void write_metrics(const RunDirectory& out, const std::vector<Metrics>& epochs) {
  std::vector<std::vector<CsvValue>> rows;
  std::string lines;
  for (const Metrics& m : epochs) {
    rows.push_back(cells(m));
    lines += json_line(m).dump() + "\n";
  }
  CsvWriter(out.file("metrics.csv"), kColumns, rows);
  write_file_atomically(out.file("metrics.jsonl"), std::string_view(lines));
}

void draw_curves(const RunDirectory& out, const std::vector<Metrics>& epochs,
                 const std::string& title) {
  CurvePlot loss, bleu;
  loss.title = bleu.title = title;
  loss.x_label = bleu.x_label = "epoch";
  loss.y_label = "loss a token (nats)";
  bleu.y_label = "BLEU of translations";
  Curve train{"training", {}, {}, {}}, valid{"validation", {}, {}, {}},
      score{"validation", {}, {}, {}};
  for (const Metrics& m : epochs) {
    const auto x = static_cast<double>(m.epoch);
    for (Curve* curve : {&train, &valid}) curve->x.push_back(x);
    train.y.push_back(m.train_loss);
    valid.y.push_back(m.valid_loss);
    if (std::isnan(m.bleu)) continue;  // --bleu-every
    score.x.push_back(x);
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

}  // namespace macgrad::experiments
