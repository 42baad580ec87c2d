// How gradients flow: the nodes behind the results are visited in descending order of their ids,
// each adds its vjp to the cotangents of its inputs, and hooks, records and anomaly mode watch.
// Cotangents are Variables, so that create_graph records them like any op.
#include "macgrad/autograd/engine.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <map>
#include <unordered_map>
#include <unordered_set>

#include "macgrad/autograd/node.h"
#include "macgrad/autograd/ops.h"
#include "macgrad/autograd/scope.h"
#include "macgrad/core/kernels/elementwise.h"

namespace macgrad {

namespace {

// A gradient under construction. The engine may add in place into sums it made itself.
struct Sum {
  Variable value;
  bool owned = false;
};

void accumulate(Sum& sum, const Variable& g, bool create_graph) {
  if (!sum.value.defined()) {
    sum.value = g;
    return;
  }
  if (create_graph) {
    sum.value = add(sum.value, g);
  } else if (sum.owned) {
    kernels::add(sum.value.value(), g.value(), sum.value.value());
  } else {
    sum.value = add(sum.value, g);
    sum.owned = true;
  }
}

struct NodeState {
  std::shared_ptr<Node> node;
  std::vector<Sum> outputs{};
  bool leads = false;  // to something whose gradient is wanted
};

void replace_gradient(Variable& g, Variable replaced, const std::string& whose) {
  if (!replaced.defined()) return;
  require(replaced.shape() == g.shape() && replaced.dtype() == g.dtype(),
          "a hook on '{}' returned {} {} for a gradient of {} {}", whose, name(replaced.dtype()),
          replaced.shape(), name(g.dtype()), g.shape());
  g = std::move(replaced);
}

void run_hooks(Variable::Meta& meta, Variable& g) {
  const auto hooks = meta.hooks;  // a hook may add or remove hooks
  for (const auto& [id, hook] : hooks) replace_gradient(g, hook(g), meta.name);
}

// A parameter's scope is its name without the last part.
std::string leaf_scope(const std::string& name) {
  const auto dot = name.rfind('.');
  return dot == std::string::npos ? "" : name.substr(0, dot);
}

}  // namespace

class Engine {
  using Clock = std::chrono::steady_clock;

 public:
  Engine(const Variables& outputs, const GradOptions& options) : options_(options) {
    discover(outputs);
  }

  // Either named targets, or (all_leaves) every leaf that asks for a gradient.
  void set_targets(const Variables* inputs) {
    all_leaves_ = inputs == nullptr;
    if (inputs) {
      for (const Variable& v : *inputs) {
        if (v.node()) {
          wanted_outputs_[v.node().get()].push_back(v.output_index());
        } else {
          wanted_leaves_.push_back(v.meta().get());
        }
      }
      std::sort(wanted_leaves_.begin(), wanted_leaves_.end());
    }
    for (NodeState& state : states_)
      for (const Node::Input& in : state.node->inputs)
        state.leads = state.leads || input_wanted(in);
  }

  bool reaches(const Variable& v) const {
    if (v.node()) return index_.contains(v.node().get());
    return seen_leaves_.contains(v.meta().get());
  }

  void run(const Variables& outputs, const Variables& cotangents) {
    for (size_t i = 0; i < outputs.size(); ++i) seed(outputs[i], cotangents[i]);
    for (auto state = states_.rbegin(); state != states_.rend(); ++state) step(*state);
    finish_leaves();
  }

  // Gradient of a requested input, undefined when none came.
  Variable result(const Variable& v) {
    if (!v.node()) {
      const auto it = leaves_.find(v.meta().get());
      return it == leaves_.end() ? Variable() : it->second.sum.value;
    }
    const auto it = finished_.find({v.node().get(), v.output_index()});
    return it == finished_.end() ? Variable() : it->second;
  }

  struct Leaf {
    std::shared_ptr<Variable::Meta> meta;
    Sum sum;
  };
  std::vector<Leaf> leaves_in_order() {
    std::vector<Leaf> list;
    for (Variable::Meta* key : leaf_order_) list.push_back(leaves_.at(key));
    return list;
  }

 private:
  void discover(const Variables& outputs) {
    const auto visit = [&](const std::shared_ptr<Node>& node) {
      if (node && index_.try_emplace(node.get(), 0).second) states_.push_back({node});
    };
    for (const Variable& v : outputs) {
      visit(v.node());
      if (!v.node() && v.requires_grad()) seen_leaves_.insert(v.meta().get());
    }
    for (size_t i = 0; i < states_.size(); ++i) {  // states_ grows meanwhile
      const Node& node = *states_[i].node;
      for (const Node::Input& in : node.inputs) {
        visit(in.node);
        if (in.meta) seen_leaves_.insert(in.meta.get());
      }
    }
    std::sort(states_.begin(), states_.end(),
              [](const NodeState& a, const NodeState& b) { return a.node->id < b.node->id; });
    for (size_t i = 0; i < states_.size(); ++i) {
      index_[states_[i].node.get()] = i;
      states_[i].outputs.resize(states_[i].node->outputs.size());
    }
  }

