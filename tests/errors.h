// What an error says.
#pragma once

#include <functional>
#include <string>

#include "macgrad/core/error.h"

namespace macgrad::testing {

/// The Error's message, "" when nothing was thrown.
inline std::string error_of(const std::function<void()>& f) {
  try {
    f();
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}
inline bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

}  // namespace macgrad::testing
