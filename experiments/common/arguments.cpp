// Option parsing on top of CLI11. Numbers and ranges are read here with std::from_chars, because
// the library's conversion takes "-1" as an unsigned number. With --device cuda this is where the
// CUDA kernels are registered, or the error says what is missing.
#include "experiments/common/arguments.h"

#include <fmt/format.h>
#include <omp.h>

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <new>
#include <optional>

#include "core/error.h"
#include "core/version.h"
#include "experiments/common/machine.h"

#ifdef MACGRAD_WITH_CUDA
#include "cuda/register.h"
#endif

namespace macgrad::experiments {
namespace {

constexpr std::size_t kLongestList = 10000;
constexpr int kMostThreads = 1024;

std::vector<std::string_view> split(std::string_view text, char separator) {
  std::vector<std::string_view> parts;
  while (true) {
    const std::size_t at = text.find(separator);
    parts.push_back(text.substr(0, at));
    if (at == std::string_view::npos) return parts;
    text.remove_prefix(at + 1);
  }
}

std::string_view trimmed(std::string_view text) {
  while (!text.empty() && text.front() == ' ') text.remove_prefix(1);
  while (!text.empty() && text.back() == ' ') text.remove_suffix(1);
  return text;
}

std::optional<std::int64_t> plain_integer(std::string_view text) {
  std::int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (text.empty() || error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

// "12" or "2^4"; nothing when it is neither or leaves int64.
std::optional<std::int64_t> integer(std::string_view text) {
  text = trimmed(text);
  const std::size_t caret = text.find('^');
  if (caret == std::string_view::npos) return plain_integer(text);
  const auto base = plain_integer(text.substr(0, caret));
  const auto exponent = plain_integer(text.substr(caret + 1));
  if (!base || !exponent || *exponent < 0 || *exponent > 62) return std::nullopt;
  std::int64_t power = 1;
  for (std::int64_t i = 0; i < *exponent; ++i) {
    if (__builtin_mul_overflow(power, *base, &power)) return std::nullopt;
  }
  return power;
}

// The next value of a range, nothing when it would pass the end of int64.
std::optional<std::int64_t> advance(std::int64_t value, std::int64_t step, bool geometric) {
  std::int64_t next = 0;
  const bool overflow = geometric ? __builtin_mul_overflow(value, step, &next)
                                  : __builtin_add_overflow(value, step, &next);
  return overflow ? std::nullopt : std::optional(next);
}

void use_cuda([[maybe_unused]] const CommonOptions& options) {
#ifdef MACGRAD_WITH_CUDA
  const CudaStatus status = cuda_status();
  if (!status.usable) {
    throw Error(
        "--device cuda: this build has CUDA, but no GPU can be used: {}; check the NVIDIA driver "
        "(nvidia-smi), or use --device cpu",
        status.reason);
  }
  register_cuda_kernels();
  set_cuda_math(options.math);
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

void add_common_options(CLI::App& app, CommonOptions& options,
                        const std::vector<std::string>& precisions) {
  // strtoull, behind CLI11's own conversion, turns "-1" into 2^64 - 1.
  const auto check_seed = [](const std::string& text) -> std::string {
    std::uint64_t seed = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), seed);
    if (error == std::errc() && end == text.data() + text.size()) return "";
    return fmt::format("--seed: \"{}\" is no whole number from 0 to 2^64 - 1", text);
  };
  app.add_option("--seed", options.seed, "Seed of every random draw")
      ->check(CLI::Validator(check_seed, ""))
      ->capture_default_str();
  app.add_option("--threads", options.threads, "CPU threads; 0: the CPUs of the cgroup")
      ->check(CLI::Range(0, kMostThreads))
      ->capture_default_str();
  add_choice(app, "--device", options.device, {"cpu", "cuda"}, "Where tensors live");
  add_choice(app, "--math", options.math, {"exact", "tf32", "bf16"},
             "How products on CUDA round their float32 inputs");
  if (!precisions.empty())
    add_choice(app, "--precision", options.precision, precisions, "How numbers are stored");
  app.add_option("--out", options.out, "Folder for the results (default: a new one below runs/)");
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
  require(options.math == "exact" || options.device == "cuda",
          "--math {} is for --device cuda; the CPU computes float32 exactly", options.math);
  require(options.math == "exact" || options.precision == "float32",
          "--math {} rounds the float32 inputs of products, and --precision {} has none; leave one "
          "of the two out",
          options.math, options.precision);
  if (options.device == "cuda") use_cuda(options);
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

std::vector<std::int64_t> parse_integers(std::string_view option, std::string_view text,
                                         std::int64_t smallest) {
  std::vector<std::int64_t> values;
  const auto add = [&](std::int64_t value) {
    if (value < smallest) throw Error("{}: {} is below {}", option, value, smallest);
    if (values.size() == kLongestList) {
      throw Error("{}: \"{}\" is a list of more than {} values", option, text, kLongestList);
    }
    values.push_back(value);
  };
  for (std::string_view part : split(text, ',')) {
    const auto wrong = [&]() {
      return Error(
          "{}: \"{}\" in \"{}\" is no whole number (200, 2^8) and no range first:last[:step] "
          "or first:last:xFACTOR",
          option, part, text);
    };
    const std::vector<std::string_view> fields = split(part, ':');
    if (fields.size() > 3) throw wrong();
    const auto first = integer(fields[0]);
    if (!first) throw wrong();
    if (fields.size() == 1) {
      add(*first);
      continue;
    }
    const auto last = integer(fields[1]);
    std::string_view step_text = fields.size() == 3 ? trimmed(fields[2]) : "1";
    const bool geometric = step_text.starts_with('x');
    if (geometric) step_text.remove_prefix(1);
    const auto step = integer(step_text);
    if (!last || !step) throw wrong();
    if (*last < *first || *step < (geometric ? 2 : 1) || (geometric && *first < 1)) {
      throw Error(
          "{}: the range \"{}\" never ends: it must rise by a step of at least 1, or from at "
          "least 1 by a factor of at least x2",
          option, part);
    }
    for (std::optional<std::int64_t> value = first; value && *value <= *last;
         value = advance(*value, *step, geometric)) {
      add(*value);
    }
  }
  return values;
}

std::vector<std::string> parse_words(std::string_view option, std::string_view text,
                                     const std::vector<std::string>& allowed) {
  std::vector<std::string> words;
  for (std::string_view part : split(text, ',')) {
    const std::string word(trimmed(part));
    if (word.empty()) throw Error("{}: empty word in \"{}\"", option, text);
    if (!allowed.empty() && std::find(allowed.begin(), allowed.end(), word) == allowed.end()) {
      throw Error("{}: unknown \"{}\"; known: {}", option, word, fmt::join(allowed, ", "));
    }
    words.push_back(word);
  }
  return words;
}

CLI::Option* add_integer_list(CLI::App& app, const std::string& name,
                              std::vector<std::int64_t>& values, const std::string& description,
                              std::int64_t smallest) {
  const auto assign = [&values, name, smallest](const std::string& text) {
    try {
      values = parse_integers(name, text, smallest);
    } catch (const Error& error) {
      throw CLI::ValidationError(error.what());
    }
  };
  return app.add_option_function<std::string>(name, assign, description)
      ->type_name("LIST")
      ->default_str(fmt::format("{}", fmt::join(values, ",")));
}

CLI::Option* add_choice(CLI::App& app, const std::string& name, std::string& value,
                        const std::vector<std::string>& choices, const std::string& description) {
  const auto check = [name, choices](const std::string& text) -> std::string {
    if (std::find(choices.begin(), choices.end(), text) != choices.end()) return "";
    return fmt::format("{}: unknown \"{}\"; known: {}", name, text, fmt::join(choices, ", "));
  };
  return app.add_option(name, value, description)
      ->check(CLI::Validator(check, fmt::format("{}", fmt::join(choices, "|"))))
      ->type_name("")
      ->capture_default_str();
}

std::string value_of(std::string_view option, int argc, const char* const* argv) {
  for (int i = 1; i < argc; ++i) {
    const std::string_view word = argv[i];
    if (word == option && i + 1 < argc) return argv[i + 1];
    if (word.starts_with(option) && word.size() > option.size() && word[option.size()] == '=')
      return std::string(word.substr(option.size() + 1));
  }
  return "";
}

int run_program(int argc, const char* const* argv, const std::string& program,
                const std::string& description, const std::function<void(CLI::App&)>& declare,
                const std::function<int()>& body) {
  try {
    CLI::App app(description, program);
    app.set_version_flag(
        "--version", [program] { return version_text(program); },
        "Print version, commit, libraries and instruction set");
    declare(app);
    try {
      app.parse(argc, argv);
    } catch (const CLI::ParseError& error) {
      // --help and --version arrive here too, with exit code 0.
      return app.exit(error) == 0 ? 0 : 2;
    }
    const int code = body();
    // What was printed may have stayed in the buffer until now.
    require(std::fflush(stdout) == 0 && std::ferror(stdout) == 0,
            "standard output cannot be written: what was printed is not complete");
    return code;
  } catch (const std::bad_alloc&) {
    std::fprintf(stderr, "%s: error: out of memory\n", program.c_str());
  } catch (const std::exception& error) {
    // Not fmt::print, which throws where stderr is closed.
    std::fprintf(stderr, "%s: error: %s\n", program.c_str(), error.what());
  }
  return 1;
}

}  // namespace macgrad::experiments
