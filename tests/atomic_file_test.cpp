// What stands where a file is to be written: pipes, sockets, folders, symbolic links. Every writer
// of macgrad goes through core/atomic_file.h.
#include "macgrad/core/atomic_file.h"

#include <doctest/doctest.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>

#include "macgrad/core/safetensors.h"
#include "macgrad/experiments/common/output_files.h"
#include "macgrad/tests/errors.h"
#include "macgrad/tests/temporary_folder.h"

namespace macgrad::testing {
namespace {

namespace fs = std::filesystem;

std::string contents(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

const std::vector<std::function<void(const std::string&)>>& writers() {
  static const std::vector<std::function<void(const std::string&)>> list = {
      [](const std::string& path) { write_file_atomically(path, "new"); },
      [](const std::string& path) {
        save_safetensors(path, {{"a", Tensor::zeros({2})}});
      },
      [](const std::string& path) {
        experiments::write_json(path, {{"a", 1}});
      },
      [](const std::string& path) { experiments::CsvWriter(path, {"epoch"}); }};
  return list;
}

// Every writer, and the question before long work, fails with `message` and leaves the folder
// alone.
void check_refused(const TemporaryFolder& folder, const std::string& path,
                   const std::string& message) {
  const auto before = folder.entries();
  for (const auto& write : writers()) {
    const std::string error = error_of([&] { write(path); });
    CAPTURE(error);
    CHECK(contains(error, path));
    CHECK(contains(error, message));
  }
  CHECK(contains(error_of([&] { check_writable(path); }), message));
  CHECK(folder.entries() == before);
}

TEST_CASE("a pipe, a socket and a folder are not replaced") {
  const TemporaryFolder folder;
  const std::string pipe = folder / "pipe", socket_path = folder / "socket";
  REQUIRE(::mkfifo(pipe.c_str(), 0600) == 0);
  check_refused(folder, pipe, "is a pipe (FIFO)");
  CHECK(fs::is_fifo(pipe));

  const int fd = ::socket(AF_UNIX, SOCK_STREAM, 0);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  REQUIRE(socket_path.size() < sizeof address.sun_path);
  socket_path.copy(address.sun_path, sizeof address.sun_path - 1);
  REQUIRE(::bind(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0);
  check_refused(folder, socket_path, "is a socket");
  CHECK(fs::is_socket(socket_path));
  ::close(fd);

  fs::create_directory(folder / "below");
  check_refused(folder, folder / "below", "is a folder");
  // A link to a pipe is a pipe.
  fs::create_symlink("pipe", folder / "link");
  check_refused(folder, folder / "link", "is a pipe (FIFO)");
}

TEST_CASE("a symbolic link is followed: its target is replaced as a whole, and the link stays") {
  const TemporaryFolder folder;
  fs::create_directory(folder / "data");
  const std::string target = folder / "data/target", link = folder / "link",
                    second = folder / "second";
  fs::create_symlink("data/target", link);
  fs::create_symlink("link", second);
  for (const auto& write : writers()) {
    std::ofstream(target) << "old";
    const fs::path kept = folder / "kept";
    fs::remove(kept);
    fs::create_hard_link(target, kept);
    write(second);
    CHECK(fs::is_symlink(link));
    CHECK(fs::is_symlink(second));
    CHECK_FALSE(fs::is_symlink(target));
    CHECK(contents(target) != "old");
    // Replaced, not written into: the old file is whole under its other name.
    CHECK(contents(kept) == "old");
    CHECK(std::distance(fs::directory_iterator(folder / "data"), {}) == 1);
  }
  CHECK_NOTHROW(check_writable(second));
}

TEST_CASE("links that lead nowhere or in a circle are errors") {
  const TemporaryFolder folder;
  fs::create_symlink("nothing", folder / "dangling");
  check_refused(folder, folder / "dangling", "a symbolic link that leads to no file (No such file");
  fs::create_symlink("b", folder / "a");
  fs::create_symlink("a", folder / "b");
  check_refused(folder, folder / "a", "a symbolic link that leads to no file (Too many levels");
}

TEST_CASE("a folder that is missing or cannot be written to is an error") {
  const TemporaryFolder folder;
  check_refused(folder, folder / "none/file", "cannot create: No such file or directory");
  fs::create_directory(folder / "closed");
  std::ofstream(folder / "closed/file") << "old";
  fs::permissions(folder / "closed", static_cast<fs::perms>(0555));
  fs::permissions(folder.path(), fs::perms::all);
  // Root may write anywhere: another user tries.
  const pid_t child = ::fork();
  if (child == 0) {
    if (::geteuid() == 0 && ::setuid(65534) != 0) ::_exit(2);
    const std::string path = folder / "closed/file";
    const std::string error = error_of([&] { write_file_atomically(path, "new"); });
    const std::string early = error_of([&] { check_writable(path); });
    ::_exit(contains(error, "cannot create: Permission denied") &&
                    contains(error, "must be writable") && contains(error, "is unchanged") &&
                    contains(early, "cannot create: Permission denied")
                ? 0
                : 1);
  }
  int status = 0;
  REQUIRE(::waitpid(child, &status, 0) == child);
  CHECK(status == 0);
  CHECK(contents(folder / "closed/file") == "old");
  fs::permissions(folder / "closed", fs::perms::owner_all);
}

}  // namespace
}  // namespace macgrad::testing
