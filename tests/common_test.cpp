// What programs share besides data: atomic files, CSV and JSON, the run's folder, the progress
// line, common options, the machine, plots.
#include <doctest/doctest.h>
#include <fcntl.h>
#include <omp.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <limits>
#include <nlohmann/json.hpp>
#include <sstream>

#include "macgrad/core/error.h"
#include "macgrad/experiments/common/arguments.h"
#include "macgrad/experiments/common/machine.h"
#include "macgrad/experiments/common/output_files.h"
#include "macgrad/experiments/common/plots.h"
#include "macgrad/experiments/common/progress.h"
#include "macgrad/tests/child.h"
#include "macgrad/tests/errors.h"
#include "macgrad/tests/printed.h"
#include "macgrad/tests/temporary_folder.h"

namespace macgrad::experiments {
namespace {
namespace fs = std::filesystem;

using Folder = testing::TemporaryFolder;
using testing::contains;
using testing::error_of;
using testing::in_child;

std::string contents(const std::string& path) {
  std::ostringstream text;
  text << std::ifstream(path, std::ios::binary).rdbuf();
  return text.str();
}

void put(const std::string& path, const std::string& text) {
  fs::create_directories(fs::path(path).parent_path());
  std::ofstream(path, std::ios::binary) << text;
}

std::string stderr_of(const std::function<void()>& body) {
  return testing::printed(stderr, body);
}

TEST_CASE("files are replaced whole or not at all") {
  const Folder folder;
  const std::string path = folder / "result.txt";
  write_file_atomically(path, std::string_view("first"));
  CHECK(contents(path) == "first");
  write_file_atomically(path, std::string_view(""));
  CHECK(contents(path).empty());
  write_file_atomically(path, std::string_view("second"));

  {
    AtomicFile file(path);
    file.write("half", 4);
    CHECK(contents(path) == "second");
    CHECK(contents(file.temporary()) == "half");
    std::ofstream(file.temporary()) << "third";
  }
  CHECK(contents(path) == "second");
  CHECK(folder.entries() == 1);
  {
    AtomicFile file(path);
    std::ofstream(file.temporary()) << "third";
    file.commit();
  }
  CHECK(contents(path) == "third");
  CHECK(
      contains(error_of([&] { write_file_atomically(folder / "no/where", std::string_view("x")); }),
               "no/where: cannot create: No such file or directory"));
  CHECK(folder.entries() == 1);
}

TEST_CASE("a full disk leaves the earlier file") {
  const Folder folder;
  const std::string path = folder / "result.txt";
  write_file_atomically(path, std::string_view("earlier"));
  // A limit on file sizes makes write() fail half way, as a full disk does.
  const int status = in_child([&] {
    std::signal(SIGXFSZ, SIG_IGN);
    const rlimit limit{4096, 4096};
    setrlimit(RLIMIT_FSIZE, &limit);
    const std::string message =
        error_of([&] { write_file_atomically(path, std::string_view(std::string(100000, 'x'))); });
    return contains(message, "result.txt: cannot write: File too large") ? 0 : 1;
  });
  CHECK(status == 0);
  CHECK(contents(path) == "earlier");
  CHECK(folder.entries() == 1);
}

TEST_CASE("CSV rows read back exactly") {
  const Folder folder;
  const std::string path = folder / "metrics.csv";
  CsvWriter csv(path, {"epoch", "loss", "note"});
  CHECK(contents(path) == "epoch,loss,note\n");
  csv.row({1, 0.1, "plain"});
  csv.row({std::int64_t{-2}, std::nan(""), "a \"b\", c\nd"});
  csv.row({csv_number(std::nan("")), csv_number(std::numeric_limits<double>::infinity()), ""});
  CHECK(contents(path) == "epoch,loss,note\n1,0.1,plain\n-2,nan,\"a \"\"b\"\", c\nd\"\n,inf,\n");
  CHECK(contains(error_of([&] { csv.row({1}); }), "a row of 1 values in a table of 3 columns"));
  const double third = 1.0 / 3;
  csv.row({0, third, ""});
  const std::string text = contents(path);
  CHECK(std::stod(text.substr(text.rfind("\n0,") + 3)) == third);
}

TEST_CASE("JSON keeps its order and takes anything") {
  const Folder folder;
  const std::string path = folder / "settings.json";
  write_json(path, {{"z", 1}, {"a", std::nan("")}, {"text", "bad \xE9"}});
  const Json back = read_json(path);
  CHECK(back.begin().key() == "z");
  CHECK(back["a"].is_null());
  CHECK(contains(contents(path), "\n  \"a\": null"));
  put(path, "{\"a\": ");
  CHECK(contains(error_of([&] { read_json(path); }), "settings.json: not valid JSON"));
  CHECK(contains(error_of([&] { read_json(folder / "none"); }), "none: cannot open"));
}

TEST_CASE("a run's folder never hides earlier results") {
  const Folder folder;
  const std::string path = folder / "a/b";
  CHECK(stderr_of([&] {
          const RunDirectory run(path, "nmse");
          write_file_atomically(run.file("nmse.csv"), std::string_view("x"));
        }).empty());
  const std::string notice = stderr_of([&] {
    const RunDirectory run(path, "nmse");
    CHECK(run.earlier() == std::vector<std::string>{"nmse.csv"});
  });
  CHECK(contains(notice, "a/b holds earlier results"));
  CHECK(contains(notice, "nmse.csv"));
  CHECK(contents(path + "/nmse.csv") == "x");

  put(folder / "file", "x");
  CHECK(contains(error_of([&] { RunDirectory(folder / "file", "nmse"); }), "file"));

  const fs::path here = fs::current_path();
  fs::current_path(folder / "a");
  const RunDirectory one("", "nmse");
  const RunDirectory two("", "nmse");
  fs::current_path(here);
  CHECK(one.path().starts_with("runs/nmse-"));
  CHECK(one.path() != two.path());
}

TEST_CASE("a run's folder belongs to one run at a time") {
  const Folder folder;
  const std::string path = folder / "run";
  {
    const RunDirectory run(path, "nmse");
    CHECK(contains(error_of([&] { RunDirectory(path, "nmse", Holds::this_run); }),
                   "run: another run is writing there"));
    const int status = in_child([&] {
      return contains(error_of([&] { RunDirectory(path, "nmse"); }), "another run") ? 0 : 1;
    });
    CHECK(status == 0);
    CHECK_NOTHROW(RunDirectory(folder.path(), "nmse", Holds::runs));
    CHECK_NOTHROW(RunDirectory(folder.path(), "nmse", Holds::runs));
  }
  CHECK_NOTHROW(RunDirectory(path, "nmse", Holds::this_run));
}

TEST_CASE("a run that goes on clears what a kill left, and nothing else") {
  const Folder folder;
  const pid_t ended = fork();
  if (ended == 0) _exit(0);
  waitpid(ended, nullptr, 0);
  const auto file = [&](const std::string& name) { return folder.write(name, "x"); };
  const std::vector<std::string> gone{file(fmt::format("metrics.csv.tmp-{}-3", ended)),
                                      file(fmt::format("c.safetensors.tmp-{}-0", ended))};
  const std::vector<std::string> stay{file("notes.tmp-old"),
                                      file("a.tmp-1-"),
                                      file(".tmp-1-2"),
                                      file("x.tmp"),
                                      file(fmt::format("metrics.csv.tmp-{}-3", getppid())),
                                      file(fmt::format("notes.{}.tmp", ended)),
                                      file(fmt::format("below/metrics.csv.tmp-{}-3", ended))};
  const RunDirectory run(folder.path(), "nmse", Holds::this_run);
  for (const std::string& path : gone) CHECK_MESSAGE(!fs::exists(path), path);
  for (const std::string& path : stay) CHECK_MESSAGE(fs::exists(path), path);
}

TEST_CASE("numbers and times as people read them") {
  CHECK(group_digits(0) == "0");
  CHECK(group_digits(999) == "999");
  CHECK(group_digits(12345) == "12,345");
  CHECK(group_digits(-1234567) == "-1,234,567");
  CHECK(group_digits(-123) == "-123");
  CHECK(format_duration(12) == "0:12");
  CHECK(format_duration(59.7) == "1:00");
  CHECK(format_duration(3723) == "1:02:03");
  CHECK(format_duration(-1) == "?");
  CHECK(format_duration(INFINITY) == "?");
  CHECK(format_short(4.1) == "4.1");
  CHECK(format_short(0.001) == "1e-3");
  CHECK(format_short(1.0) == "1");
  CHECK(format_short(0) == "0");
  CHECK(format_short(0.0125) == "0.0125");
  CHECK(format_short(3.14159) == "3.142");
  CHECK(format_short(1234567) == "1.235e6");
  CHECK(format_short(2.5e-7) == "2.5e-7");
  CHECK(format_short(std::nan("")) == "nan");
  CHECK(format_short(-INFINITY) == "-inf");
}

TEST_CASE("the step line") {
  StepReport report{12, {{"loss", 4.1}, {"norm", 1.2}, {"lr", 1e-3}}, 4259};
  CHECK(Progress::line(report, 1000, "step", 0.345, 12.0 / 988, 12345.1) ==
        "step 12/1000 | loss 4.1 | norm 1.2 | lr 1e-3 | 345 ms | 12,345 tok/s | 0:12 left");
  report = {2, {}, 0};
  CHECK(Progress::line(report, 2, "cell", 75.04, 75, 0) == "cell 2/2 | 75.0 s | 0:00 left");
}

TEST_CASE("a log gets whole lines and no bar") {
  const Folder folder;
  std::FILE* file = std::fopen((folder / "log").c_str(), "w");
  {
    Progress progress(3, "step", file, 1000);
    progress.step({1, {{"loss", 2}}, 10});
    progress.step({2, {{"loss", 1.5}}, 10});
    progress.note("saved");
    progress.step({3, {{"loss", 1}}, 10});
    CHECK(progress.tokens_per_second() > 0);
  }
  std::fclose(file);
  const std::string text = contents(folder / "log");
  CHECK(contains(text, "step 1/3 | loss 2 | "));
  CHECK_FALSE(contains(text, "step 2/3"));  // within the pause between lines
  CHECK(contains(text, "saved\nstep 3/3 | loss 1 | "));
  CHECK_FALSE(contains(text, "\r"));
  CHECK_FALSE(contains(text, "\x1b"));
  CHECK(text.ends_with("0:00 left\n"));
}

TEST_CASE("a terminal gets one line that rewrites itself") {
  const int master = posix_openpt(O_RDWR | O_NOCTTY);
  if (master < 0 || grantpt(master) != 0 || unlockpt(master) != 0) {
    MESSAGE("skipped: no pseudo-terminal here");
    return;
  }
  const int slave = open(ptsname(master), O_RDWR | O_NOCTTY);
  REQUIRE(slave >= 0);
  std::FILE* file = fdopen(slave, "w");
  {
    Progress progress(2, "step", file);
    progress.step({1, {{"loss", 2}}, 0});
    progress.note("saved");
    progress.step({2, {{"loss", 1}}, 0});
  }
  std::fclose(file);
  // Arrives in pieces; after the last one the closed other end is an error (EIO).
  std::string text;
  char buffer[4096];
  for (ssize_t count = 0; (count = read(master, buffer, sizeof buffer)) > 0;) {
    text.append(buffer, static_cast<std::size_t>(count));
  }
  close(master);
  CHECK(contains(text, "\r\x1b[2K[##########----------] step 1/2 | loss 2"));
  CHECK(contains(text, "\r\x1b[2Ksaved\r\n"));
  CHECK(contains(text, "[####################] step 2/2"));
  CHECK(text.ends_with("\n"));
}

struct Outcome {
  int code;
  std::string err;
  CommonOptions options;
  std::vector<std::int64_t> lengths{1, 2};
};

Outcome run_with(std::vector<const char*> arguments) {
  arguments.insert(arguments.begin(), "demo");
  Outcome outcome{};
  outcome.err = stderr_of([&] {
    outcome.code = run_program(
        static_cast<int>(arguments.size()), arguments.data(), "demo", "A demonstration",
        [&](Options& options) {
          add_common_options(options, outcome.options);
          options.integers("--lengths", outcome.lengths, "Lengths");
        },
        [&] {
          apply_common_options(outcome.options);
          return 0;
        });
  });
  return outcome;
}

TEST_CASE("common options") {
  const int threads = omp_get_max_threads();
  Outcome plain = run_with({});
  CHECK(plain.code == 0);
  CHECK(plain.options.threads == available_cpus());
  CHECK(omp_get_max_threads() == available_cpus());
  CHECK(plain.lengths == std::vector<std::int64_t>{1, 2});

  Outcome full = run_with({"--seed", "18446744073709551615", "--threads", "3", "--precision",
                           "float64", "--out", "x y", "--lengths", "4:6"});
  CHECK(full.code == 0);
  CHECK(full.options.seed == UINT64_MAX);
  CHECK(omp_get_max_threads() == 3);
  CHECK(full.lengths == std::vector<std::int64_t>{4, 5, 6});
  CHECK(
      to_json(full.options).dump() ==
      R"({"seed":18446744073709551615,"threads":3,"device":"cpu","math":"exact","precision":"float64","out":"x y"})");
  omp_set_num_threads(threads);

  Outcome wrong = run_with({"--precision", "bf16"});
  CHECK(wrong.code == 2);
  CHECK(contains(wrong.err, "--precision: unknown \"bf16\"; known: float32, float64"));
  // Refused before the device is asked for.
  wrong = run_with({"--device", "cuda", "--math", "tf32", "--precision", "float64"});
  CHECK(wrong.code == 1);
  CHECK(contains(wrong.err, "--precision float64 has none; leave one of the two out"));
  CHECK(run_with({"--threads", "-1"}).code == 2);
  CHECK(run_with({"--threads", "1000000"}).code == 2);
  for (const char* seed : {"-1", "1.5", "x", "18446744073709551616"}) {
    wrong = run_with({"--seed", seed});
    CHECK(wrong.code == 2);
    CHECK(contains(wrong.err, "--seed"));
  }
  wrong = run_with({"--lengths", "5:1"});
  CHECK(wrong.code == 2);
  CHECK(contains(wrong.err, "must rise"));
  wrong = run_with({"--sede", "1"});
  CHECK(wrong.code == 2);
  CHECK(contains(wrong.err, "--sede"));
#ifndef MACGRAD_WITH_CUDA
  wrong = run_with({"--device", "cuda"});
  CHECK(wrong.code == 1);
  CHECK(contains(wrong.err, "demo: error: --device cuda: this build has no CUDA backend"));
#endif
  const int status = in_child([] {
    std::freopen("/dev/null", "w", stdout);
    return run_with({"--version"}).code + run_with({"--help"}).code;
  });
  CHECK(status == 0);
}

TEST_CASE("the cgroup's CPUs") {
  const Folder folder;
  CHECK(available_cpus() >= 1);
  CHECK(cgroup_cpu_quota(folder / "nothing") == 0);

  const std::string two = folder / "v2";
  put(two + "/proc/self/cgroup", "0::/a/b\n");
  put(two + "/sys/fs/cgroup/a/cpu.max", "150000 100000\n");
  put(two + "/sys/fs/cgroup/a/b/cpu.max", "max 100000\n");
  CHECK(cgroup_cpu_quota(two) == 1.5);
  put(two + "/sys/fs/cgroup/a/b/cpu.max", "50000 100000\n");
  CHECK(cgroup_cpu_quota(two) == 0.5);

  // A container: the path is the host's, the mount shows the group at its root.
  const std::string container = folder / "container";
  put(container + "/proc/self/cgroup", "0::/../../docker/123\n");
  put(container + "/sys/fs/cgroup/cpu.max", "200000 100000\n");
  CHECK(cgroup_cpu_quota(container) == 2);

  const std::string one = folder / "v1";
  put(one + "/proc/self/cgroup", "4:memory:/x\n3:cpu,cpuacct:/job\n1:cpuset:/\n0::/\n");
  put(one + "/sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_quota_us", "300000\n");
  put(one + "/sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_period_us", "100000\n");
  put(one + "/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "-1\n");
  put(one + "/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n");
  CHECK(cgroup_cpu_quota(one) == 3);
}

TEST_CASE("the machine describes itself") {
  const Json facts = provenance();
  CHECK(facts["machine"]["logical_cpus"].get<int>() >=
        facts["machine"]["available_cpus"].get<int>());
  CHECK(facts["machine"]["memory_gib"].get<double>() > 0.1);
  CHECK(facts["machine"].contains("model"));
  CHECK(facts["build"].contains("commit"));
  CHECK(facts["build"].contains("instruction set"));
}

HeatMap example_map() {
  return {"log10_nmse, d'oh",
          "features D",
          "length n",
          "log10_nmse",
          {"16", "64", "256"},
          {"200", "1000"},
          {-2.17, -2.96, -3.56, -2.2, std::nan(""), -3.6}};
}

TEST_CASE("scripts for gnuplot carry their data") {
  const std::string text = gnuplot_script(example_map());
  CHECK(contains(text, "set title 'log10_nmse, d''oh' noenhanced"));
  CHECK(contains(text, "set xtics noenhanced out nomirror ('16' 0, '64' 1, '256' 2)"));
  CHECK(contains(text, "\n0 0 -2.17\n"));
  CHECK(contains(text, "\n1 1 NaN\n"));
  HeatMap uneven = example_map();
  uneven.values.pop_back();
  CHECK(contains(error_of([&] { gnuplot_script(uneven); }), "5 values for 2 rows x 3 columns"));
  CHECK_THROWS_AS(gnuplot_script(CurvePlot{}), Error);
  CurvePlot plot{"t", "x", "y", false, false, {{"a", {1, 2}, {1}, {}}}};
  CHECK(contains(error_of([&] { gnuplot_script(plot); }), "2 x, 1 y and 0 error values"));
}

TEST_CASE("a missing or failing gnuplot is a warning") {
  const Folder folder;
  bool made = true;
  const std::string missing = stderr_of(
      [&] { made = write_plot(example_map(), folder / "map", "gnuplot-that-is-not-there"); });
  CHECK_FALSE(made);
  CHECK(contains(missing, "apt-get install gnuplot-nox"));
  CHECK(fs::exists(folder / "map.gp"));
  put(folder / "map.svg", "earlier");
  const std::string failing =
      stderr_of([&] { made = write_plot(example_map(), folder / "map", "false"); });
  CHECK_FALSE(made);
  CHECK(contains(failing, "warning: no pictures: false failed on"));
  CHECK(contents(folder / "map.svg") == "earlier");
  CHECK(folder.entries() == 2);
}

TEST_CASE("pictures by gnuplot") {
  if (std::system("gnuplot --version > /dev/null 2>&1") != 0) {
    MESSAGE("skipped: gnuplot is not installed");
    return;
  }
  const Folder folder;
  REQUIRE(write_plot(example_map(), folder / "it's a map"));
  const std::string svg = contents(folder / "it's a map.svg");
  CHECK(contains(svg, "-2.17"));
  CHECK(contains(svg, "log10_nmse"));
  CHECK(contents(folder / "it's a map.png").starts_with("\x89PNG"));
  CHECK(folder.entries() == 3);
  // The kept script makes the same pictures.
  fs::remove(folder / "it's a map.svg");
  const std::string command =
      "cd '" + (folder / "") + "' && gnuplot \"it's a map.gp\" > /dev/null 2>&1";
  CHECK(std::system(command.c_str()) == 0);
  CHECK(contains(contents(folder / "it's a map.svg"), "-2.17"));

  CurvePlot plot{"valid_loss",
                 "D",
                 "y",
                 true,
                 true,
                 {{"soft_max's", {16, 64, 256}, {1, 0.1, 0.01}, {}},
                  {"rmfa", {16, 64, 256}, {2, std::nan(""), 0.02}, {0.1, 0.1, 0.001}}}};
  REQUIRE(write_plot(plot, folder / "curves"));
  CHECK(contains(contents(folder / "curves.svg"), "soft_max's"));
  HeatMap flat{"flat", "", "", "", {"1"}, {"1"}, {2.0}};
  CHECK(write_plot(flat, folder / "flat"));
  flat.values = {std::nan("")};
  CHECK(write_plot(flat, folder / "flat"));
}

}  // namespace
}  // namespace macgrad::experiments
