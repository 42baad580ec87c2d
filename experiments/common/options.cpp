// Numbers are read with std::from_chars: CLI11's own conversions accept "-1" as an unsigned number,
// and its ranges accept NaN and print their bounds with 309 digits.
#include "macgrad/experiments/common/options.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <new>
#include <sstream>
#include <utility>

#include "macgrad/core/version.h"
#include "macgrad/experiments/common/lists.h"
#include "macgrad/experiments/common/progress.h"

namespace macgrad::experiments {
namespace {

constexpr char kListRule[] =
    "LIST: values between commas. NAME=VALUE belongs to the value before it when that has a colon: "
    "poly:c=1,k=2,exp are two.";
constexpr char kIntegersRule[] =
    "INTS: whole numbers and ranges between commas: 200,500 or 2^4 or 200:1000:200 (step) or "
    "16:1024:x2 (factor).";

// The type that a rule explains.
std::string type_of(std::string_view rule) {
  return std::string(rule.substr(0, rule.find(':')));
}

bool looks_whole(std::string_view text) {
  if (text.starts_with('-')) text.remove_prefix(1);
  return !text.empty() && text.find_first_not_of("0123456789") == std::string_view::npos;
}

// The number in `text`, which must be all of it and from `least` to `most`.
template <class T>
T number_in(const std::string& name, const std::string& text, T least, T most, bool open = false) {
  T value{};
  const char* end = text.data() + text.size();
  const auto [read, error] = std::from_chars(text.data(), end, value);
  const bool too_large = error == std::errc::result_out_of_range;
  constexpr bool whole = std::is_integral_v<T>;
  const bool negative = text.starts_with('-');
  if (whole && looks_whole(text) && error != std::errc()) {
    // More digits than the type holds, or a sign that it does not.
    if (negative) throw UsageError("{} {} must be at least {}", name, shortened(text), least);
    throw UsageError("{} {} must be at most {}", name, shortened(text), most);
  }
  if (too_large)
    throw UsageError("{} {} is too large or too small for a number of 64 bits", name,
                     shortened(text));
  if (error != std::errc() || read != end)
    throw UsageError("{} \"{}\" is not a {}", name, shortened(text),
                     whole ? "whole number" : "number");
  if constexpr (!whole)
    if (!std::isfinite(value))
      throw UsageError("{} {} is not a finite number", name, shortened(text));
  if (open ? value <= least : value < least)
    throw UsageError("{} {} must be {} {}", name, shortened(text), open ? "above" : "at least",
                     least);
  if (value > most) throw UsageError("{} {} must be at most {}", name, shortened(text), most);
  return value;
}

// A bound as a whole number, or the type's own where there is none.
template <class T>
T whole_bound(double bound, T none) {
  return std::isfinite(bound) ? static_cast<T>(bound) : none;
}

}  // namespace

struct Options::State {
  State(const std::string& program, const std::string& description) : app(description, program) {
    app.parse_complete_callback([this] {
      for (const auto& check : checks) check();
    });
  }

  CLI::Option* add(const std::string& name, const std::string& text,
                   const std::function<void(const std::string&)>& take) {
    return app.add_option_function<std::string>(name, take, text);
  }

  template <class T>
  void whole(const std::string& name, T& value, Range range, const std::string& text) {
    const T least = whole_bound<T>(range.least, std::numeric_limits<T>::lowest());
    const T most = whole_bound<T>(range.most, static_cast<T>(std::min<int64_t>(
                                                  kLargestInteger, std::numeric_limits<T>::max())));
    add(name, text,
        [&value, name, least, most, open = range.open](const std::string& given) {
          value = number_in<T>(name, given, least, most, open);
        })
        ->type_name("INT")
        ->default_str(fmt::format("{}", value));
  }

  void list(const std::string& name, const char* rule, const std::string& text,
            const std::string& shown,
            const std::function<void(const std::vector<std::string>&)>& take) {
    const auto usage = [take](const std::vector<std::string>& lists) {
      try {
        take(lists);
      } catch (const Error& error) {
        throw UsageError("{}", error.what());
      }
    };
    app.add_option_function<std::vector<std::string>>(name, usage, text)
        ->type_name(type_of(rule))
        ->default_str(shown);
  }

  // The footer, and what the types of the lists in --help mean.
  void finish() {
    std::string text = footer;
    for (const char* rule : {kListRule, kIntegersRule}) {
      const auto is_shown = [&](const CLI::Option* option) {
        return option->get_type_name() == type_of(rule) && !option->get_group().empty();
      };
      const auto all = std::as_const(app).get_options();
      if (std::any_of(all.begin(), all.end(), is_shown))
        text += fmt::format("{}{}", text.empty() ? "" : "\n", rule);
    }
    app.footer(text);
  }

