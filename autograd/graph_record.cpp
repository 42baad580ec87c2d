// Keeping what record() shows, and names that do not depend on ids.
#include "macgrad/autograd/graph_record.h"

#include <chrono>
#include <utility>

namespace macgrad {
namespace {

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// name, name#2, name#3, …
class Names {
 public:
  std::string next(const std::string& name) {
    const int64_t n = ++seen_[name];
    return n == 1 ? name : fmt::format("{}#{}", name, n);
  }

 private:
  std::unordered_map<std::string, int64_t> seen_;
};

std::string in_scope(const Node& node, const std::string& name) {
  return node.scope->empty() ? name : *node.scope + "/" + name;
}

}  // namespace

void GraphRecord::KernelClock::before(const KernelCall&) {
  start = now();
}
void GraphRecord::KernelClock::after(const KernelCall&) {
  seconds += now() - start;
}

GraphRecord::Recording::Recording(GraphRecord& record)
    : watch_(record), outer_(set_kernel_observer(&record.clock_)) {
  record.clock_.seconds = 0;
}
GraphRecord::Recording::~Recording() {
  set_kernel_observer(outer_);
}

const GraphRecord::Op* GraphRecord::find(uint64_t node) const {
  const auto it = by_node_.find(node);
  return it == by_node_.end() ? nullptr : &ops_[it->second];
}

size_t GraphRecord::leaf(const Variable& v) {
  const auto [it, fresh] = by_meta_.try_emplace(v.meta().get(), leaves_.size());
  if (fresh) leaves_.push_back({v.meta()->name, v.requires_grad(), v.value(), v.meta()});
  return it->second;
}

void GraphRecord::recorded(const std::shared_ptr<Node>& node, const Variables& inputs,
                           const Tensors& outputs) {
  const double seconds = std::exchange(clock_.seconds, 0.0);
  if (filter_ && !filter_(*node->scope, node->op)) return;
  Op op;
  op.node = node;
  op.seconds = seconds;
  for (const Variable& v : inputs)
    op.leaves.push_back(v.defined() && v.is_leaf() ? leaf(v) : kNoLeaf);
  for (const Tensor& t : outputs) {
    bool view = false;
    for (const Variable& v : inputs)
      view = view || (v.defined() && v.value().storage() == t.storage());
    if (!view) op.bytes += static_cast<int64_t>(t.bytes());
    const PauseObserver pause;
    if (keep_ == Keep::statistics) op.statistics.push_back(statistics(t));
  }
  if (keep_ == Keep::values) op.outputs = outputs;
  by_node_[node->id] = ops_.size();
  ops_.push_back(std::move(op));
}

std::vector<std::string> GraphRecord::op_keys() const {
  Names names;
  std::vector<std::string> keys;
  for (const Op& op : ops_) {
    const std::string& given = op.node->outputs[0].meta->name;
    keys.push_back(names.next(in_scope(*op.node, given.empty() ? op.node->op : given)));
  }
  return keys;
}

std::vector<std::string> GraphRecord::leaf_keys() const {
  std::vector<const Node*> reader(leaves_.size(), nullptr);
  for (const Op& op : ops_)
    for (size_t l : op.leaves)
      if (l != kNoLeaf && !reader[l]) reader[l] = op.node.get();
  Names names;
  std::vector<std::string> keys;
  for (size_t l = 0; l < leaves_.size(); ++l) {
    const std::string& given = leaves_[l].name;
    keys.push_back(names.next(!given.empty() ? given : in_scope(*reader[l], "constant")));
  }
  return keys;
}

}  // namespace macgrad
