// GraphRecord: the graph of a computation as it was recorded, for tools that look at it: every op
// in order, with its results, their statistics or nothing but its place. Gradients come from a
// GradRecord of the backward pass; both name a value by (node id, output), leaves by their Meta.
#pragma once

#include <string>
#include <unordered_map>
#include <vector>

#include "macgrad/autograd/engine.h"
#include "macgrad/autograd/node.h"
#include "macgrad/core/kernel.h"

namespace macgrad {

class GraphRecord : public RecordTool {
 public:
  /// values: Tensors that share the op's memory; look at them before an optimizer or a redraw
  /// writes there.
  enum class Keep { nothing, statistics, values };
  struct Op {
    std::shared_ptr<const Node> node;
    Tensors outputs;                         // with Keep::values
    std::vector<GradStatistics> statistics;  // of each output, with Keep::statistics
    std::vector<size_t> leaves;              // per input: its leaf, kNoLeaf when an op made it
    double seconds = 0;                      // in kernels, since the op before
    int64_t bytes = 0;                       // of results with memory of their own, no views
  };
  struct Leaf {
    std::string name;  // "" for what nobody named
    bool requires_grad = false;
    Tensor value;
    std::shared_ptr<const Variable::Meta> meta;
  };
  static constexpr size_t kNoLeaf = static_cast<size_t>(-1);
  using Filter = GradRecord::Filter;

  explicit GraphRecord(Keep keep = Keep::values, Filter filter = {})
      : keep_(keep), filter_(std::move(filter)) {}

  const std::vector<Op>& ops() const { return ops_; }
  const std::vector<Leaf>& leaves() const { return leaves_; }
  /// The op of a node, nullptr when it was not recorded or filtered out.
  const Op* find(uint64_t node) const;

  /// A name for each op that is the same in every run of the same program: scope/op, or scope/name
  /// for a named result, with #2, #3 … for the later ones of a name.
  std::vector<std::string> op_keys() const;
  /// And for each leaf: its name, or "scope of the first op that reads it/constant".
  std::vector<std::string> leaf_keys() const;

  void recorded(const std::shared_ptr<Node>& node, const Variables& inputs,
                const Tensors& outputs) override;

  /// Records the ops of this thread while it lives, and times kernels: the observer is the
  /// process's, so no other thread may compute meanwhile.
  class Recording {
   public:
    explicit Recording(GraphRecord& record);
    ~Recording();
    Recording(const Recording&) = delete;
    Recording& operator=(const Recording&) = delete;

   private:
    RecordTool::Watch watch_;
    KernelObserver* outer_;
  };

 private:
  struct KernelClock : KernelObserver {
    void before(const KernelCall&) override;
    void after(const KernelCall&) override;
    double start = 0, seconds = 0;
  };
  size_t leaf(const Variable& v);

  Keep keep_;
  Filter filter_;
  KernelClock clock_;
  std::vector<Op> ops_;
  std::vector<Leaf> leaves_;
  std::unordered_map<uint64_t, size_t> by_node_;
  std::unordered_map<const Variable::Meta*, size_t> by_meta_;
};

}  // namespace macgrad
