// The engine: gradients of recorded computations. grad() is the primitive; backward() fills the
// leaves' grad() through it. Nodes run in descending id, so the order is deterministic; nothing
// recurses, so depth does not matter.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "macgrad/autograd/variable.h"

namespace macgrad {

/// Statistics of one gradient.
struct GradStatistics {
  double min = 0, max = 0, mean = 0, rms = 0, l2 = 0;
  int64_t zeros = 0, non_finite = 0, count = 0;
};
GradStatistics statistics(const Tensor& t);

/// Whose gradient: the result of a node, or a leaf.
struct GradPlace {
  uint64_t node = 0;  // id of the node, 0 for a leaf
  std::string name;   // of the Variable
  std::string op;     // "leaf" for leaves
  std::string scope;
  uint64_t backward_of = 0;
  int output = 0;
  std::shared_ptr<const Variable::Meta> meta;  // of the Variable
};

/// One backward pass, recorded in the order in which gradients became complete.
class GradRecord {
 public:
  /// norms: l2 and rms alone, NaN when an entry is not finite. They are summed up where the
  /// gradient is and read when entries() is: a record that neither copies nor waits for the device.
  enum class Keep { gradients, statistics, norms };
  struct Entry : GradPlace {
    Tensor gradient;  // with Keep::gradients
    GradStatistics stats;
  };
  using Filter = std::function<bool(const std::string& scope, const std::string& op)>;

  explicit GradRecord(Keep keep = Keep::gradients, Filter filter = {})
      : keep_(keep), filter_(std::move(filter)) {}
  const std::vector<Entry>& entries() const;
  /// The entry of that name; throws when there is none.
  const Entry& at(const std::string& name) const;
  /// Time in the gradient rule of a node, where this thread waited for it; 0 when it did not run.
  double rule_seconds(uint64_t node) const;

  void add(GradPlace place, const Tensor& gradient);
  void add_rule_seconds(uint64_t node, double seconds) { rule_seconds_[node] += seconds; }

 private:
  Keep keep_;
  Filter filter_;
  mutable std::vector<Entry> entries_;
  mutable std::vector<std::pair<size_t, Tensor>> pending_;  // sums of squares not yet read
  std::unordered_map<uint64_t, double> rule_seconds_;
};

/// Sees every gradient of a pass when it is complete, after the hooks of its Variable; a defined
/// result of the same shape and dtype replaces it.
using EngineHook = std::function<Variable(const GradPlace& place, const Variable& gradient)>;

struct GradOptions {
  bool create_graph = false;  // the result can be differentiated again
  bool retain_graph = false;  // keep the graph for another pass (implied by create_graph)
  bool allow_unused = false;  // inputs the outputs do not depend on give undefined, not an Error
  GradRecord* record = nullptr;
  EngineHook hook = {};
};

/// Gradients of Σ outputs·cotangents with respect to `inputs` (leaves or intermediates), in their
/// order. Cotangents default to 1 for outputs with one element.
Variables grad(const Variables& outputs, const Variables& inputs, const Variables& cotangents = {},
               const GradOptions& options = {});
/// Adds gradients to grad() of every leaf. With create_graph they hold the graph until zero_grad().
void backward(const Variable& output, const Variable& cotangent = {},
              const GradOptions& options = {});

}  // namespace macgrad
