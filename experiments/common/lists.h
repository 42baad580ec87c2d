// Lists on the command line: the one rule by which a text is taken apart, and lists of whole
// numbers with ranges.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace macgrad::experiments {

/// Largest value of whole numbers without another bound: larger sizes cannot be meant, and products
/// of two such numbers are checked where tensors are made.
inline constexpr int64_t kLargestInteger = int64_t{1} << 40;

/// The rule of every list: a comma ends a value, unless the value has a colon and NAME=VALUE
/// follows, which then belongs to it. "poly:c=1,k=2,exp" has the values "poly:c=1,k=2" and "exp".
/// Spaces around values are dropped.
std::vector<std::string> split_list(std::string_view text);

/// Whole numbers: "200,500,1000", powers "2^4", ranges "200:1000:200" (both ends, last part the
/// step, 1 if absent) and geometric ranges "16:1024:x2"; all may be mixed, separated by commas.
/// Throws naming the option and the part that is wrong; values must be from `least` to
/// kLargestInteger.
std::vector<int64_t> parse_integers(std::string_view option, std::string_view text,
                                    int64_t least = 1);

/// The values of split_list, none of them empty; each must be one of `allowed` (unless that is
/// empty).
std::vector<std::string> parse_words(std::string_view option, std::string_view text,
                                     const std::vector<std::string>& allowed);

/// `text`, or its beginning when it is too long for a message.
std::string shortened(std::string_view text);

}  // namespace macgrad::experiments
