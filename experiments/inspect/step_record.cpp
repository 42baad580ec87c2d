// Recording a step twice, opened and fused, and looking up gradients by place.
#include "macgrad/experiments/inspect/step_record.h"

#include <chrono>
#include <cmath>

#include "macgrad/autograd/fused.h"
#include "macgrad/nn/optimizer.h"

namespace macgrad::experiments {
namespace {

// "scope/op" of a fused op, and how many of that name came before.
using FusedPlace = std::pair<std::string, int64_t>;

std::map<std::string, Tensor> parameter_gradients(nn::Transformer& model) {
  std::map<std::string, Tensor> gradients;
  for (const auto& [name, parameter] : model.named_parameters())
    if (parameter->grad().defined()) gradients.emplace(name, parameter->grad().value());
  return gradients;
}

bool is_composite(const Node& node) {
  for (const Attribute& a : node.attributes)
    if (a.name == "path" && a.text() == "composite") return true;
  return false;
}

// The ops that are fused when they run: their composites end with a node that says so, in a scope
// that is the op's with its name appended.
std::map<FusedPlace, const GraphRecord::Op*> composites(const GraphRecord& graph) {
  std::map<FusedPlace, const GraphRecord::Op*> found;
  std::map<std::string, int64_t> seen;
  for (const GraphRecord::Op& op : graph.ops()) {
    if (!is_composite(*op.node)) continue;
    const std::string& scope = *op.node->scope;
    const size_t dot = scope.rfind('.');
    const std::string name =
        dot == std::string::npos ? "/" + scope : scope.substr(0, dot) + "/" + scope.substr(dot + 1);
    found.emplace(FusedPlace{name, seen[name]++}, &op);
  }
  return found;
}

// Keeps of a pass what the composites can be held against.
class FusedResults : public RecordTool {
 public:
  explicit FusedResults(const std::map<FusedPlace, const GraphRecord::Op*>& wanted)
      : wanted_(wanted) {}
  std::map<FusedPlace, Tensor> results;

  void recorded(const std::shared_ptr<Node>& node, const Variables&,
                const Tensors& outputs) override {
    const std::string name = *node->scope + "/" + node->op;
    const FusedPlace place{name, seen_[name]++};
    if (wanted_.contains(place)) results.emplace(place, outputs[0]);
  }

 private:
  const std::map<FusedPlace, const GraphRecord::Op*>& wanted_;
  std::map<std::string, int64_t> seen_;
};

// Runs the step with its kernels; their gradients are the ones that stay in grad().
FusedDifferences differences(ModelStep& model, const RecordedStep& step) {
  FusedDifferences d;
  const auto opened = parameter_gradients(model.model());
  const auto wanted = composites(step.graph);
  FusedResults fused(wanted);
  model.model().zero_grad();
  {
    Variable loss;
    {
      const RecordTool::Watch watch(fused);
      loss = model.loss();
    }
    d.loss = std::abs(loss.item() - step.loss);
    backward(loss);
  }
  for (const auto& [place, result] : fused.results) {
    const GraphRecord::Op& op = *wanted.at(place);
    if (result.shape() == op.outputs[0].shape())
      d.results.emplace(op.node->id, max_abs_difference(result, op.outputs[0]));
  }
  for (const auto& [name, gradient] : parameter_gradients(model.model())) {
    const auto found = opened.find(name);
    if (found == opened.end()) continue;
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
  if (open) step->fused = differences(model, *step);
  return step;
}

}  // namespace macgrad::experiments
