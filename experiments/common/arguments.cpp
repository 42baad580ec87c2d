// With --device cuda this is where the CUDA kernels are registered, or the error says what is
// missing.
#include "macgrad/experiments/common/arguments.h"

#include <omp.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "macgrad/core/version.h"
#include "macgrad/experiments/common/machine.h"

#ifdef MACGRAD_WITH_CUDA
#include "macgrad/cuda/register.h"
#endif

namespace macgrad::experiments {
namespace {

constexpr int kMostThreads = 1024;

void use_cuda() {
#ifdef MACGRAD_WITH_CUDA
  const CudaStatus status = cuda_status();
  if (!status.usable) {
    throw Error(
        "--device cuda: this build has CUDA, but no GPU can be used: {}; check the NVIDIA driver "
        "(nvidia-smi), or use --device cpu",
        status.reason);
  }
  register_cuda_kernels();
#else
  std::string reason = "off";
  for (const auto& [name, value] : build_facts()) {
    if (name == "CUDA") reason = value;
  }
  throw Error(
      "--device cuda: this build has no CUDA backend ({}); install the CUDA toolkit (nvcc 12 or "
      "later), configure with -DMACGRAD_CUDA=ON, or use --device cpu",
      reason);
#endif
}

}  // namespace

void add_device_options(Options& options, CommonOptions& common) {
  options.number("--threads", common.threads, between(0, kMostThreads),
                 "CPU threads; 0: the CPUs of the cgroup");
  options.choice("--device", common.device, {"cpu", "cuda"}, "Where tensors live");
}

void add_math_option(Options& options, CommonOptions& common) {
  options.choice("--math", common.math, {"exact", "tf32", "bf16"},
                 "How products on CUDA round their float32 inputs");
}

void add_common_options(Options& options, CommonOptions& common,
                        const std::vector<std::string>& precisions) {
  options.number("--seed", common.seed, "Seed of every random draw");
  add_device_options(options, common);
  add_math_option(options, common);
  options.choice("--precision", common.precision, precisions, "How numbers are stored");
  options.text("--out", common.out, "Folder for the results (default: a new one below runs/)",
               "FOLDER");
}

Device device_of(const CommonOptions& options) {
  return options.device == "cuda" ? Device{DeviceType::cuda} : kCpu;
}

DType dtype_of(const CommonOptions& options) {
  if (options.precision == "bf16") return DType::bfloat16;
  return options.precision == "float64" ? DType::float64 : DType::float32;
}

void use_math(CommonOptions& options, const std::string& mode) {
  require(mode == "exact" || options.device == "cuda",
          "--math {} is for --device cuda; the CPU computes float32 exactly", mode);
#ifdef MACGRAD_WITH_CUDA
  if (options.device == "cuda") set_cuda_math(mode);
#endif
  options.math = mode;
}

void apply_common_options(CommonOptions& options) {
  require(options.math == "exact" || options.precision == "float32",
          "--math {} rounds the float32 inputs of products, and --precision {} has none; leave one "
          "of the two out",
          options.math, options.precision);
  if (options.device == "cuda") use_cuda();
  use_math(options, options.math);
  if (options.threads == 0) options.threads = std::min(available_cpus(), kMostThreads);
  omp_set_num_threads(options.threads);
}

Json to_json(const CommonOptions& options) {
  return {{"seed", options.seed}, {"threads", options.threads},     {"device", options.device},
          {"math", options.math}, {"precision", options.precision}, {"out", options.out}};
}

CommonOptions common_options_from_json(const Json& json) {
  CommonOptions options;
  json.at("seed").get_to(options.seed);
  json.at("threads").get_to(options.threads);
  json.at("device").get_to(options.device);
  json.at("math").get_to(options.math);
  json.at("precision").get_to(options.precision);
  json.at("out").get_to(options.out);
  return options;
}

}  // namespace macgrad::experiments
