// Reading the tables that CsvWriter leaves (output_files.h), and those of other programs.
#pragma once

#include <string>
#include <vector>

namespace macgrad::experiments {

struct CsvTable {
  std::string path;
  std::vector<std::string> columns;
  std::vector<std::vector<std::string>> rows;  // each as long as `columns`

  /// Numbers of a column; cells that are empty or "nan" are NaN. Empty when there is no such
  /// column; throws naming file and line for a cell that is no number.
  std::vector<double> numbers(const std::string& column) const;
};

/// Throws naming file and line: no header, a column named twice, a row that is too short or too
/// long, an open quote. Quoted cells end on the line they begin.
CsvTable read_csv(const std::string& path);

}  // namespace macgrad::experiments
