// The real program as a process: SIGKILL at several moments, Ctrl-C, a disk that is full, and its
// standard input and output. Whatever happens, the folder of a run holds a checkpoint that the next
// sitting goes on from, or none yet.
#ifdef MACGRAD_MULTI30K
#include <doctest/doctest.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <thread>

#include "macgrad/core/safetensors.h"
#include "macgrad/experiments/common/output_files.h"
#include "macgrad/tests/errors.h"
#include "macgrad/tests/temporary_folder.h"

namespace macgrad::experiments {
namespace {
namespace fs = std::filesystem;

using Folder = testing::TemporaryFolder;
using testing::contains;
using Words = std::vector<std::string>;

// A training of a second or two, which writes a checkpoint after every update.
Words small_run(const std::string& out, const std::string& threads = "1") {
  return {"--toy",    "--epochs",       "4",    "--d-model", "32",    "--ffn",
          "32",       "--dropout",      "0.1",  "--average", "2",     "--checkpoint-minutes",
          "0.000001", "--batch-tokens", "1024", "--threads", threads, "--out",
          out};
}

struct Streams {
  std::string in;     // path; "": this process's
  std::string out;    // path; "": beside the errors
  int terminal = -1;  // stands for all three when it is open
};

// The program with its errors in `log`; returns its process id.
pid_t start(const Words& words, const std::string& log, rlim_t largest_file = RLIM_INFINITY,
            const Streams& streams = {}, rlim_t memory = RLIM_INFINITY) {
  std::vector<char*> arguments;
  Words all = words;
  all.insert(all.begin(), MACGRAD_MULTI30K);
  for (std::string& word : all) arguments.push_back(word.data());
  arguments.push_back(nullptr);
  const pid_t child = fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    const int file = open(log.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0666);
    dup2(file, STDOUT_FILENO);
    dup2(file, STDERR_FILENO);
    if (!streams.in.empty()) dup2(open(streams.in.c_str(), O_RDONLY), STDIN_FILENO);
    if (!streams.out.empty())
      dup2(open(streams.out.c_str(), O_WRONLY | O_CREAT, 0666), STDOUT_FILENO);
    if (streams.terminal >= 0)
      for (const int stream : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO})
        dup2(streams.terminal, stream);
    if (largest_file != RLIM_INFINITY) {
      // Writing past the limit is then an error of the system call, as on a full disk.
      signal(SIGXFSZ, SIG_IGN);
      const rlimit limit{largest_file, largest_file};
      setrlimit(RLIMIT_FSIZE, &limit);
    }
    if (memory != RLIM_INFINITY) {
      // OpenBLAS maps 128 MiB per thread when it is loaded, and tries for ever where it cannot.
      setenv("OPENBLAS_NUM_THREADS", "1", 1);
      const rlimit limit{memory, memory};
      setrlimit(RLIMIT_AS, &limit);
    }
    execv(MACGRAD_MULTI30K, arguments.data());
    _exit(127);
  }
  return child;
}

int status_of(pid_t child) {
  int status = 0;
  REQUIRE(waitpid(child, &status, 0) == child);
  return status;
}

