// Tables, JSON and lines as files, and the folder of a run with its lock.
#include "macgrad/experiments/common/output_files.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "macgrad/core/error.h"
#include "macgrad/experiments/common/progress.h"

namespace macgrad::experiments {
namespace fs = std::filesystem;
namespace {

class Folder {
 public:
  explicit Folder(const std::string& path)
      : descriptor_(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)) {}
  ~Folder() {
    if (descriptor_ >= 0) ::close(descriptor_);
  }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  int descriptor() const { return descriptor_; }

 private:
  int descriptor_;
};

// Holds the folder until the result is gone; a process that ends lets go of it, however it ends.
std::shared_ptr<const void> lock_folder(const std::string& path) {
  auto folder = std::make_shared<Folder>(path);
  // File systems without locks refuse otherwise, and then nothing is held.
  require(::flock(folder->descriptor(), LOCK_EX | LOCK_NB) == 0 || errno != EWOULDBLOCK,
          "{}: another run is writing there; wait for its end, or pass another --out", path);
  return folder;
}

std::string csv_cell(const CsvValue& value) {
  if (const auto* integer = std::get_if<std::int64_t>(&value)) return fmt::format("{}", *integer);
  if (const auto* real = std::get_if<double>(&value)) {
    if (std::isnan(*real)) return "nan";
    return fmt::format("{}", *real);
  }
  const auto* text = std::get_if<std::string>(&value);
  if (text == nullptr) return "";
  if (text->find_first_of(",\"\r\n") == std::string::npos) return *text;
  std::string quoted = "\"";
  for (char c : *text) quoted.append(c == '"' ? 2 : 1, c);
  return quoted + '"';
}

}  // namespace

void write_lines(const std::string& path, const std::vector<std::string>& lines) {
  std::string text;
  for (const std::string& line : lines) text += line + "\n";
  write_file_atomically(path, std::string_view(text));
}

void write_json(const std::string& path, const Json& json) {
  // Text from outside (a host name, a path) may not be UTF-8: replaced rather than lost with the
  // run.
  const auto replace = Json::error_handler_t::replace;
  write_file_atomically(path, std::string_view(json.dump(2, ' ', false, replace) + "\n"));
}

Json read_json(const std::string& path) {
  std::ifstream file(path);
  if (!file) throw Error("{}: cannot open: {}", path, std::strerror(errno));
  try {
    return Json::parse(file);
  } catch (const nlohmann::json::exception& error) {
    throw Error("{}: not valid JSON: {}", path, error.what());
  }
}

CsvValue csv_number(double value) {
  return std::isnan(value) ? CsvValue{} : CsvValue{value};
}

CsvWriter::CsvWriter(std::string path, std::vector<std::string> columns,
                     const std::vector<std::vector<CsvValue>>& rows)
    : path_(std::move(path)), columns_(columns.size()) {
  append({columns.begin(), columns.end()});
  for (const auto& values : rows) append(values);
  write_file_atomically(path_, std::string_view(text_));
}

void CsvWriter::append(const std::vector<CsvValue>& values) {
  if (values.size() != columns_) {
    throw Error("{}: a row of {} values in a table of {} columns", path_, values.size(), columns_);
  }
  std::string line;
  for (const CsvValue& value : values) {
    if (&value != &values.front()) line += ',';
    line += csv_cell(value);
  }
  text_ += line + "\n";
}

void CsvWriter::row(const std::vector<CsvValue>& values) {
  append(values);
  write_file_atomically(path_, std::string_view(text_));
}

RunDirectory::RunDirectory(const std::string& requested, std::string_view program, Holds holds) {
  std::error_code error;
  if (!requested.empty()) {
    path_ = requested;
    fs::create_directories(path_, error);
    if (error) throw Error("--out {}: cannot create the folder: {}", path_, error.message());
    if (!fs::is_directory(path_)) throw Error("--out {}: exists and is not a folder", path_);
  } else {
    fs::create_directories("runs", error);
    if (error) throw Error("runs: cannot create the folder: {}; pass --out DIR", error.message());
    const std::time_t now = std::time(nullptr);
    std::tm local{};
    localtime_r(&now, &local);
    char stamp[32];
    std::strftime(stamp, sizeof stamp, "%Y%m%d-%H%M%S", &local);
    const std::string base = fmt::format("runs/{}-{}", program, stamp);
    path_ = base;
    // create_directory is false for an existing folder: two runs of one second get two folders.
    for (int i = 2; !fs::create_directory(path_, error); ++i) {
      if (error) throw Error("{}: cannot create the folder: {}", path_, error.message());
      path_ = fmt::format("{}-{}", base, i);
    }
  }
  if (::access(path_.c_str(), W_OK | X_OK) != 0) {
    throw Error("{}: cannot write there: {}; pass --out DIR", path_, std::strerror(errno));
  }
  if (holds != Holds::runs) lock_ = lock_folder(path_);
  if (holds != Holds::other_results) remove_abandoned_files(path_);
  for (const auto& entry : fs::directory_iterator(path_)) {
    if (entry.is_regular_file()) earlier_.push_back(entry.path().filename().string());
  }
  std::sort(earlier_.begin(), earlier_.end());
  if (!earlier_.empty() && holds == Holds::other_results) {
    say(stderr, "note: {} holds earlier results; files of the same name are replaced: {}\n", path_,
        fmt::join(earlier_, ", "));
  }
}

std::string RunDirectory::file(std::string_view name) const {
  return (fs::path(path_) / name).string();
}

}  // namespace macgrad::experiments
