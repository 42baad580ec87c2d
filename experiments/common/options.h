// The options of a program: numbers with ranges, lists, --version, and the one place where errors
// become a message and an exit code. CLI11 does the parsing; options.cpp alone includes it, because
// its headers take seconds to compile.
#pragma once

#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "macgrad/core/error.h"

namespace macgrad::experiments {

/// A wrong command line. run_program prints it with a pointer to --help (exit code 2).
class UsageError : public Error {
 public:
  using Error::Error;
};

/// Where a number may lie. Infinity stands for no bound; options take finite numbers only.
struct Range {
  double least = -std::numeric_limits<double>::infinity();
  double most = std::numeric_limits<double>::infinity();
  bool open = false;  // `least` itself is excluded
};
inline Range above(double least) {
  return {least, std::numeric_limits<double>::infinity(), true};
}
inline Range at_least(double least) {
  return {least, std::numeric_limits<double>::infinity(), false};
}
inline Range between(double least, double most) {
  return {least, most, false};
}

/// The options of one program. A variable keeps its value, which --help shows as the default,
/// unless its option is given; it must outlive the object. A wrong value is a UsageError that names
/// the option: "--lr 0 must be above 0".
class Options {
 public:
  explicit Options(const std::string& program, const std::string& description = "");
  ~Options();
  Options(const Options&) = delete;
  Options& operator=(const Options&) = delete;

  void number(const std::string& name, double& value, Range range, const std::string& text);
  void number(const std::string& name, int64_t& value, Range range, const std::string& text);
  void number(const std::string& name, int& value, Range range, const std::string& text);
  /// Any number from 0 to 2^64 - 1.
  void number(const std::string& name, uint64_t& value, const std::string& text);
  /// `type` is the word that --help prints after the name.
  void text(const std::string& name, std::string& value, const std::string& text,
            const std::string& type = "TEXT");
  /// "--share,!--separate" declares a flag and its negation.
  void flag(const std::string& name, bool& value, const std::string& text);
  /// One of `choices`; the error for another word lists them.
  void choice(const std::string& name, std::string& value, const std::vector<std::string>& choices,
              const std::string& text);
  /// A list as split_list reads it, given once or several times; each word must be one of `allowed`
  /// (unless that is empty).
  void words(const std::string& name, std::vector<std::string>& values, const std::string& text,
             const std::vector<std::string>& allowed = {});
  /// A list as parse_integers reads it.
  void integers(const std::string& name, std::vector<int64_t>& values, const std::string& text,
                int64_t least = 1);
  /// Paths, one per argument.
  void paths(const std::string& name, std::vector<std::string>& values, const std::string& text,
             const std::string& type);

  void require(const std::string& name);
  void exclude(const std::string& name, const std::string& other);
  /// Leaves options out of --help and makes them errors: "--beam WHY".
  void refuse(const std::vector<std::string>& names, const std::string& why);
  void footer(const std::string& text);
  /// Called after parsing, in the order of the calls; throws a UsageError for options that do not
  /// go together.
  void check(std::function<void()> check);
  bool given(const std::string& name) const;

  bool has(const std::string& name) const;
  /// Gives an option its value as the command line would.
  void set(const std::string& name, const std::string& value);
  /// Parses a line of words between spaces.
  void parse(const std::string& line);

 private:
  friend int run_program(int, const char* const*, const std::string&, const std::string&,
                         const std::function<void(Options&)>&, const std::function<int()>&);
  struct State;
  std::unique_ptr<State> state_;
};

/// "--max-updates" of "max_updates".
std::string option_of(std::string setting);

/// The value of `option` in argv in either form, "--preset quick" or "--preset=quick"; "" without
/// it. For options that choose the defaults of others, which have to be known before those are
/// declared.
std::string value_of(std::string_view option, int argc, const char* const* argv);

/// The body of main(): declares options with `declare`, parses, runs `body` and returns its exit
/// code. A wrong command line prints the error and a pointer to --help (exit code 2); an exception
/// prints "PROGRAM: error: ..." (exit code 1).
int run_program(int argc, const char* const* argv, const std::string& program,
                const std::string& description, const std::function<void(Options&)>& declare,
                const std::function<int()>& body);

}  // namespace macgrad::experiments
