#include "macgrad/experiments/common/lists.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cctype>
#include <charconv>
#include <optional>

#include "macgrad/core/error.h"

namespace macgrad::experiments {
namespace {

constexpr std::size_t kLongestList = 10000;

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

// NAME=VALUE.
bool is_assignment(std::string_view text) {
  const std::size_t equals = text.find('=');
  return equals != std::string_view::npos && equals > 0 &&
         std::all_of(text.begin(), text.begin() + static_cast<std::ptrdiff_t>(equals), [](char c) {
           return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_' || c == '-';
         });
}

}  // namespace

std::string shortened(std::string_view text) {
  constexpr std::size_t kMost = 60, kKept = 20;
  if (text.size() <= kMost) return std::string(text);
  return fmt::format("{}… ({} characters)", text.substr(0, kKept), text.size());
}

std::vector<std::string> split_list(std::string_view text) {
  std::vector<std::string> values;
  for (const std::string_view part : split(text, ',')) {
    const std::string_view word = trimmed(part);
    if (!values.empty() && values.back().find(':') != std::string::npos && is_assignment(word))
      values.back().append(",").append(word);
    else
      values.emplace_back(word);
  }
  return values;
}

std::vector<std::int64_t> parse_integers(std::string_view option, std::string_view text,
                                         std::int64_t least) {
  std::vector<std::int64_t> values;
  const auto add = [&](std::int64_t value) {
    if (value < least) throw Error("{} {} must be at least {}", option, value, least);
    if (value > kLargestInteger)
      throw Error("{} {} must be at most {}", option, value, kLargestInteger);
    if (values.size() == kLongestList) {
      throw Error("{}: \"{}\" is a list of more than {} values", option, shortened(text),
                  kLongestList);
    }
    values.push_back(value);
  };
  for (const std::string& part : split_list(text)) {
    const auto wrong = [&]() {
      return Error(
          "{}: \"{}\" in \"{}\" is neither a whole number of 64 bits (200, 2^8) nor a range "
          "first:last[:step] or first:last:xFACTOR",
          option, shortened(part), shortened(text));
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
          "{}: the range \"{}\" must rise: first <= last and a step of at least 1, or from at "
          "least 1 a factor of at least x2",
          option, shortened(part));
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
  std::vector<std::string> words = split_list(text);
  for (const std::string& word : words) {
    if (word.empty()) throw Error("{}: empty word in \"{}\"", option, shortened(text));
    if (!allowed.empty() && std::find(allowed.begin(), allowed.end(), word) == allowed.end())
      throw Error("{}: unknown \"{}\"; known: {}", option, shortened(word),
                  fmt::join(allowed, ", "));
  }
  return words;
}

}  // namespace macgrad::experiments
