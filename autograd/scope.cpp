// The current path, one for each thread, as an immutable shared string: a node keeps it by a
// pointer, and leaving a scope is putting the previous pointer back.
#include "macgrad/autograd/scope.h"

namespace macgrad {
namespace {

std::shared_ptr<const std::string>& path() {
  // Errors of core (want of memory, a kernel that differs) name the scope as well.
  static const bool told = (set_error_context(scope_suffix), true);
  (void)told;
  thread_local auto p = std::make_shared<const std::string>();
  return p;
}

}  // namespace

Scope::Scope(const std::string& name) : previous_(path()) {
  if (name.empty()) return;
  path() = std::make_shared<const std::string>(previous_->empty() ? name : *previous_ + "." + name);
}
Scope::~Scope() {
  path() = std::move(previous_);
}
const std::shared_ptr<const std::string>& Scope::current() {
  return path();
}

ReplaceScope::ReplaceScope(std::shared_ptr<const std::string> p) : previous_(std::move(path())) {
  path() = std::move(p);
}
ReplaceScope::~ReplaceScope() {
  path() = std::move(previous_);
}

std::string scope_suffix() {
  return path()->empty() ? "" : ", in " + *path();
}

}  // namespace macgrad