  CLI::App app;
  std::string footer;
  std::vector<std::function<void()>> checks;
};

Options::Options(const std::string& program, const std::string& description)
    : state_(std::make_unique<State>(program, description)) {}

Options::~Options() = default;

void Options::number(const std::string& name, double& value, Range range, const std::string& text) {
  state_
      ->add(name, text,
            [&value, name, range](const std::string& given) {
              value = number_in<double>(name, given, range.least, range.most, range.open);
            })
      ->type_name("FLOAT")
      ->default_str(fmt::format("{}", value));
}

void Options::number(const std::string& name, int64_t& value, Range range,
                     const std::string& text) {
  state_->whole(name, value, range, text);
}

void Options::number(const std::string& name, int& value, Range range, const std::string& text) {
  state_->whole(name, value, range, text);
}

void Options::number(const std::string& name, uint64_t& value, const std::string& text) {
  state_
      ->add(name, text,
            [&value, name](const std::string& given) {
              value = number_in<uint64_t>(name, given, 0, std::numeric_limits<uint64_t>::max());
            })
      ->type_name("INT")
      ->default_str(fmt::format("{}", value));
}

void Options::text(const std::string& name, std::string& value, const std::string& text,
                   const std::string& type) {
  state_->app.add_option(name, value, text)->type_name(type)->capture_default_str();
}

void Options::flag(const std::string& name, bool& value, const std::string& text) {
  state_->app.add_flag(name, value, text)->disable_flag_override();
}

void Options::choice(const std::string& name, std::string& value,
                     const std::vector<std::string>& choices, const std::string& text) {
  state_
      ->add(name, text,
            [&value, name, choices](const std::string& given) {
              if (std::find(choices.begin(), choices.end(), given) == choices.end())
                throw UsageError("{}: unknown \"{}\"; known: {}", name, shortened(given),
                                 fmt::join(choices, ", "));
              value = given;
            })
      ->type_name(fmt::format("{}", fmt::join(choices, "|")))
      ->default_str(value);
}

void Options::words(const std::string& name, std::vector<std::string>& values,
                    const std::string& text, const std::vector<std::string>& allowed) {
  state_->list(name, kListRule, text, fmt::format("{}", fmt::join(values, ",")),
               [&values, name, allowed](const std::vector<std::string>& lists) {
                 std::vector<std::string> all;
                 for (const std::string& list : lists)
                   for (std::string& word : parse_words(name, list, allowed))
                     all.push_back(std::move(word));
                 values = std::move(all);
               });
}

void Options::integers(const std::string& name, std::vector<int64_t>& values,
                       const std::string& text, int64_t least) {
  state_->list(name, kIntegersRule, text, fmt::format("{}", fmt::join(values, ",")),
               [&values, name, least](const std::vector<std::string>& lists) {
                 std::vector<int64_t> all;
                 for (const std::string& list : lists)
                   for (const int64_t value : parse_integers(name, list, least))
                     all.push_back(value);
                 values = std::move(all);
               });
}

void Options::paths(const std::string& name, std::vector<std::string>& values,
                    const std::string& text, const std::string& type) {
  state_->app.add_option(name, values, text)->type_name(type);
}

void Options::require(const std::string& name) {
  state_->app.get_option(name)->required();
}

void Options::exclude(const std::string& name, const std::string& other) {
  state_->app.get_option(name)->excludes(other);
}

void Options::refuse(const std::vector<std::string>& names, const std::string& why) {
  for (const std::string& name : names) {
    const auto fail = [name, why](const std::string&) -> std::string {
      throw UsageError("{} {}", name, why);
    };
    state_->app.get_option(name)->group("")->check(CLI::Validator(fail, ""));
  }
}

void Options::footer(const std::string& text) {
  state_->footer = text;
}

void Options::check(std::function<void()> check) {
  state_->checks.push_back(std::move(check));
}

bool Options::has(const std::string& name) const {
  return state_->app.get_option_no_throw(name) != nullptr;
}

bool Options::given(const std::string& name) const {
  return state_->app.get_option(name)->count() > 0;
}

void Options::set(const std::string& name, const std::string& value) {
  try {
    CLI::Option* option = state_->app.get_option(name);
    option->add_result(value);
    option->run_callback();
  } catch (const CLI::Error& error) {
    throw UsageError("{}", error.what());
  }
}

void Options::parse(const std::string& line) {
  try {
    state_->app.parse(line);
  } catch (const CLI::Error& error) {
    throw UsageError("{}", error.what());
  }
}

std::string option_of(std::string setting) {
  std::replace(setting.begin(), setting.end(), '_', '-');
  return "--" + setting;
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
                const std::string& description, const std::function<void(Options&)>& declare,
                const std::function<int()>& body) {
  try {
    Options options(program, description);
    CLI::App& app = options.state_->app;
    app.set_version_flag(
        "--version", [program] { return version_text(program); },
        "Print version, commit, libraries and instruction set");
    declare(options);
    options.state_->finish();
    int code = 0;
    try {
      app.parse(argc, argv);
      code = body();
    } catch (const CLI::ParseError& error) {
      // --help and --version arrive here too, with exit code 0.
      std::ostringstream out, errors;
      code = app.exit(error, out, errors) == 0 ? 0 : 2;
      put(stdout, out.str());
      put(stderr, errors.str());
    }
    // What was printed may have stayed in the buffer until now. A signal's exit code says more.
    require(code > 128 || (std::fflush(stdout) == 0 && std::ferror(stdout) == 0),
            "standard output cannot be written: what was printed is not complete");
    return code;
  } catch (const UsageError& error) {
    say(stderr, "{}\nRun with --help for more information.\n", error.what());
    return 2;
  } catch (const std::bad_alloc&) {
    say(stderr, "{}: error: out of memory\n", program);
  } catch (const std::exception& error) {
    say(stderr, "{}: error: {}\n", program, error.what());
  }
  return 1;
}

}  // namespace macgrad::experiments