  NodeState& state_of(const Node* node) { return states_[index_.at(node)]; }
  const NodeState& state_of(const Node* node) const { return states_[index_.at(node)]; }

  bool input_wanted(const Node::Input& in) const {
    if (!in.requires_grad) return false;
    if (in.node) {
      if (state_of(in.node.get()).leads) return true;
      if (wanted_outputs_.empty()) return false;
      const auto it = wanted_outputs_.find(in.node.get());
      return it != wanted_outputs_.end() &&
             std::find(it->second.begin(), it->second.end(), in.output) != it->second.end();
    }
    if (all_leaves_) return true;
    return std::binary_search(wanted_leaves_.begin(), wanted_leaves_.end(), in.meta.get());
  }

  void seed(const Variable& output, const Variable& cotangent) {
    if (output.node()) {
      accumulate(state_of(output.node().get()).outputs[static_cast<size_t>(output.output_index())],
                 cotangent, options_.create_graph);
    } else if (output.requires_grad()) {
      add_to_leaf(output.meta(), cotangent);
    }
  }

  void add_to_leaf(const std::shared_ptr<Variable::Meta>& meta, const Variable& g) {
    auto [it, fresh] = leaves_.try_emplace(meta.get(), Leaf{meta, {}});
    if (fresh) leaf_order_.push_back(meta.get());
    accumulate(it->second.sum, g, options_.create_graph);
  }

  // One node: its outputs' gradients are complete, since all its consumers have larger ids.
  void step(NodeState& state) {
    Node& node = *state.node;
    bool any = false;
    for (size_t i = 0; i < state.outputs.size(); ++i) {
      Variable& g = state.outputs[i].value;
      if (!g.defined()) continue;
      any = true;
      Variable::Meta& meta = *node.outputs[i].meta;
      run_hooks(meta, g);
      if (looked_at()) {
        const Variable v(g.value(), node.outputs[i].meta, state.node, static_cast<int>(i));
        show({node.id, v.name(), node.op, *node.scope, node.backward_of, static_cast<int>(i),
              node.outputs[i].meta},
             g);
      }
      if (meta.retain_grad) meta.grad = meta.grad.defined() ? add(meta.grad, g) : g;
      const auto wanted = wanted_outputs_.find(&node);
      if (wanted != wanted_outputs_.end() && std::find(wanted->second.begin(), wanted->second.end(),
                                                       static_cast<int>(i)) != wanted->second.end())
        finished_[{&node, static_cast<int>(i)}] = g;
    }
    if (any && state.leads) propagate(state);
    state.outputs.clear();
  }

  void propagate(NodeState& state) {
    Node& node = *state.node;
    require(!node.released,
            "{} was already differentiated and its graph freed; pass retain_graph to run backward "
            "twice",
            node);
    VjpContext context;
    context.node_ = state.node;
    context.create_graph_ = options_.create_graph;
    for (Sum& s : state.outputs) context.cotangents_.push_back(s.value);
    for (const Node::Input& in : node.inputs) context.needs_.push_back(input_wanted(in));
    Variables gradients;
    {
      const ReplaceScope scope(node.scope);
      const uint64_t outer = std::exchange(current_backward_of(), node.id);
      struct Restore {
        uint64_t id;
        ~Restore() { current_backward_of() = id; }
      } restore{outer};
      const auto start = options_.record ? Clock::now() : Clock::time_point{};
      try {
        gradients = node.vjp(context);
      } catch (const AnomalyError& e) {
        throw AnomalyError(fmt::format("{}; in the gradient rule of {}", e.what(), node.text()),
                           node.id, AnomalyError::kInside);
      } catch (const Error& e) {
        throw Error("{}; in the gradient rule of {}", e.what(), node.text());
      }
      if (options_.record)
        options_.record->add_rule_seconds(
            node.id, std::chrono::duration<double>(Clock::now() - start).count());
      check(gradients.size() == node.inputs.size(),
            "the rule of {} gave {} gradients for {} inputs", node, gradients.size(),
            node.inputs.size());
      for (size_t i = 0; i < gradients.size(); ++i) {
        if (!context.needs_[i] || !gradients[i].defined()) continue;
        deliver(node, i, std::move(gradients[i]));
      }
    }
    if (!options_.retain_graph && !options_.create_graph) node.release();
  }

