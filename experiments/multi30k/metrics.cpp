// One list of columns serves the table and the JSON lines.
#include "macgrad/experiments/multi30k/metrics.h"

#include <nlohmann/json.hpp>

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

}  // namespace macgrad::experiments
