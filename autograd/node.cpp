// Recording an op, and freeing what was recorded. Destroying the last result of a long computation
// would recurse through all of its nodes; they are put on a list and freed in a loop instead.
// Anomaly mode checks every recorded result for NaN and infinity here.
#include "macgrad/autograd/node.h"

#include <algorithm>
#include <atomic>
#include <utility>

#include "macgrad/autograd/scope.h"

namespace macgrad {
namespace {

std::atomic<uint64_t> next_id{1};
thread_local int anomaly_depth = 0;
thread_local uint64_t backward_of_id = 0;
thread_local RecordTool* record_tool = nullptr;

// Deletes a node. That may drop the last reference to other nodes: those are put on a list that
// runs through the nodes themselves, so graphs of any depth are freed, and freeing them needs no
// memory.
thread_local bool deleting = false;
thread_local Node* waiting = nullptr;

void delete_node(Node* node) noexcept {
  if (deleting) {
    node->next_deleted = std::exchange(waiting, node);
    return;
  }
  deleting = true;
  while (node) {
    delete node;
    node = waiting;
    if (node) waiting = node->next_deleted;
  }
  deleting = false;
}

void check_finite(const char* op, const Variables& inputs, std::span<const Tensor> outputs) {
  for (size_t i = 0; i < outputs.size(); ++i) {
    if (all_finite(outputs[i])) continue;
    std::string names;
    for (const Variable& v : inputs)
      names += fmt::format("{}{} {}{}", names.empty() ? "" : ", ", v.defined() ? v.name() : "none",
                           v.defined() ? v.shape() : Shape(),
                           v.defined() && all_finite(v.value()) ? "" : " (not finite)");
    throw AnomalyError(
        fmt::format("[{}] output {} is not finite; inputs: {}{}", op, i, names, scope_suffix()), 0,
        0);
  }
}

}  // namespace

bool wants_recording(const Variables& inputs) {
  return grad_enabled() && std::any_of(inputs.begin(), inputs.end(),
                                       [](const Variable& v) { return v.requires_grad(); });
}

Saved::Saved(const Variable& v, bool needed) {
  if (!needed) return;
  variable_ = v;
  version_ = v.value().version();
}

namespace {

template <class What>
void check_version(const Tensor& t, uint64_t saved, const What& what) {
  require(t.version() == saved,
          "'{}' of shape {} was overwritten in place after it was saved for its gradient (version "
          "{}, saved {}): run backward before changing it, or compute the forward pass again",
          what, t.shape(), t.version(), saved);
}

}  // namespace

const Variable& Saved::operator()() const {
  if (variable_.defined()) check_version(variable_.value(), version_, variable_);
  return variable_;
}

SavedTensor::SavedTensor(Tensor t, std::string what)
    : tensor_(std::move(t)),
      version_(tensor_.defined() ? tensor_.version() : 0),
      what_(std::move(what)) {}

const Tensor& SavedTensor::operator()() const {
  if (tensor_.defined()) check_version(tensor_, version_, what_);
  return tensor_;
}

const Variable& VjpContext::cotangent(int i) const {
  Variable& g = cotangents_[static_cast<size_t>(i)];
  if (!g.defined()) {
    const Node::Output& out = node_->outputs[static_cast<size_t>(i)];
    g = Variable(Tensor::zeros(out.shape, out.dtype, out.device));
  }
  return g;
}

Variable VjpContext::output(int i) const {
  const Node::Output& out = node_->outputs[static_cast<size_t>(i)];
  require(out.value.defined(), "[{}] rule reads output {}, which was not kept", node_->op, i);
  require(out.value.version() == out.version,
          "the result of {} was overwritten in place after it was saved for its gradient",
          node_->text());
  return Variable(out.value, out.meta, node_, i);
}

bool VjpContext::needs(int i) const {
  return needs_[static_cast<size_t>(i)];
}

std::string Node::text() const {
  return scope && !scope->empty() ? fmt::format("{}/{}#{}", *scope, op, id)
                                  : fmt::format("{}#{}", op, id);
}

void Node::release() {
  released = true;
  for (Output& out : outputs) out.value = Tensor();
  vjp = nullptr;
}

Variable unrecorded(const char* op, const Variables& inputs, const Tensor& output) {
  if (anomaly_depth > 0) check_finite(op, inputs, {&output, 1});
  return Variable(output);
}

Variables record(const char* op, const Variables& inputs, const Tensors& results, Vjp vjp,
                 std::span<const Attribute> attributes, bool keep_outputs) {
  Variables result;
  result.reserve(results.size());
  if (!wants_recording(inputs)) {
    if (anomaly_depth > 0) check_finite(op, inputs, results);
    for (const Tensor& t : results) result.emplace_back(t);
    return result;
  }
  Tensors edited;
  if (record_tool) [[unlikely]] {
    edited = results;
    record_tool->edit(op, inputs, edited);
    for (size_t i = 0; i < results.size(); ++i)
      check(edited.size() == results.size() && edited[i].shape() == results[i].shape() &&
                edited[i].dtype() == results[i].dtype(),
            "[{}] a tool put another shape or dtype in place of output {}", op, i);
  }
  const Tensors& outputs = record_tool ? edited : results;
  if (anomaly_depth > 0) check_finite(op, inputs, outputs);
  const std::shared_ptr<Node> node(new Node, delete_node);
  node->op = op;
  node->attributes.assign(attributes.begin(), attributes.end());
  node->vjp = std::move(vjp);
  node->id = next_id++;
  node->backward_of = backward_of_id;
  node->scope = Scope::current();
  node->inputs.reserve(inputs.size());
  for (const Variable& v : inputs) {
    Node::Input in;
    if (v.defined()) {
      in.requires_grad = v.requires_grad();
      in.node = v.node();
      in.output = v.output_index();
      if (!v.node() && in.requires_grad) in.meta = v.meta();
      in.shape = v.shape();
      in.dtype = v.dtype();
      in.device = v.device();
    }
    node->inputs.push_back(std::move(in));
  }
  node->outputs.reserve(outputs.size());
  for (size_t i = 0; i < outputs.size(); ++i) {
    const Tensor& t = outputs[i];
    auto meta = std::make_shared<Variable::Meta>();
    node->outputs.push_back({t.shape(), t.dtype(), t.device(), meta, keep_outputs ? t : Tensor(),
                             t.defined() ? t.version() : 0});
    result.emplace_back(t, std::move(meta), node, static_cast<int>(i));
  }
  if (record_tool) record_tool->recorded(node, inputs, outputs);
  return result;
}

void check_rules(const char* op, const Variables& inputs, std::initializer_list<bool> given) {
  check(given.size() == inputs.size(), "[{}] has {} inputs and {} gradient rules", op,
        inputs.size(), given.size());
  for (size_t i = 0; i < inputs.size(); ++i)
    check(given.begin()[i] || !inputs[i].requires_grad(),
          "[{}] has no gradient with respect to input {} ('{}'); detach() it", op, i, inputs[i]);
}

std::string Attribute::text() const {
  return std::visit([](const auto& v) { return fmt::format("{}", v); }, value);
}

bool RecordTool::active() {
  return record_tool != nullptr;
}

RecordTool::Watch::Watch(RecordTool& tool) : outer_(std::exchange(record_tool, &tool)) {}
RecordTool::Watch::~Watch() {
  record_tool = outer_;
}

AnomalyMode::AnomalyMode() {
  ++anomaly_depth;
}
AnomalyMode::~AnomalyMode() {
  --anomaly_depth;
}
bool AnomalyMode::active() {
  return anomaly_depth > 0;
}

uint64_t& current_backward_of() {
  return backward_of_id;
}

}  // namespace macgrad
