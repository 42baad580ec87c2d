// UTF-8 text: strict validation, and splitting into words on Unicode white space. One definition of
// "white space" (that of Python's str.split) serves the vocabulary and BLEU, so that a decoded
// sentence has the same words for both.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace macgrad::experiments {

/// Byte offset of the first byte that is not part of strict UTF-8 (RFC 3629: no overlong forms, no
/// surrogates, nothing above U+10FFFF); std::string_view::npos when the whole text is valid.
std::size_t find_invalid_utf8(std::string_view text);

/// Code point at `at` and its length in bytes. A byte that is not valid UTF-8 is returned as itself
/// plus 0x110000 (outside Unicode, so never white space), with length 1.
struct CodePoint {
  std::uint32_t value;
  std::size_t length;
};
CodePoint code_point_at(std::string_view text, std::size_t at);

/// White space as Python's str.isspace has it (includes U+0085, U+00A0, U+3000, U+001C..U+001F).
bool is_space(std::uint32_t code_point);

/// Words between white space; views into `text`.
std::vector<std::string_view> split_words(std::string_view text);

/// `text` without white space at its end.
std::string_view trim_end(std::string_view text);

}  // namespace macgrad::experiments
