// The one exception type of macgrad. A message names the op or the option, the values, and what
// to do; ops add the scope they ran in (autograd/scope.h).
#pragma once

#include <fmt/format.h>

#include <stdexcept>
#include <string>
#include <utility>

namespace macgrad {

class Error : public std::runtime_error {
 public:
  explicit Error(const std::string& message) : std::runtime_error(message) {}

  template <class First, class... Rest>
  Error(fmt::format_string<First, Rest...> format, First&& first, Rest&&... rest)
      : std::runtime_error(
            fmt::format(format, std::forward<First>(first), std::forward<Rest>(rest)...)) {}
};

/// Throws Error(message) unless `condition` holds. Checks stay on in release builds.
template <class... Args>
void require(bool condition, fmt::format_string<Args...> format, Args&&... args) {
  if (!condition) [[unlikely]]
    throw Error(fmt::format(format, std::forward<Args>(args)...));
}

/// Where the program is (", in encoder.layers.0", or ""), for errors of code that knows no scopes;
/// autograd's scopes set it.
void set_error_context(std::string (*where)());
std::string error_context();

}  // namespace macgrad
