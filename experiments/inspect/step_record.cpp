// Recording a step twice, opened and fused, and looking up gradients by place.
#include "experiments/inspect/step_record.h"

#include <chrono>
#include <cmath>

#include "autograd/fused.h"
#include "nn/optimizer.h"

namespace macgrad::experiments {
namespace {

// "scope/op" of a fused op, and how many of that name came before.
using FusedPlace = std::pair<std::string, int64_t>;

struct Pass {
  std::map<FusedPlace, Tensor> results;  // first outputs of fused ops
  std::map<std::string, Tensor> gradients;
  double loss = 0;
};

std::map<std::string, Tensor> parameter_gradients(nn::Transformer& model) {
  std::map<std::string, Tensor> gradients;
  for (const auto& [name, parameter] : model.named_parameters())
    if (parameter->grad().defined()) gradients.emplace(name, parameter->grad().value());
  return gradients;
}

// Results of all ops of a pass with kernels, by place; those of composites are found among them.
Pass fused_pass(ModelStep& model) {
  Pass pass;
  GraphRecord graph;
  {
    const GraphRecord::Recording recording(graph);
    const Variable loss = model.loss();
    pass.loss = loss.item();
    backward(loss);
  }
  std::map<std::string, int64_t> seen;
  for (const GraphRecord::Op& op : graph.ops()) {
    const std::string name = *op.node->scope + "/" + op.node->op;
    pass.results.emplace(FusedPlace{name, seen[name]++}, op.outputs[0]);
  }
  pass.gradients = parameter_gradients(model.model());
  model.model().zero_grad();
  return pass;
}

bool is_composite(const Node& node) {
  for (const auto& [name, value] : node.attributes)
    if (name == "path" && value == "composite") return true;
  return false;
}

FusedDifferences differences(const Pass& fused, const RecordedStep& step, nn::Transformer& model) {
  FusedDifferences d;
  d.loss = std::abs(fused.loss - step.loss);
  std::map<std::string, int64_t> seen;
  for (const GraphRecord::Op& op : step.graph.ops()) {
    if (!is_composite(*op.node)) continue;
    // A composite's scope is that of the op with the op's name appended.
    std::string name = *op.node->scope;
    const size_t dot = name.rfind('.');
    name = dot == std::string::npos ? "/" + name : name.substr(0, dot) + "/" + name.substr(dot + 1);
    const auto found = fused.results.find({name, seen[name]++});
    if (found == fused.results.end() || found->second.shape() != op.outputs[0].shape()) continue;
    d.results.emplace(op.node->id, max_abs_difference(found->second, op.outputs[0]));
  }
  for (const auto& [name, gradient] : parameter_gradients(model)) {
    const auto found = fused.gradients.find(name);
    if (found == fused.gradients.end()) continue;
    const double difference = max_abs_difference(found->second, gradient);
    if (difference > d.gradient || d.parameter.empty()) {
      d.gradient = difference;
      d.parameter = name;
    }
  }
  return d;
}

}  // namespace

void RecordedStep::index() {
  for (const GradRecord::Entry& e : gradients.entries()) {
    if (e.node == 0) {
      by_leaf_[e.meta.get()] = &e;
      continue;
    }
    auto& list = by_node_[e.node];
    list.resize(std::max(list.size(), static_cast<size_t>(e.output) + 1));
    list[static_cast<size_t>(e.output)] = &e;
  }
}

const GradRecord::Entry* RecordedStep::gradient(uint64_t node, int output) const {
  const auto it = by_node_.find(node);
  if (it == by_node_.end() || static_cast<size_t>(output) >= it->second.size()) return nullptr;
  return it->second[static_cast<size_t>(output)];
}

const GradRecord::Entry* RecordedStep::gradient(const Variable::Meta* leaf) const {
  const auto it = by_leaf_.find(leaf);
  return it == by_leaf_.end() ? nullptr : it->second;
}

std::unique_ptr<RecordedStep> record_step(ModelStep& model, bool open) {
  using Clock = std::chrono::steady_clock;
  Pass fused;
  if (open) fused = fused_pass(model);
  auto step = std::make_unique<RecordedStep>();
  step->step = model.step();
  step->learning_rate = model.learning_rate();
  const auto start = Clock::now();
  {
    std::optional<Unfused> unfused;
    if (open) unfused.emplace();
    const GraphRecord::Recording recording(step->graph);
    const Variable loss = model.loss();
    step->loss = loss.item();
    GradOptions options;
    options.record = &step->gradients;
    backward(loss, {}, options);
  }
  step->seconds = std::chrono::duration<double>(Clock::now() - start).count();
  step->gradient_norm = nn::gradient_norm(model.model().parameters());
  step->index();
  if (open) step->fused = differences(fused, *step, model.model());
  return step;
}

}  // namespace macgrad::experiments
