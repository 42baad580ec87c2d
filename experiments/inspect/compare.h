// `inspect compare A B`: the first op whose value, and the first whose gradient, differs between
// two records of the same model (other seeds, devices, precisions, checkpoints, draws), and by how
// much.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace macgrad::experiments {

/// One value or gradient in both records.
struct Comparison {
  std::string key;
  bool gradient = false;
  double difference = 0;  // largest |a - b|; infinite where one is finite and the other is not
  double size = 0;        // largest |a| that is finite, at least the floor
  bool same_shape = true;
  /// Of the size.
  double relative() const;
};

struct ComparisonResult {
  std::vector<Comparison> values;     // in the order of the forward pass
  std::vector<Comparison> gradients;  // in that of the backward pass
  std::vector<std::string> only_a, only_b;
};

/// Reads the folders that `inspect` wrote. Sizes below `floor` of the largest of all values (or of
/// all gradients) count as that: a gradient that is 0 but for rounding has no size of its own.
/// Throws naming the file that is missing or broken.
ComparisonResult compare_records(const std::string& a, const std::string& b, double floor = 1e-4);

/// The first of the list above a relative tolerance.
const Comparison* first_above(const std::vector<Comparison>& list, double tolerance);

/// argv[0] is "compare". Exit code 0: no difference above the tolerance, kFound: some.
int compare_command(int argc, const char* const* argv);

}  // namespace macgrad::experiments
