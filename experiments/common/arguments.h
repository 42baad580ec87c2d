// What every program's command line has in common, on top of CLI11: the shared options, lists and
// ranges of numbers, --version, and one place where errors become a message and an exit code.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "core/dtype.h"
#include "experiments/common/output_files.h"

namespace macgrad::experiments {

struct CommonOptions {
  std::uint64_t seed = 1;
  int threads = 0;                    // 0: the CPUs of the cgroup; resolved by apply_common_options
  std::string device = "cpu";         // cpu | cuda
  std::string math = "exact";         // exact | tf32 | bf16; CUDA and float32 only
  std::string precision = "float32";  // float32 | float64 | bf16
  std::string out;                    // "": a new folder below runs/
};

/// Adds --seed, --threads, --device, --math, --precision and --out (--version comes with
/// run_program). `options` holds the defaults shown by --help and must outlive the app.
/// `precisions` are those that the program computes in; without any it has no --precision.
void add_common_options(CLI::App& app, CommonOptions& options,
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

/// Whole numbers: "200,500,1000", powers "2^4", ranges "200:1000:200" (both ends, last part the
/// step, 1 if absent) and geometric ranges "16:1024:x2"; all may be mixed, separated by commas.
/// Throws naming the option and the part that is wrong; values must be at least `smallest`.
std::vector<std::int64_t> parse_integers(std::string_view option, std::string_view text,
                                         std::int64_t smallest = 1);

/// Comma-separated words without empty ones; each must be one of `allowed` (unless that is empty).
std::vector<std::string> parse_words(std::string_view option, std::string_view text,
                                     const std::vector<std::string>& allowed);

/// A list option: `values` keeps its default unless the option is given.
CLI::Option* add_integer_list(CLI::App& app, const std::string& name,
                              std::vector<std::int64_t>& values, const std::string& description,
                              std::int64_t smallest = 1);

/// A word out of a list; the error of a wrong one lists them all.
CLI::Option* add_choice(CLI::App& app, const std::string& name, std::string& value,
                        const std::vector<std::string>& choices, const std::string& description);

/// The value of `option` in argv in either form, "--preset quick" or "--preset=quick"; "" without
/// it. For options that choose the defaults of others, which have to be known before those are
/// declared.
std::string value_of(std::string_view option, int argc, const char* const* argv);

/// The body of main(): declares options with `declare`, parses, runs `body` and returns its exit
/// code. A wrong command line prints the error and a pointer to --help (exit code 2); an exception
/// prints "PROGRAM: error: ..." (exit code 1).
int run_program(int argc, const char* const* argv, const std::string& program,
                const std::string& description, const std::function<void(CLI::App&)>& declare,
                const std::function<int()>& body);

}  // namespace macgrad::experiments
