#include "macgrad/experiments/common/csv.h"

#include <algorithm>
#include <charconv>
#include <cmath>

#include "macgrad/core/error.h"
#include "macgrad/experiments/common/text_files.h"

namespace macgrad::experiments {
namespace {

std::vector<std::string> split_cells(const std::string& line, const std::string& where) {
  std::vector<std::string> cells(1);
  bool quoted = false;
  for (size_t i = 0; i < line.size(); ++i) {
    const char c = line[i];
    if (quoted) {
      if (c != '"') {
        cells.back() += c;
      } else if (i + 1 < line.size() && line[i + 1] == '"') {
        cells.back() += '"';
        ++i;
      } else {
        quoted = false;
        require(i + 1 == line.size() || line[i + 1] == ',',
                "{}: text after a closing quote; the file is damaged", where);
      }
    } else if (c == ',') {
      cells.emplace_back();
    } else if (c == '"' && cells.back().empty()) {
      quoted = true;
    } else {
      cells.back() += c;
    }
  }
  require(!quoted, "{}: a quote is not closed; the file is damaged", where);
  return cells;
}

}  // namespace

CsvTable read_csv(const std::string& path) {
  const std::vector<std::string> lines = read_lines(path);
  require(!lines.empty(), "{}: line 1: the file is empty, a header was expected", path);
  CsvTable table{path, split_cells(lines[0], path + ": line 1"), {}};
  for (auto column = table.columns.begin(); column != table.columns.end(); ++column)
    require(std::count(table.columns.begin(), column, *column) == 0,
            "{}: line 1: column \"{}\" stands there twice", path, *column);
  for (size_t i = 1; i < lines.size(); ++i) {
    table.rows.push_back(split_cells(lines[i], path + ": line " + std::to_string(i + 1)));
    require(table.rows.back().size() == table.columns.size(),
            "{}: line {}: {} cells under {} columns; the file is damaged", path, i + 1,
            table.rows.back().size(), table.columns.size());
  }
  return table;
}

std::vector<double> CsvTable::numbers(const std::string& column) const {
  const auto found = std::find(columns.begin(), columns.end(), column);
  if (found == columns.end()) return {};
  const auto at = static_cast<size_t>(found - columns.begin());
  std::vector<double> values;
  for (size_t i = 0; i < rows.size(); ++i) {
    const std::string& cell = rows[i][at];
    double value = NAN;
    if (!cell.empty()) {
      const auto [end, error] = std::from_chars(cell.data(), cell.data() + cell.size(), value);
      require(error == std::errc() && end == cell.data() + cell.size(),
              "{}: line {}: {} is \"{}\", not a number", path, i + 2, column, cell);
    }
    values.push_back(value);
  }
  return values;
}

}  // namespace macgrad::experiments