// As a shell says it: the exit code, or 128 + signal.
int wait_for(pid_t child) {
  const int status = status_of(child);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

std::string text_of(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

int64_t updates_of(const std::string& checkpoint) {
  return Json::parse(load_safetensors(checkpoint).metadata.at("state")).at("updates");
}

// False when the child ends without having written the file.
bool wait_for_file(const std::string& path, pid_t child) {
  for (int i = 0; i < 12000; ++i) {
    if (fs::exists(path)) return true;
    siginfo_t ended{};
    if (waitid(P_PID, static_cast<id_t>(child), &ended, WEXITED | WNOHANG | WNOWAIT) == 0 &&
        ended.si_pid == child)
      return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  return false;
}

TEST_CASE("multi30k: killed again and again, a run ends as if it had never been") {
  const Folder folder;
  const std::string log = folder / "log";
  REQUIRE(wait_for(start(small_run(folder / "whole"), log)) == 0);
  const std::string out = folder / "killed", checkpoint = out + "/checkpoint.safetensors";
  Words words = small_run(out);
  int kills = 0;
  int64_t last = 0;
  // Moments that have nothing to do with what the program is about to write.
  for (const int milliseconds : {0, 3, 17, 40, 90, 150, 230, 310, 400, 520}) {
    const pid_t child = start(words, log);
    const bool written = wait_for_file(checkpoint, child);
    std::this_thread::sleep_for(std::chrono::milliseconds(milliseconds));
    kill(child, SIGKILL);
    const int code = wait_for(child);
    REQUIRE(written);
    REQUIRE((code == 0 || code == 128 + SIGKILL));
    kills += code != 0;
    // Whole, and never older than before.
    const int64_t updates = updates_of(checkpoint);
    CHECK(updates >= last);
    last = updates;
    words = {"--resume", out};
  }
  CHECK(kills >= 5);
  REQUIRE(wait_for(start(words, log)) == 0);
  const auto one = load_safetensors(folder / "whole/checkpoint.safetensors").tensors;
  const auto other = load_safetensors(checkpoint).tensors;
  for (const auto& [name, value] : one) {
    CAPTURE(name);
    CHECK(std::memcmp(value.raw(), other.at(name).raw(), value.bytes()) == 0);
  }
  CHECK(read_json(folder / "whole/results.json").at("scores") ==
        read_json(out + "/results.json").at("scores"));
  // What a kill left of files half written is gone.
  for (const auto& entry : fs::recursive_directory_iterator(out))
    CHECK(entry.path().string().find(".tmp") == std::string::npos);
}

TEST_CASE("multi30k: a signal saves a checkpoint, says so, and ends the process") {
  const Folder folder;
  const int signals[] = {SIGINT, SIGTERM, SIGHUP};
  for (int i = 0; i < 12; ++i) {
    const int signal = signals[i % 3];
    CAPTURE(signal);
    const std::string log = folder / fmt::format("log{}", i),
                      out = folder / fmt::format("run{}", i);
    const pid_t child = start(small_run(out, i % 2 == 0 ? "1" : "2"), log);
    REQUIRE(wait_for_file(out + "/checkpoint.safetensors", child));
    std::this_thread::sleep_for(std::chrono::milliseconds(i));
    kill(child, signal);
    // `timeout` sends it to the process and then to its group.
    if (i >= 9) kill(child, signal);
    const int status = status_of(child);
    const std::string message = text_of(log);
    CAPTURE(message);
    // By the signal, so that a loop in a script ends too.
    REQUIRE(WIFSIGNALED(status));
    CHECK(WTERMSIG(status) == signal);
    CHECK(message.find("The last checkpoint stays in " + out) != std::string::npos);
    CHECK(read_json(out + "/settings.json").at("state") == "interrupted");
    CHECK(read_json(out + "/settings.json").at("updates") ==
          updates_of(out + "/checkpoint.safetensors"));
  }
}

TEST_CASE("multi30k: signals that the caller ignores do not end it") {
  const Folder folder;
  for (const int signal : {SIGHUP, SIGINT}) {
    CAPTURE(signal);
    const std::string out = folder / fmt::format("run{}", signal);
    // As `nohup` and the background jobs of a script are started: inherited through exec.
    const auto earlier = std::signal(signal, SIG_IGN);
    const pid_t child = start(small_run(out), folder / "log");
    std::signal(signal, earlier);
    REQUIRE(wait_for_file(out + "/checkpoint.safetensors", child));
    kill(child, signal);
    CHECK(wait_for(child) == 0);
    CHECK(read_json(out + "/settings.json").at("state") == "complete");
  }
}

TEST_CASE("multi30k: a reader that has gone stops a training with its checkpoint") {
  const Folder folder;
  const std::string pipe = folder / "pipe", out = folder / "run";
  REQUIRE(mkfifo(pipe.c_str(), 0600) == 0);
  // Both ends, so that the program does not wait for a reader.
  const int reader = open(pipe.c_str(), O_RDWR | O_CLOEXEC);
  REQUIRE(reader >= 0);
  Words words = small_run(out);
  words.insert(words.end(), {"--epochs", "4000"});
  words.erase(words.begin() + 1, words.begin() + 3);  // the first --epochs
  // Standard output and errors into the pipe.
  const pid_t child = start(words, pipe);
  REQUIRE(wait_for_file(out + "/checkpoint.safetensors", child));
  close(reader);
  CHECK(wait_for(child) == 128 + SIGPIPE);
  CHECK(read_json(out + "/settings.json").at("state") == "interrupted");
  CHECK(read_json(out + "/settings.json").at("updates") ==
        updates_of(out + "/checkpoint.safetensors"));
  CHECK(wait_for(start({"--resume", out, "--epochs", "4000", "--max-updates", "1"},
                       folder / "log")) == 1);  // it trained more than that
}

TEST_CASE("multi30k: a full disk leaves earlier results whole") {
  const Folder folder;
  const std::string log = folder / "log", out = folder / "run";
  Words words = small_run(out);
  words.insert(words.end(), {"--max-updates", "5"});
  REQUIRE(wait_for(start(words, log)) == 0);
  const std::string checkpoint = out + "/checkpoint.safetensors";
  const std::string before = text_of(checkpoint);
  // Enough for tables and settings, not for a checkpoint.
  const std::string full = folder / "full";
  CHECK(wait_for(start({"--resume", out, "--max-updates", "9"}, full, 64 << 10)) == 1);
  const std::string message = text_of(full);
  CAPTURE(message);
  CHECK(message.find(checkpoint + ": cannot write") != std::string::npos);
  CHECK(message.find("File too large; the earlier file is unchanged") != std::string::npos);
  CHECK(text_of(checkpoint) == before);
  CHECK(fs::exists(out + "/best.safetensors"));
  CHECK(wait_for(start({"--resume", out, "--max-updates", "9"}, log)) == 0);
  CHECK(updates_of(checkpoint) == 9);
}

TEST_CASE("multi30k: a model that does not fit in memory is an error") {
  const Folder folder;
  for (const Words& size : {Words{"--layers", "100000000"}, Words{"--d-model", "1000000"}}) {
    Words words{"--toy", "--threads", "1", "--out", folder / "run"};
    words.insert(words.end(), size.begin(), size.end());
    const std::string log = folder / "log" + size[0];
    CHECK(wait_for(start(words, log, RLIM_INFINITY, {}, rlim_t{2'000'000} * 1024)) == 1);
    const std::string message = text_of(log);
    CAPTURE(message);
    CHECK(contains(message, "out of memory"));
  }
}

// A small trained model; its checkpoint.
std::string trained(const Folder& folder) {
  Words words = small_run(folder / "run");
  words.insert(words.end(), {"--max-updates", "6"});
  REQUIRE(wait_for(start(words, folder / "log")) == 0);
  return folder / "run/checkpoint.safetensors";
}

TEST_CASE("multi30k translate: standard input is a file of --input") {
  const Folder folder;
  const std::string checkpoint = trained(folder);
  // More than a block, some without words, in another order than batches have.
  std::string text = "\xEF\xBB\xBF";
  const char* const lines[] = {"ein hund", "", "zwei hunde und ein hund spielen", "mann"};
  for (int i = 0; i < 1003; ++i) text += std::string(lines[i % 4]) + (i % 3 == 0 ? "\r\n" : "\n");
  const std::string input = folder.write("in", text);
  const Words translate{"translate", "--checkpoint", folder / "run", "--beam", "1", "--threads",
                        "1"};
  REQUIRE(wait_for(start(translate, folder / "err", RLIM_INFINITY, {input, folder / "out"})) == 0);
  Words from_file = translate;
  from_file.insert(from_file.end(), {"--input", input, "--output", folder / "whole"});
  REQUIRE(wait_for(start(from_file, folder / "log")) == 0);
  const std::string whole = text_of(folder / "whole");
  CHECK(std::count(whole.begin(), whole.end(), '\n') == 1003);
  CHECK(text_of(folder / "out") == whole);

  // What cannot be read or written is an error, not an end.
  CHECK(wait_for(start(translate, folder / "folder", RLIM_INFINITY, {folder.path(), ""})) == 1);
  CHECK(contains(text_of(folder / "folder"), "standard input: line 1: Is a directory"));
  const std::string broken = folder.write("broken", "ein hund\nein \xff hund\n");
  CHECK(wait_for(start(translate, folder / "utf8", RLIM_INFINITY, {broken, ""})) == 1);
  CHECK(contains(text_of(folder / "utf8"), "standard input: line 2: not valid UTF-8"));
  CHECK(wait_for(start(translate, folder / "full", RLIM_INFINITY, {input, "/dev/full"})) == 1);
  CHECK(contains(text_of(folder / "full"), "standard output"));
  CHECK(wait_for(start({"study", "--list"}, folder / "list", RLIM_INFINITY, {"", "/dev/full"})) ==
        1);
  CHECK(contains(text_of(folder / "list"), "standard output"));
}

TEST_CASE("multi30k translate: a typed line is answered at once, and a wrong one too") {
  const Folder folder;
  const std::string checkpoint = trained(folder);
  const int master = posix_openpt(O_RDWR | O_NOCTTY);
  if (master < 0 || grantpt(master) != 0 || unlockpt(master) != 0) {
    MESSAGE("skipped: no pseudo-terminal here");
    return;
  }
  const int slave = open(ptsname(master), O_RDWR | O_NOCTTY);
  REQUIRE(slave >= 0);
  const pid_t child = start({"translate", "--checkpoint", checkpoint, "--threads", "1"},
                            folder / "log", RLIM_INFINITY, {"", "", slave});
  std::string seen;
  const auto read_until = [&](const std::string& prompt) {
    const std::size_t from = seen.size();
    char buffer[4096];
    while (seen.find(prompt, from) == std::string::npos) {
      const ssize_t count = read(master, buffer, sizeof buffer);
      REQUIRE(count > 0);
      seen.append(buffer, static_cast<std::size_t>(count));
    }
    return seen.substr(from);
  };
  read_until("> ");
  // Types `line` and reads until the next prompt.
  const auto answer = [&](const std::string& line) {
    REQUIRE(write(master, line.data(), line.size()) == static_cast<ssize_t>(line.size()));
    return read_until("\n> ");
  };
  CHECK(contains(answer("ein hund\n"), "\n"));
  CHECK(contains(answer("ein \xff hund\n"), "standard input: line 2: not valid UTF-8"));
  CHECK_FALSE(contains(answer("ein mann\n"), "UTF-8"));
  REQUIRE(write(master, "\x04", 1) == 1);
  CHECK(wait_for(child) == 0);
  close(slave);
  close(master);
}

}  // namespace
}  // namespace macgrad::experiments
#endif
