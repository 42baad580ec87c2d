// UTF-8 decoding by hand: twenty lines, strict by construction (RFC 3629, table 3-7 of the Unicode
// standard), and no dependency for it.
#include "macgrad/experiments/common/unicode.h"

namespace macgrad::experiments {
namespace {

constexpr std::uint32_t kNotUnicode = 0x110000;

}  // namespace

CodePoint code_point_at(std::string_view text, std::size_t at) {
  const auto byte = [&](std::size_t i) -> std::uint32_t {
    return static_cast<unsigned char>(text[i]);
  };
  const std::uint32_t first = byte(at);
  if (first < 0x80) return {first, 1};
  std::size_t length = 0;
  std::uint32_t value = 0;
  std::uint32_t smallest = 0;  // below this the form is overlong
  if (first >= 0xC2 && first <= 0xDF) {
    length = 2, value = first & 0x1F, smallest = 0x80;
  } else if (first >= 0xE0 && first <= 0xEF) {
    length = 3, value = first & 0x0F, smallest = 0x800;
  } else if (first >= 0xF0 && first <= 0xF4) {
    length = 4, value = first & 0x07, smallest = 0x10000;
  }
  const CodePoint invalid{kNotUnicode + first, 1};
  if (length == 0 || length > text.size() - at) return invalid;
  for (std::size_t i = 1; i < length; ++i) {
    const std::uint32_t next = byte(at + i);
    if ((next & 0xC0) != 0x80) return invalid;
    value = (value << 6) | (next & 0x3F);
  }
  const bool surrogate = value >= 0xD800 && value <= 0xDFFF;
  if (value < smallest || surrogate || value > 0x10FFFF) return invalid;
  return {value, length};
}

std::size_t find_invalid_utf8(std::string_view text) {
  for (std::size_t at = 0; at < text.size();) {
    const CodePoint point = code_point_at(text, at);
    if (point.value >= kNotUnicode) return at;
    at += point.length;
  }
  return std::string_view::npos;
}

bool is_space(std::uint32_t c) {
  return (c >= 0x09 && c <= 0x0D) || (c >= 0x1C && c <= 0x20) || c == 0x85 || c == 0xA0 ||
         c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F ||
         c == 0x205F || c == 0x3000;
}

std::vector<std::string_view> split_words(std::string_view text) {
  std::vector<std::string_view> words;
  std::size_t start = 0;
  std::size_t at = 0;
  while (at < text.size()) {
    const CodePoint point = code_point_at(text, at);
    if (is_space(point.value)) {
      if (at > start) words.push_back(text.substr(start, at - start));
      start = at + point.length;
    }
    at += point.length;
  }
  if (at > start) words.push_back(text.substr(start, at - start));
  return words;
}

std::string_view trim_end(std::string_view text) {
  std::size_t end = 0;
  for (std::size_t at = 0; at < text.size();) {
    const CodePoint point = code_point_at(text, at);
    at += point.length;
    if (!is_space(point.value)) end = at;
  }
  return text.substr(0, end);
}

}  // namespace macgrad::experiments
