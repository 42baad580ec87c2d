// Files that a run leaves behind, each replaced as a whole (core/atomic_file.h), and the folder
// that holds them.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "macgrad/core/atomic_file.h"
#include "macgrad/experiments/common/json_fwd.h"

namespace macgrad::experiments {

/// A line feed after each line.
void write_lines(const std::string& path, const std::vector<std::string>& lines);

/// Indented JSON with a newline at its end; NaN and infinities become null.
void write_json(const std::string& path, const Json& json);

/// Reads JSON; throws naming the file on a missing file or a syntax error.
Json read_json(const std::string& path);

/// One cell; std::monostate is an empty cell. Doubles are written with the fewest digits that read
/// back to the same value ("nan", "inf" when not finite).
using CsvValue = std::variant<std::monostate, std::int64_t, double, std::string>;

/// A number, or an empty cell for NaN: nothing was measured.
CsvValue csv_number(double value);

/// A table of metrics. The file holds all rows so far after every call of row().
class CsvWriter {
 public:
  /// Writes the header at once, so that a wrong path is an error before the run, not after it.
  CsvWriter(std::string path, std::vector<std::string> columns,
            const std::vector<std::vector<CsvValue>>& rows = {});

  /// Appends a row; throws if the number of values differs from the number of columns.
  void row(const std::vector<CsvValue>& values);

  const std::string& path() const { return path_; }

 private:
  void append(const std::vector<CsvValue>& values);

  std::string path_;
  std::size_t columns_;
  std::string text_;
};

/// What a run's folder may hold when it is opened.
enum class Holds {
  other_results,  // files there are named on stderr
  this_run,       // which goes on
  runs            // several runs, each in a folder of its own that it opens itself
};

/// The folder of one run. Earlier results are never replaced in silence: without a requested name a
/// new folder is made, with one the files that already lie there are named on stderr. While the
/// object lives the folder is locked, unless it holds runs: a second run there is an Error.
class RunDirectory {
 public:
  /// `requested` (the value of --out) or, if empty, a new `runs/<program>-<date>-<time>`. Creates
  /// the folder with its parents and tries that it can be written to. A run that goes on loses the
  /// temporary files that a kill left.
  RunDirectory(const std::string& requested, std::string_view program,
               Holds holds = Holds::other_results);

  const std::string& path() const { return path_; }
  std::string file(std::string_view name) const;

  /// Result files of an earlier run found on opening, sorted by name.
  const std::vector<std::string>& earlier() const { return earlier_; }

 private:
  std::string path_;
  std::shared_ptr<const void> lock_;
  std::vector<std::string> earlier_;
};

}  // namespace macgrad::experiments
