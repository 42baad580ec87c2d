// The facts of the build: from CMake (definitions given to this file alone), from the compiler's
// macros, and, for oneDNN and OpenBLAS, from the library that is really loaded.
#include "macgrad/core/version.h"

#include <cblas.h>
#include <fmt/format.h>

#include "macgrad/commit.h"
#include "macgrad/vector_math_config.h"

#if MACGRAD_WITH_ONEDNN
#include <oneapi/dnnl/dnnl.h>
#endif

namespace macgrad {
namespace {

std::string instruction_set() {
#if defined(__AVX512F__)
  return "x86-64 AVX-512";
#elif defined(__AVX2__) && defined(__FMA__)
  return "x86-64 AVX2+FMA";
#elif defined(__AVX__)
  return "x86-64 AVX";
#elif defined(__x86_64__)
  return "x86-64 SSE2";
#elif defined(__aarch64__)
  return "aarch64";
#else
  return "generic";
#endif
}

std::string compiler() {
#if defined(__clang__)
  return "clang " __clang_version__;
#else
  return "g++ " __VERSION__;
#endif
}

std::string onednn() {
#if MACGRAD_WITH_ONEDNN
  const dnnl_version_t* v = dnnl_version();
  return fmt::format("{}.{}.{}", v->major, v->minor, v->patch);
#else
  return "none (CBLAS serves float32)";
#endif
}

std::string cblas() {
#if defined(OPENBLAS_VERSION)
  return openblas_get_config();
#else
  return MACGRAD_CBLAS_LIBRARY;
#endif
}

}  // namespace

const char* version() {
  return MACGRAD_VERSION;
}

const char* commit() {
  return MACGRAD_COMMIT;
}

std::vector<std::pair<std::string, std::string>> build_facts() {
  std::string build = MACGRAD_BUILD_TYPE;
  if (*MACGRAD_SANITIZE != '\0') build += " -fsanitize=" MACGRAD_SANITIZE;
  const std::string vectors = MACGRAD_VEC_LIST;
  return {{"version", version()},
          {"commit", commit()},
          {"build", build},
          {"compiler", compiler()},
          {"instruction set", instruction_set()},
          {"vector maths", vectors.empty() ? "none" : vectors},
          {"oneDNN", onednn()},
          {"CBLAS", cblas()},
          {"fmt", fmt::format("{}.{}.{}", FMT_VERSION / 10000, FMT_VERSION / 100 % 100,
                              FMT_VERSION % 100)},
          {"CUDA", MACGRAD_CUDA_STATUS}};
}

std::string version_text(const std::string& program) {
  std::string text = fmt::format("{} (macgrad {})\n", program, version());
  for (const auto& [name, value] : build_facts()) {
    if (name != "version") text += fmt::format("  {:<16} {}\n", name, value);
  }
  return text;
}

}  // namespace macgrad
