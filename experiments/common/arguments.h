// The options that programs have in common, and what they set: seed, threads, device, precision and
// the folder for results.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "macgrad/core/dtype.h"
#include "macgrad/experiments/common/json_fwd.h"
#include "macgrad/experiments/common/options.h"

namespace macgrad::experiments {

struct CommonOptions {
  std::uint64_t seed = 1;
  int threads = 0;                    // 0: the CPUs of the cgroup; resolved by apply_common_options
  std::string device = "cpu";         // cpu | cuda
  std::string math = "exact";         // exact | tf32 | bf16; CUDA and float32 only
  std::string precision = "float32";  // float32 | float64 | bf16
  std::string out;                    // "": a new folder below runs/
};

/// Adds --threads and --device.
void add_device_options(Options& options, CommonOptions& common);
/// Adds --math.
void add_math_option(Options& options, CommonOptions& common);
/// Adds those, --seed, --precision and --out. `precisions` are those that the program computes in.
void add_common_options(Options& options, CommonOptions& common,
                        const std::vector<std::string>& precisions = {"float32", "float64"});

/// Where `options` puts tensors.
Device device_of(const CommonOptions& options);
/// How they are stored: bf16 is bfloat16, with float32 masters of what an optimizer trains.
DType dtype_of(const CommonOptions& options);

/// Checks the device, registers its kernels, sets the number of OpenMP threads and fills in
/// options.threads. Call once after parsing, before any tensor is made. Throws when --device cuda
/// cannot be served, saying what is missing (a build without CUDA, a driver, a card).
void apply_common_options(CommonOptions& options);

/// Another --math, for programs that compare them: sets options.math and how products round from
/// here on. An Error unless the device is CUDA or the mode "exact".
void use_math(CommonOptions& options, const std::string& mode);

/// For the results' JSON, and back; reading throws nlohmann's exceptions.
Json to_json(const CommonOptions& options);
CommonOptions common_options_from_json(const Json& json);

}  // namespace macgrad::experiments
