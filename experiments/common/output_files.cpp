// Atomic replacement as POSIX has it: write beside, fsync, rename, fsync the folder.
#include "experiments/common/output_files.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "core/error.h"
#include "experiments/common/progress.h"

namespace macgrad::experiments {
namespace fs = std::filesystem;
namespace {

class Descriptor {
 public:
  Descriptor(const std::string& path, int flags) : value_(::open(path.c_str(), flags, 0666)) {}
  ~Descriptor() {
    if (value_ >= 0) ::close(value_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;

  int get() const { return value_; }
  // Closing is where a network file system reports a failed write.
  bool close() {
    const int old = value_;
    value_ = -1;
    return ::close(old) == 0;
  }

 private:
  int value_;
};

// Removes the temporary file unless it was renamed.
class TemporaryFile {
 public:
  explicit TemporaryFile(const std::string& target) {
    static std::atomic<unsigned> serial{0};
    path_ = fmt::format("{}.tmp-{}-{}", target, ::getpid(), serial++);
  }
  ~TemporaryFile() {
    if (!path_.empty()) ::unlink(path_.c_str());
  }
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;

  const std::string& path() const { return path_; }
  void renamed() { path_.clear(); }

 private:
  std::string path_;
};

// The digits at the end of `text` as a number, and their removal; -1 without any.
int64_t take_number(std::string_view& text) {
  const size_t begin = text.find_last_not_of("0123456789") + 1;
  int64_t number = -1;
  const auto parsed = std::from_chars(text.data() + begin, text.data() + text.size(), number);
  if (parsed.ec != std::errc()) return -1;
  text = text.substr(0, begin);
  return number;
}

bool take_suffix(std::string_view& text, std::string_view suffix) {
  if (!text.ends_with(suffix)) return false;
  text.remove_suffix(suffix.size());
  return true;
}

// The process that made a temporary file: NAME.tmp-PID-SERIAL (TemporaryFile) or
// NAME.safetensors.PID.tmp (save_safetensors); -1 for other names.
int64_t maker_of(std::string_view name) {
  std::string_view rest = name;
  if (take_suffix(rest, ".tmp")) {
    const int64_t process = take_number(rest);
    return process > 0 && rest.ends_with(".safetensors.") ? process : -1;
  }
  if (take_number(rest) < 0 || !take_suffix(rest, "-")) return -1;
  const int64_t process = take_number(rest);
  return process > 0 && take_suffix(rest, ".tmp-") && !rest.empty() ? process : -1;
}

// This process has nothing under way when it asks: a file of its number is that of an earlier one,
// as after the restart of a container.
bool has_ended(int64_t process) {
  const auto id = static_cast<pid_t>(process);
  return id != process || id == ::getpid() || (::kill(id, 0) != 0 && errno == ESRCH);
}

// Holds the folder until the result is gone; a process that ends lets go of it, however it ends.
std::shared_ptr<const void> lock_folder(const std::string& path) {
  auto folder = std::make_shared<Descriptor>(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  // File systems without locks refuse otherwise, and then nothing is held.
  require(::flock(folder->get(), LOCK_EX | LOCK_NB) == 0 || errno != EWOULDBLOCK,
          "{}: another run is writing there; wait for its end, or pass another --out", path);
  return folder;
}

[[noreturn]] void fail(const std::string& path, const char* action, int error) {
  std::string hint;
  if (error == ENOSPC || error == EDQUOT) {
    std::error_code ignored;
    const fs::path folder = fs::path(path).has_parent_path() ? fs::path(path).parent_path() : ".";
    hint = fmt::format(" ({} bytes free in {}; make room or choose another --out)",
                       fs::space(folder, ignored).available, folder.string());
  }
  throw Error("{}: cannot {}: {}{}", path, action, std::strerror(error), hint);
}

std::string folder_of(const std::string& path) {
  const std::string folder = fs::path(path).parent_path().string();
  return folder.empty() ? "." : folder;
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

void write_file_atomically(const std::string& path,
                           const std::function<void(const std::string& temporary)>& write) {
  TemporaryFile temporary(path);
  write(temporary.path());
  {
    Descriptor file(temporary.path(), O_RDONLY | O_CLOEXEC);
    if (file.get() < 0) fail(path, "write", errno);
    if (::fsync(file.get()) != 0) fail(path, "flush to the disk", errno);
  }
  if (::rename(temporary.path().c_str(), path.c_str()) != 0) fail(path, "replace", errno);
  temporary.renamed();
  // Makes the new name itself last; some file systems refuse to sync a folder, which is no failure
  // of the file.
  Descriptor folder(folder_of(path), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (folder.get() >= 0) ::fsync(folder.get());
}

void write_file_atomically(const std::string& path, std::string_view contents) {
  write_file_atomically(path, [&](const std::string& temporary) {
    // The name is this process's own; a file there was left by an earlier one of its number.
    Descriptor file(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC);
    if (file.get() < 0) fail(path, "create", errno);
    std::string_view rest = contents;
    while (!rest.empty()) {
      const ssize_t count = ::write(file.get(), rest.data(), rest.size());
      if (count < 0 && errno == EINTR) continue;
      if (count < 0) fail(path, "write", errno);
      rest.remove_prefix(static_cast<std::size_t>(count));
    }
    if (::fsync(file.get()) != 0) fail(path, "flush to the disk", errno);
    if (!file.close()) fail(path, "write", errno);
  });
}

void check_writable(const std::string& path) {
  const std::string folder = folder_of(path);
  if (::access(folder.c_str(), W_OK | X_OK) != 0) fail(path, "create", errno);
  require(!fs::exists(path) || fs::is_regular_file(path), "{}: exists and is not a file", path);
}

void write_lines(const std::string& path, const std::vector<std::string>& lines) {
  std::string text;
  for (const std::string& line : lines) text += line + "\n";
  write_file_atomically(path, std::string_view(text));
}

void remove_abandoned_files(const std::string& folder) {
  std::vector<fs::path> left;
  for (const auto& entry : fs::directory_iterator(folder)) {
    const int64_t maker = maker_of(entry.path().filename().string());
    if (maker > 0 && has_ended(maker) && entry.is_regular_file()) left.push_back(entry.path());
  }
  std::error_code ignored;
  for (const fs::path& path : left) fs::remove(path, ignored);
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
