// The engine: gradients of recorded computations. grad() is the primitive; backward() fills the
// leaves' grad() through it. Nodes run in descending id, so the order is deterministic; nothing
// recurses, so depth does not matter.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "autograd/variable.h"

namespace macgrad {

/// Statistics of one gradient.
struct GradStatistics {
  double min = 0, max = 0, mean = 0, rms = 0, l2 = 0;
  int64_t zeros = 0, non_finite = 0, count = 0;
};
GradStatistics statistics(const Tensor& t);

/// One backward pass, recorded in the order in which gradients became complete.
class GradRecord {
 public:
  enum class Keep { gradients, statistics };
  struct Entry {
    uint64_t node = 0;  // id of the node whose output's gradient this is, 0 for a leaf
    std::string name;   // of the Variable
    std::string op;     // "leaf" for leaves
    std::string scope;
    uint64_t backward_of = 0;
    int output = 0;
    Tensor gradient;  // with Keep::gradients
    GradStatistics stats;
  };
  using Filter = std::function<bool(const std::string& scope, const std::string& op)>;

  explicit GradRecord(Keep keep = Keep::gradients, Filter filter = {})
      : keep_(keep), filter_(std::move(filter)) {}
  const std::vector<Entry>& entries() const { return entries_; }
  /// The entry of that name; throws when there is none.
  const Entry& at(const std::string& name) const;
  void add(Entry entry, const Tensor& gradient);

 private:
  Keep keep_;
  Filter filter_;
  std::vector<Entry> entries_;
};

struct GradOptions {
  bool create_graph = false;  // the result can be differentiated again
  bool retain_graph = false;  // keep the graph for another pass (implied by create_graph)
  bool allow_unused = false;  // inputs the outputs do not depend on give undefined, not an Error
  GradRecord* record = nullptr;
};

/// Gradients of Σ outputs·cotangents with respect to `inputs` (leaves or intermediates), in their
/// order. Cotangents default to 1 for outputs with one element.
Variables grad(const Variables& outputs, const Variables& inputs, const Variables& cotangents = {},
               const GradOptions& options = {});
/// Adds gradients to grad() of every leaf. With create_graph they hold the graph until zero_grad().
void backward(const Variable& output, const Variable& cotangent = {},
              const GradOptions& options = {});

}  // namespace macgrad
