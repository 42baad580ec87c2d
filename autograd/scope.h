// The path of names a computation runs under ("encoder.layers.0.self_attention"). Modules push
// their name; nodes, errors and gradients carry the path.
#pragma once

#include <memory>
#include <string>

#include "macgrad/core/error.h"

namespace macgrad {

class Scope {
 public:
  /// Appends `name` to the path of this thread while alive; an empty name appends nothing.
  explicit Scope(const std::string& name);
  ~Scope();
  Scope(const Scope&) = delete;
  Scope& operator=(const Scope&) = delete;

  /// The path of this thread, "" at top level. Shared, so that nodes need no copy.
  static const std::shared_ptr<const std::string>& current();

 private:
  std::shared_ptr<const std::string> previous_;
};

/// Replaces the whole path while alive (the engine runs a rule under its node's path).
class ReplaceScope {
 public:
  explicit ReplaceScope(std::shared_ptr<const std::string> path);
  ~ReplaceScope();
  ReplaceScope(const ReplaceScope&) = delete;
  ReplaceScope& operator=(const ReplaceScope&) = delete;

 private:
  std::shared_ptr<const std::string> previous_;
};

/// ", in encoder.layers.0" or "".
std::string scope_suffix();

/// require() with the scope appended to the message.
template <class... Args>
void check(bool condition, fmt::format_string<Args...> format, Args&&... args) {
  if (!condition) [[unlikely]]
    throw Error(fmt::format(format, std::forward<Args>(args)...) + scope_suffix());
}

}  // namespace macgrad
