// What the modes of the op table share on both devices: how far a row is differentiated, and
// failures that name their row.
#pragma once

#include <doctest/doctest.h>

#include <string>

#include "macgrad/tests/op_cases.h"

namespace macgrad::testing {

inline int order_of(const OpCase& row) {
  return !row.gradient ? 0 : row.second ? 2 : 1;
}

inline Tensors in_float64(const Tensors& list) {
  Tensors wide;
  for (const Tensor& t : list) wide.push_back(t.to(DType::float64));
  return wide;
}

inline void check_within(const OpCase& row, const Worst& worst, double limit, const char* mode) {
  const bool within = worst.value <= limit;
  CHECK_MESSAGE(within, row.name, ", ", mode, ": ", worst.where, " differs by ", worst.value,
                ", allowed ", limit);
}

// A row that throws says which row it was.
template <class F>
void guarded(const OpCase& row, F&& f) {
  try {
    f();
  } catch (const std::exception& e) {
    FAIL_CHECK(row.name << " threw: " << std::string(e.what()));
  }
}

}  // namespace macgrad::testing
