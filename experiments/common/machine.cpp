// Read from /proc and /sys; a file that is missing is a fact that is unknown, never an error.
#include "macgrad/experiments/common/machine.h"

#include <fmt/format.h>

#include <sched.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <optional>
#include <sstream>

#include "macgrad/core/version.h"

namespace macgrad::experiments {
namespace fs = std::filesystem;
namespace {

std::string first_line(const fs::path& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

std::optional<double> number_in(const fs::path& path) {
  std::istringstream text(first_line(path));
  double value = 0;
  if (text >> value) return value;
  return std::nullopt;
}

// CPUs allowed by one group's folder; 0: no limit set there.
double quota_v2(const fs::path& group) {
  std::istringstream text(first_line(group / "cpu.max"));  // "max 100000" or "150000 100000"
  double quota = 0;
  double period = 0;
  if (text >> quota >> period && quota > 0 && period > 0) return quota / period;
  return 0;
}

double quota_v1(const fs::path& group) {
  const double quota = number_in(group / "cpu.cfs_quota_us").value_or(-1);
  const double period = number_in(group / "cpu.cfs_period_us").value_or(0);
  return quota > 0 && period > 0 ? quota / period : 0;
}

double smaller_limit(double a, double b) {
  if (a <= 0) return b;
  return b <= 0 ? a : std::min(a, b);
}

// The tightest limit on the way from `mount`/`group` up to `mount`. In a container the path often
// names a folder of the host; the mount then shows the group itself at its root.
template <typename Read>
double limit_on_path(const fs::path& mount, const std::string& group, Read read) {
  double limit = read(mount);
  fs::path below = mount;
  for (const fs::path& part : fs::path(group).relative_path()) {
    below /= part;
    limit = smaller_limit(limit, read(below));
  }
  return limit;
}

// Calls visit(controllers, path) for each line "number:controllers:path" of /proc/self/cgroup;
// controllers are empty in v2.
template <typename Visit>
void for_each_group(const fs::path& root, Visit visit) {
  std::ifstream groups(root / "proc/self/cgroup");
  for (std::string line; std::getline(groups, line);) {
    const std::size_t first = line.find(':');
    const std::size_t second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    visit(fmt::format(",{},", line.substr(first + 1, second - first - 1)), line.substr(second + 1));
  }
}

double memory_limit_bytes() {
  double limit = 0;
  const auto read = [](const char* name) {
    return [name](const fs::path& group) { return number_in(group / name).value_or(0); };
  };
  for_each_group("/", [&](const std::string& controllers, const std::string& path) {
    if (controllers == ",,") {
      limit = smaller_limit(limit, limit_on_path("/sys/fs/cgroup", path, read("memory.max")));
    } else if (controllers.find(",memory,") != std::string::npos) {
      limit = smaller_limit(
          limit, limit_on_path("/sys/fs/cgroup/memory", path, read("memory.limit_in_bytes")));
    }
  });
  return limit;
}

Json value_after(const fs::path& file, const std::string& key, char separator) {
  std::ifstream text(file);
  for (std::string line; std::getline(text, line);) {
    if (!line.starts_with(key)) continue;
    const std::size_t at = line.find(separator);
    if (at == std::string::npos) continue;
    const std::size_t start = line.find_first_not_of(" \t\"", at + 1);
    if (start == std::string::npos) continue;
    return line.substr(start, line.find_last_not_of(" \t\"") + 1 - start);
  }
  return nullptr;
}

double gib(double bytes) {
  return std::round(bytes / (1 << 30) * 10) / 10;
}

}  // namespace

double cgroup_cpu_quota(const std::string& root) {
  const fs::path top(root);
  double quota = 0;
  for_each_group(top, [&](const std::string& controllers, const std::string& path) {
    if (controllers == ",,") {
      quota = smaller_limit(quota, limit_on_path(top / "sys/fs/cgroup", path, quota_v2));
    } else if (controllers.find(",cpu,") != std::string::npos) {
      for (const char* mount : {"sys/fs/cgroup/cpu", "sys/fs/cgroup/cpu,cpuacct"}) {
        quota = smaller_limit(quota, limit_on_path(top / mount, path, quota_v1));
      }
    }
  });
  return quota;
}

int available_cpus() {
  int cpus = 0;
  cpu_set_t set;
  CPU_ZERO(&set);
  // Fails on machines of more than 1024 CPUs, where the kernel's mask is longer than cpu_set_t.
  if (sched_getaffinity(0, sizeof set, &set) == 0) cpus = CPU_COUNT(&set);
  if (cpus < 1) cpus = static_cast<int>(sysconf(_SC_NPROCESSORS_ONLN));
  const double quota = cgroup_cpu_quota();
  if (quota > 0) cpus = std::min(cpus, static_cast<int>(quota));
  return std::max(cpus, 1);
}

Json machine_facts() {
  Json facts;
  facts["model"] = value_after("/proc/cpuinfo", "model name", ':');
  facts["logical_cpus"] = sysconf(_SC_NPROCESSORS_ONLN);
  facts["available_cpus"] = available_cpus();
  const double memory =
      static_cast<double>(sysconf(_SC_PHYS_PAGES)) * static_cast<double>(sysconf(_SC_PAGE_SIZE));
  facts["memory_gib"] = gib(memory);
  const double limit = memory_limit_bytes();
  facts["memory_limit_gib"] = limit > 0 && limit < memory ? Json(gib(limit)) : Json(nullptr);
  facts["os"] = value_after("/etc/os-release", "PRETTY_NAME", '=');
  utsname system{};
  facts["kernel"] = uname(&system) == 0 ? Json(std::string(system.sysname) + " " + system.release)
                                        : Json(nullptr);
  return facts;
}

Json provenance() {
  Json build;
  for (const auto& [name, value] : build_facts()) build[name] = value;
  return {{"build", std::move(build)}, {"machine", machine_facts()}};
}

}  // namespace macgrad::experiments
