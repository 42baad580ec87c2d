// The machine a figure was measured on, and how many of its CPUs this process may use.
#pragma once

#include <cstdint>
#include <string>

#include "macgrad/experiments/common/json_fwd.h"

namespace macgrad::experiments {

/// CPUs this process may run on: the smaller of its affinity mask and its cgroup's quota (v2
/// cpu.max, v1 cpu.cfs_quota_us, along the whole path of the group), rounded down, at least 1. A
/// container with 2 of 64 CPUs gets 2: more threads would only wait for each other.
int available_cpus();

/// The quota of the cgroups alone, in CPUs; 0 when there is none. `root` replaces "/" (for tests).
double cgroup_cpu_quota(const std::string& root = "/");

/// "model", "logical_cpus", "available_cpus", "memory_gib", "memory_limit_gib" (null without
/// limit), "os", "kernel". Unknown facts are null.
Json machine_facts();

/// "build": what core/version.h knows of the binary, "machine": machine_facts(). For the results'
/// JSON.
Json provenance();

}  // namespace macgrad::experiments