  void deliver(const Node& node, size_t i, Variable g) {
    const Node::Input& in = node.inputs[i];
    if (g.dtype() != in.dtype || g.device() != in.device) [[unlikely]]
      throw Error("the gradient of input {} of {} is {} on {}, the input {} on {}{}", i, node,
                  name(g.dtype()), text(g.device()), name(in.dtype), text(in.device),
                  scope_suffix());
    if (g.shape() != in.shape) g = sum_to(g, in.shape);
    if (AnomalyMode::active() && !all_finite(g.value()))
      throw AnomalyError(
          fmt::format("[{}] gradient of input {} (shape {}) is not finite, computed by the rule of "
                      "{}{}",
                      node.op, i, in.shape, node.text(), scope_suffix()),
          node.id, i);
    if (in.node) {
      accumulate(state_of(in.node.get()).outputs[static_cast<size_t>(in.output)], g,
                 options_.create_graph);
    } else {
      add_to_leaf(in.meta, g);
    }
  }

  void finish_leaves() {
    for (Variable::Meta* key : leaf_order_) {
      Leaf& leaf = leaves_.at(key);
      run_hooks(*leaf.meta, leaf.sum.value);
      if (looked_at())
        show({0, leaf.meta->name.empty() ? "leaf" : leaf.meta->name, "leaf",
              leaf_scope(leaf.meta->name), 0, 0, leaf.meta},
             leaf.sum.value);
    }
  }

  bool looked_at() const { return options_.record != nullptr || options_.hook != nullptr; }

  // Hook first: the record holds what flows on.
  void show(GradPlace place, Variable& g) {
    if (options_.hook) replace_gradient(g, options_.hook(place, g), place.name);
    if (options_.record) options_.record->add(std::move(place), g.value());
  }

  GradOptions options_;
  std::vector<NodeState> states_;  // ids grow
  std::unordered_map<const Node*, size_t> index_;
  std::unordered_set<const Variable::Meta*> seen_leaves_;
  bool all_leaves_ = false;
  std::unordered_map<const Node*, std::vector<int>> wanted_outputs_;
  std::vector<Variable::Meta*> wanted_leaves_;
  std::unordered_map<Variable::Meta*, Leaf> leaves_;
  std::vector<Variable::Meta*> leaf_order_;
  std::map<std::pair<Node*, int>, Variable> finished_;
};

namespace {

Variables full_cotangents(const Variables& outputs, const Variables& cotangents) {
  check(cotangents.empty() || cotangents.size() == outputs.size(),
        "[grad] {} outputs and {} cotangents", outputs.size(), cotangents.size());
  Variables result;
  for (size_t i = 0; i < outputs.size(); ++i) {
    const Variable& y = outputs[i];
    check(y.defined(), "[grad] output {} is undefined", i);
    Variable c = i < cotangents.size() ? cotangents[i] : Variable();
    if (!c.defined()) {
      check(y.numel() == 1, "[grad] output {} of shape {} needs a cotangent", i, y.shape());
      c = Variable(Tensor::full(y.shape(), 1.0, y.dtype(), y.device()));
    }
    check(c.shape() == y.shape() && c.dtype() == y.dtype(),
          "[grad] output {} is {} {}, its cotangent {} {}", i, name(y.dtype()), y.shape(),
          name(c.dtype()), c.shape());
    result.push_back(std::move(c));
  }
  return result;
}

}  // namespace

Variables grad(const Variables& outputs, const Variables& inputs, const Variables& cotangents,
               const GradOptions& options) {
  const GradMode mode(options.create_graph);
  const Variables seeds = full_cotangents(outputs, cotangents);
  Engine engine(outputs, options);
  for (const Variable& v : inputs) {
    check(v.defined() && v.requires_grad(), "[grad] input '{}' does not require a gradient", v);
    check(
        options.allow_unused || engine.reaches(v),
        "[grad] the outputs do not depend on '{}'; pass allow_unused to get an undefined gradient",
        v);
  }
  engine.set_targets(&inputs);
  engine.run(outputs, seeds);
  Variables result;
  for (const Variable& v : inputs) {
    Variable g = engine.result(v);
    if (!g.defined() && engine.reaches(v))
      g = Variable(Tensor::zeros(v.shape(), v.dtype(), v.device()));
    result.push_back(std::move(g));
  }
  return result;
}

void backward(const Variable& output, const Variable& cotangent, const GradOptions& options) {
  check(output.defined() && output.requires_grad(),
        "[backward] nothing requires a gradient: '{}' has no history", output);
  const GradMode mode(options.create_graph);
  const Variables outputs{output};
  const Variables seeds = full_cotangents(outputs, {cotangent});
  Engine engine(outputs, options);
  engine.set_targets(nullptr);
  engine.run(outputs, seeds);
  for (const auto& leaf : engine.leaves_in_order()) {
    Variable& grad = leaf.meta->grad;
    if (!grad.defined()) {
      // Packed: a gradient may be an expanded or transposed view. Its memory may still be shared
      // with other gradients and with the cotangent.
      grad = leaf.sum.value.value().is_contiguous() ? leaf.sum.value : contiguous(leaf.sum.value);
    } else {
      grad = add(grad, leaf.sum.value);
    }
  }
}

}  // namespace macgrad
