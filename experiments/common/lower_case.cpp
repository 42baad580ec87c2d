// The tables are made from Python's; two rules of Unicode are not tables: U+0130 becomes two code
// points, and a capital sigma at the end of a word another letter than elsewhere.
#include "macgrad/experiments/common/lower_case.h"

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <vector>

#include "macgrad/experiments/common/unicode.h"

namespace macgrad::experiments {
namespace {

struct Range {
  std::uint32_t first, last;
};
// Every step-th code point from first to last moves by delta.
struct Mapping {
  std::uint32_t first, last, step;
  std::int32_t delta;
};

#include "macgrad/experiments/common/lower_case.inc"

// The row that may hold `value`, in a table sorted by code points; nullptr: none.
template <typename Row, std::size_t n>
const Row* find_row(const Row (&rows)[n], std::uint32_t value) {
  const Row* row = std::lower_bound(std::begin(rows), std::end(rows), value,
                                    [](const Row& r, std::uint32_t v) { return r.last < v; });
  return row != std::end(rows) && row->first <= value ? row : nullptr;
}

// Past what a final sigma does not see, is there a letter with case?
template <typename Iterator>
bool reaches_cased(Iterator at, Iterator end) {
  while (at != end && find_row(kIgnorable, *at) != nullptr) ++at;
  return at != end && find_row(kCased, *at) != nullptr;
}

void append_utf8(std::string& out, std::uint32_t c) {
  const auto put = [&](std::uint32_t byte) { out += static_cast<char>(byte); };
  if (c < 0x80) {
    put(c);
  } else if (c < 0x800) {
    put(0xC0 | c >> 6), put(0x80 | (c & 0x3F));
  } else if (c < 0x10000) {
    put(0xE0 | c >> 12), put(0x80 | (c >> 6 & 0x3F)), put(0x80 | (c & 0x3F));
  } else {
    put(0xF0 | c >> 18), put(0x80 | (c >> 12 & 0x3F)), put(0x80 | (c >> 6 & 0x3F));
    put(0x80 | (c & 0x3F));
  }
}

}  // namespace

std::string lower_case(std::string_view text) {
  std::vector<CodePoint> points;
  std::vector<std::uint32_t> values;
  for (std::size_t at = 0; at < text.size(); at += points.back().length) {
    points.push_back(code_point_at(text, at));
    values.push_back(points.back().value);
  }
  std::string out;
  out.reserve(text.size());
  std::size_t at = 0;
  for (std::size_t i = 0; i < values.size(); at += points[i].length, ++i) {
    const std::uint32_t c = values[i];
    const auto here = values.begin() + static_cast<std::ptrdiff_t>(i);
    if (c == 0x130) {
      out += "i\xCC\x87";  // i with a combining dot above
    } else if (c == 0x3A3) {
      const bool final = reaches_cased(std::make_reverse_iterator(here), values.rend()) &&
                         !reaches_cased(here + 1, values.end());
      append_utf8(out, final ? 0x3C2 : 0x3C3);
    } else if (const Mapping* m = find_row(kMappings, c); m && (c - m->first) % m->step == 0) {
      append_utf8(out, static_cast<std::uint32_t>(static_cast<std::int32_t>(c) + m->delta));
    } else {
      out += text.substr(at, points[i].length);
    }
  }
  return out;
}

}  // namespace macgrad::experiments
