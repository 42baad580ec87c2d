// Reading text: lines of plain and gzip files, pairs of parallel files, and the layout of the
// public Multi30K repository. Everything that can be wrong with a file (missing, truncated, not
// UTF-8, unequal line counts) is a macgrad::Error that names the file and the line.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace macgrad::experiments {

/// Lines of a UTF-8 text file without their line ends ("\n" or "\r\n"); a byte order mark at the
/// start is dropped. Names ending in ".gz" are decompressed. Throws on a missing or unreadable
/// file, damaged or truncated gzip data, invalid UTF-8 and NUL bytes, naming file and line.
std::vector<std::string> read_lines(const std::string& path);

/// Line i of `source` translates to line i of `target`.
struct ParallelText {
  std::vector<std::string> source;
  std::vector<std::string> target;
  std::size_t size() const { return source.size(); }
};

/// Reads two files line by line; throws when their line counts differ, naming both.
ParallelText read_parallel(const std::string& source_path, const std::string& target_path);

enum class Multi30kForm {
  tokenized,  // data/task1/tok: lower case, normalised, tokenised; words are separated by spaces
  raw,        // data/task1/raw: sentences as written
};

/// Folder `.../data/task1` of a copy of https://github.com/multi30k/dataset. Looks in `option` (the
/// value of --data) if it is not empty, else in $MULTI30K_DIR, else in ./data/multi30k; each may be
/// the repository's root or a folder on the way down. Throws with the clone command if it is not
/// there.
std::string find_multi30k(const std::string& option);

/// One split ("train", "val", "test_2016_flickr", ...) from the folder that find_multi30k returned.
/// Languages are file suffixes ("de", "en", "fr", "cs"). Plain and .gz files are both accepted.
ParallelText load_multi30k(const std::string& task1, std::string_view split,
                           std::string_view source_language, std::string_view target_language,
                           Multi30kForm form = Multi30kForm::tokenized);

}  // namespace macgrad::experiments
