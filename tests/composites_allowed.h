// The tests' mains make it an error that a fused op runs as its composite (MACGRAD_FUSED=strict).
#pragma once

#include <cstdlib>

namespace macgrad::testing {

/// While alive (and if `allowed`) it is none: for dtypes that a device's fused kernels do not take.
class CompositesAllowed {
 public:
  explicit CompositesAllowed(bool allowed = true) : changed_(allowed) {
    if (changed_) setenv("MACGRAD_FUSED", "", 1);
  }
  ~CompositesAllowed() {
    if (changed_) setenv("MACGRAD_FUSED", "strict", 1);
  }
  CompositesAllowed(const CompositesAllowed&) = delete;
  CompositesAllowed& operator=(const CompositesAllowed&) = delete;

 private:
  bool changed_;
};

}  // namespace macgrad::testing
