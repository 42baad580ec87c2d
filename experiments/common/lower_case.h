// Lower case as Python's str.lower has it (full Unicode, no locale), which is what scores that
// ignore case are defined by.
#pragma once

#include <string>
#include <string_view>

namespace macgrad::experiments {

/// Every letter of UTF-8 text in lower case; bytes that are not UTF-8 stay.
std::string lower_case(std::string_view text);

}  // namespace macgrad::experiments
