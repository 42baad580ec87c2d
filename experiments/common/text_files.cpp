// zlib reads both plain and gzip files through one stream; what it would let pass (a ".gz" that is
// not gzip, a stream that ends early) is checked here.
#include "macgrad/experiments/common/text_files.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <zlib.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <memory>
#include <set>

#include "macgrad/core/error.h"
#include "macgrad/experiments/common/unicode.h"

namespace macgrad::experiments {
namespace fs = std::filesystem;
namespace {

constexpr char kCloneCommand[] = "git clone https://github.com/multi30k/dataset data/multi30k";

struct CloseGz {
  void operator()(gzFile file) const { gzclose(file); }
};
using GzStream = std::unique_ptr<gzFile_s, CloseGz>;

// The whole file, decompressed.
std::string read_all(const std::string& path) {
  std::error_code ignored;
  if (fs::is_directory(path, ignored)) throw Error("{}: is a folder, not a text file", path);
  errno = 0;
  GzStream stream(gzopen(path.c_str(), "rb"));
  if (!stream) {
    throw Error("{}: cannot open: {}", path, errno != 0 ? std::strerror(errno) : "out of memory");
  }
  gzbuffer(stream.get(), 1 << 17);

  std::string text;
  std::vector<char> buffer(1 << 18);
  const bool compressed = path.ends_with(".gz");
  while (true) {
    errno = 0;
    const int count = gzread(stream.get(), buffer.data(), static_cast<unsigned>(buffer.size()));
    if (count > 0) text.append(buffer.data(), static_cast<std::size_t>(count));
    if (count == static_cast<int>(buffer.size())) continue;
    int code = Z_OK;
    const char* reason = gzerror(stream.get(), &code);
    if (count < 0 || (code != Z_OK && code != Z_STREAM_END)) {
      std::size_t lines = 0;
      for (char c : text) lines += c == '\n';
      if (code == Z_BUF_ERROR) reason = "the compressed file is truncated";
      if (code == Z_ERRNO) reason = std::strerror(errno);
      throw Error("{}: line {}: {}; fetch the file again", path, lines + 1, reason);
    }
    if (count == 0) break;
  }
  if (compressed && gzdirect(stream.get()) != 0) {
    throw Error("{}: line 1: not a gzip file, although its name ends in .gz", path);
  }
  return text;
}

bool has_splits(const fs::path& folder) {
  std::error_code ignored;
  return fs::is_directory(folder / "tok", ignored) || fs::is_directory(folder / "raw", ignored);
}

// "" when no folder of the way down from `root` holds tok/ or raw/.
std::string task1_below(const fs::path& root) {
  for (const char* below : {"data/task1", "task1", "."}) {
    const fs::path folder = (root / below).lexically_normal();
    if (has_splits(folder)) return folder.string();
  }
  return "";
}

// "SPLIT.LANGUAGE" of the files that stand beside `path`, as "train.de, train.en, val.de".
std::string others_beside(const fs::path& path, std::string_view form) {
  std::set<std::string> names;
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator(path.parent_path(), ignored)) {
    fs::path name = entry.path().filename();
    if (name.extension() == ".gz") name = name.stem();
    const std::string split = name.stem().string();
    if (!split.ends_with(form)) continue;
    names.insert(split.substr(0, split.size() - form.size()) + name.extension().string());
  }
  return names.empty() ? "none" : fmt::format("{}", fmt::join(names, ", "));
}

// `path`, or path.gz. `form` stands between split and language.
std::string plain_or_gz(const fs::path& path, std::string_view form) {
  const std::string plain = path.string();
  const std::string gz = plain + ".gz";
  std::error_code ignored;
  if (fs::exists(plain, ignored)) return plain;
  if (fs::exists(gz, ignored)) return gz;
  throw Error(
      "{}: no such file (nor {}); there are {}: choose another split or language, or fetch the "
      "whole repository with: {}",
      plain, path.filename().string() + ".gz", others_beside(path, form), kCloneCommand);
}

}  // namespace

std::vector<std::string> read_lines(const std::string& path) {
  const std::string text = read_all(path);
  std::vector<std::string> lines;
  std::size_t start = text.starts_with("\xEF\xBB\xBF") ? 3 : 0;
  while (start < text.size()) {
    std::size_t end = text.find('\n', start);
    if (end == std::string::npos) end = text.size();
    std::string_view line(text.data() + start, end - start);
    if (line.ends_with('\r')) line.remove_suffix(1);
    if (const std::size_t bad = find_invalid_utf8(line); bad != std::string_view::npos) {
      throw Error("{}: line {}: byte {} (0x{:02X}) is not valid UTF-8; convert the file to UTF-8",
                  path, lines.size() + 1, bad + 1, static_cast<unsigned char>(line[bad]));
    }
    if (const std::size_t nul = line.find('\0'); nul != std::string_view::npos) {
      throw Error("{}: line {}: byte {} is NUL; this is not a UTF-8 text file", path,
                  lines.size() + 1, nul + 1);
    }
    lines.emplace_back(line);
    start = end + 1;
  }
  return lines;
}

ParallelText read_parallel(const std::string& source_path, const std::string& target_path) {
  ParallelText text{read_lines(source_path), read_lines(target_path)};
  if (text.source.size() != text.target.size()) {
    const bool source_longer = text.source.size() > text.target.size();
    throw Error("unequal line counts: {} has {} lines, {} has {}; line {} of {} has no translation",
                source_path, text.source.size(), target_path, text.target.size(),
                std::min(text.source.size(), text.target.size()) + 1,
                source_longer ? source_path : target_path);
  }
  return text;
}

std::string find_multi30k(const std::string& option) {
  const char* environment = std::getenv("MULTI30K_DIR");
  std::string folder = "data/multi30k";
  std::string origin = "./data/multi30k";
  if (!option.empty()) {
    folder = option;
    origin = "--data " + option;
  } else if (environment != nullptr && *environment != '\0') {
    folder = environment;
    origin = std::string("MULTI30K_DIR=") + environment;
  }
  const std::string found = task1_below(folder);
  if (!found.empty()) return found;
  throw Error(
      "no Multi30K data: {} has no data/task1/tok or data/task1/raw; fetch it with\n"
      "    {}\n"
      "and pass --data DIR (or set MULTI30K_DIR) if it lies elsewhere",
      origin, kCloneCommand);
}

ParallelText load_multi30k(const std::string& task1, std::string_view split,
                           std::string_view source_language, std::string_view target_language,
                           Multi30kForm form) {
  const auto file = [&](std::string_view language) {
    const std::string_view middle = form == Multi30kForm::tokenized ? ".lc.norm.tok" : "";
    const std::string name = fmt::format("{}{}.{}", split, middle, language);
    return plain_or_gz(fs::path(task1) / (form == Multi30kForm::raw ? "raw" : "tok") / name,
                       middle);
  };
  const std::string source_path = file(source_language);
  ParallelText text = read_parallel(source_path, file(target_language));
  if (text.size() == 0) throw Error("{}: line 1: the file is empty", source_path);
  return text;
}

}  // namespace macgrad::experiments
