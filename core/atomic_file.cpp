// Temporary files are named NAME.tmp-PROCESS-SERIAL: what a killed process left is known by its
// number.
#include "macgrad/core/atomic_file.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <charconv>
#include <climits>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <vector>

#include "macgrad/core/error.h"

namespace macgrad {
namespace fs = std::filesystem;
namespace {

std::string folder_of(const std::string& path) {
  const std::string folder = fs::path(path).parent_path().string();
  return folder.empty() ? "." : folder;
}

// The file that is replaced: `path`, or what it names as a symbolic link.
std::string target_of(const std::string& path) {
  struct stat info;
  if (::lstat(path.c_str(), &info) != 0) return path;  // new, or an error on opening says why not
  std::string target = path;
  if (S_ISLNK(info.st_mode)) {
    char resolved[PATH_MAX];
    if (::realpath(path.c_str(), resolved) == nullptr || ::stat(resolved, &info) != 0)
      throw Error(
          "{}: a symbolic link that leads to no file ({}); remove it, or choose another name", path,
          std::strerror(errno));
    target = resolved;
  }
  require(!S_ISDIR(info.st_mode), "{}: is a folder; choose the name of a file", path);
  require(
      S_ISREG(info.st_mode),
      "{}: is a {}, which would be replaced by a regular file; choose another name, and copy the "
      "file there afterwards",
      path,
      S_ISFIFO(info.st_mode)   ? "pipe (FIFO)"
      : S_ISSOCK(info.st_mode) ? "socket"
                               : "device");
  return target;
}

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

// The process that made a temporary file, -1 for other names.
int64_t maker_of(std::string_view name) {
  if (take_number(name) < 0 || !take_suffix(name, "-")) return -1;
  const int64_t process = take_number(name);
  return process > 0 && take_suffix(name, ".tmp-") && !name.empty() ? process : -1;
}

// The caller has no AtomicFile open, so a file with our own number is from an earlier process, as
// after the restart of a container.
bool has_ended(int64_t process) {
  const auto id = static_cast<pid_t>(process);
  return id != process || id == ::getpid() || (::kill(id, 0) != 0 && errno == ESRCH);
}

}  // namespace

AtomicFile::AtomicFile(const std::string& path) : path_(path), target_(target_of(path)) {
  static std::atomic<unsigned> serial{0};
  temporary_ = fmt::format("{}.tmp-{}-{}", target_, ::getpid(), serial++);
  // A file of this name was left by an earlier process with our number; O_EXCL follows no link.
  ::unlink(temporary_.c_str());
  fd_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  if (fd_ < 0) fail("create");
}

AtomicFile::~AtomicFile() {
  if (fd_ >= 0) ::close(fd_);
  if (!temporary_.empty()) ::unlink(temporary_.c_str());
}

void AtomicFile::write(const void* data, uint64_t bytes) {
  const auto* from = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t n = ::write(fd_, from, std::min<uint64_t>(bytes, 1 << 30));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) fail("write");
    from += n;
    bytes -= static_cast<uint64_t>(n);
  }
}

void AtomicFile::commit() {
  if (::fsync(fd_) != 0) fail("flush to the disk");
  // Closing is where a network file system reports a failed write.
  const int fd = fd_;
  fd_ = -1;
  if (::close(fd) != 0) fail("write");
  if (::rename(temporary_.c_str(), target_.c_str()) != 0) fail("replace");
  temporary_.clear();
  // Makes the rename durable. Some file systems cannot sync a folder; that is not an error.
  const int folder = ::open(folder_of(target_).c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (folder < 0) return;
  ::fsync(folder);
  ::close(folder);
}

void AtomicFile::fail(const char* action) const {
  const int error = errno;
  std::string hint;
  if (error == ENOSPC || error == EDQUOT) {
    std::error_code unknown;
    const std::string folder = folder_of(target_);
    const uintmax_t available = fs::space(folder, unknown).available;
    hint = fmt::format(" ({}in {}; make room or choose another folder)",
                       unknown ? "" : fmt::format("{} bytes free ", available), folder);
  } else if (error == EACCES || error == EROFS || error == EPERM) {
    hint = fmt::format(" (the folder {} must be writable)", folder_of(target_));
  }
  std::error_code ignored;
  throw Error("{}: cannot {}: {}{}{}", path_, action, std::strerror(error), hint,
              fs::exists(target_, ignored) ? "; the earlier file is unchanged" : "");
}

void write_file_atomically(const std::string& path, std::string_view contents) {
  AtomicFile file(path);
  file.write(contents.data(), contents.size());
  file.commit();
}

void check_writable(const std::string& path) {
  const std::string folder = folder_of(target_of(path));
  if (::access(folder.c_str(), W_OK | X_OK) != 0)
    throw Error("{}: cannot create: {} (in the folder {})", path, std::strerror(errno), folder);
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

}  // namespace macgrad
