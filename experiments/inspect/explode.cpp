// Steps run under AnomalyMode, which stops at the first value or gradient that is not finite; the
// same step is then recorded, and the record searched. Composites first, which show the inner op;
// what only the kernels do is found in a record of them.
#include "macgrad/experiments/inspect/explode.h"

#include <algorithm>
#include <cmath>

#include "macgrad/autograd/engine.h"
#include "macgrad/autograd/fused.h"
#include "macgrad/autograd/node.h"
#include "macgrad/experiments/common/interrupt.h"
#include "macgrad/experiments/common/progress.h"
#include "macgrad/experiments/inspect/step_record.h"

namespace macgrad::experiments {
namespace {

ChainLink link(const std::string& key, const Tensor& t) {
  const GradStatistics s = statistics(t);
  return {key, s.min, s.max, s.non_finite};
}

// What is not finite is larger than all that is.
double magnitude(const ChainLink& l) {
  return l.non_finite > 0 ? INFINITY : std::max(std::abs(l.min), std::abs(l.max));
}

// The op, by its place in the record, whose rule gave a gradient that is not finite, and for which
// input.
struct BadRule {
  size_t op, input;
};

// Runs the step once more, until AnomalyMode stops it in a rule.
std::optional<BadRule> bad_rule(ModelStep& model, bool open) {
  GraphRecord graph(GraphRecord::Keep::nothing);
  std::optional<Unfused> unfused;
  if (open) unfused.emplace();
  try {
    const AnomalyMode anomaly;
    Variable loss;
    {
      const GraphRecord::Recording recording(graph);
      loss = model.loss();
    }
    backward(loss);
  } catch (const AnomalyError& error) {
    if (const GraphRecord::Op* op = graph.find(error.node))
      return BadRule{static_cast<size_t>(op - graph.ops().data()), error.input};
  }
  return std::nullopt;
}

// Looks through one record.
class Search {
 public:
  explicit Search(const RecordedStep& step)
      : step_(step),
        ops_(step.graph.ops()),
        keys_(step.graph.op_keys()),
        leaf_keys_(step.graph.leaf_keys()) {}

  std::optional<Explosion> first_value() const {
    for (size_t i = 0; i < ops_.size(); ++i)
      for (size_t o = 0; o < ops_[i].outputs.size(); ++o)
        if (!all_finite(ops_[i].outputs[o])) return value(i, o);
    return std::nullopt;
  }
  std::optional<Explosion> first_gradient(const std::optional<BadRule>& bad) const {
    if (bad) return gradient(*bad);
    // A sum of finite gradients that overflowed, or a hook: no rule to blame.
    for (const GradRecord::Entry& g : step_.gradients.entries()) {
      if (all_finite(g.gradient)) continue;
      Explosion e;
      e.step = step_.step;
      e.gradient = true;
      const GraphRecord::Op* op = step_.graph.find(g.node);
      e.key = op ? output_key(key(*op), g.output) : g.name;
      e.scope = g.scope;
      if (op)
        for (const Source& s : handed_to_readers(*op)) e.inputs.push_back(s.link);
      return e;
    }
    return std::nullopt;
  }

 private:
  // A value or gradient, and the op whose result it is of; no op for a leaf.
  struct Source {
    ChainLink link;
    const GraphRecord::Op* maker = nullptr;
  };
  std::vector<Source> sources(const GraphRecord::Op& op) const {
    std::vector<Source> list;
    for (size_t k = 0; k < op.leaves.size(); ++k) {
      if (const size_t l = op.leaves[k]; l != GraphRecord::kNoLeaf) {
        list.push_back({link(leaf_keys_[l], step_.graph.leaves()[l].value)});
        continue;
      }
      const Node::Input& in = op.node->inputs[k];
      const GraphRecord::Op* maker = in.node ? step_.graph.find(in.node->id) : nullptr;
      if (!maker) continue;
      list.push_back(
          {link(output_key(key(*maker), in.output), maker->outputs[static_cast<size_t>(in.output)]),
           maker});
    }
    return list;
  }
  const std::string& key(const GraphRecord::Op& op) const {
    return keys_[static_cast<size_t>(&op - ops_.data())];
  }

  Explosion value(size_t i, size_t o) const {
    Explosion e;
    e.step = step_.step;
    const GraphRecord::Op* op = &ops_[i];
    e.key = output_key(keys_[i], static_cast<int>(o));
    e.op = op->node->op;
    e.scope = *op->node->scope;
    for (const Source& s : sources(*op)) e.inputs.push_back(s.link);
    while (op) {
      const std::vector<Source> list = sources(*op);
      const auto largest = std::max_element(
          list.begin(), list.end(),
          [](const Source& a, const Source& b) { return magnitude(a.link) < magnitude(b.link); });
      if (largest == list.end()) break;
      e.chain.push_back(largest->link);
      op = largest->maker;
    }
    return e;
  }

  // The gradients that an op was handed, by its outputs; its readers' likewise.
  std::vector<Source> handed(const GraphRecord::Op& op) const {
    std::vector<Source> list;
    for (size_t o = 0; o < op.outputs.size(); ++o)
      if (const auto* g = step_.gradient(op.node->id, static_cast<int>(o)))
        list.push_back({link(output_key(key(op), static_cast<int>(o)), g->gradient), &op});
    return list;
  }
  std::vector<Source> handed_to_readers(const GraphRecord::Op& made) const {
    std::vector<Source> list;
    for (const GraphRecord::Op& op : ops_) {
      const auto& inputs = op.node->inputs;
      if (std::none_of(inputs.begin(), inputs.end(),
                       [&](const Node::Input& in) { return in.node == made.node; }))
        continue;
      const std::vector<Source> own = handed(op);
      list.insert(list.end(), own.begin(), own.end());
    }
    return list;
  }

  std::string input_key(const GraphRecord::Op& op, size_t i) const {
    if (const size_t l = op.leaves[i]; l != GraphRecord::kNoLeaf) return leaf_keys_[l];
    const Node::Input& in = op.node->inputs[i];
    const GraphRecord::Op* maker = in.node ? step_.graph.find(in.node->id) : nullptr;
    return maker ? output_key(key(*maker), in.output) : "";
  }
  // The input whose gradient is not finite, or the rule itself when a value within it was not.
  std::string bad_input(const GraphRecord::Op& op) const {
    for (size_t i = 0; i < op.leaves.size(); ++i) {
      const Node::Input& in = op.node->inputs[i];
      const auto* g = op.leaves[i] != GraphRecord::kNoLeaf
                          ? step_.gradient(step_.graph.leaves()[op.leaves[i]].meta.get())
                      : in.node ? step_.gradient(in.node->id, in.output)
                                : nullptr;
      if (g && !all_finite(g->gradient)) return input_key(op, i);
    }
    return "a value within the rule of " + key(op);
  }

  Explosion gradient(const BadRule& bad) const {
    Explosion e;
    e.step = step_.step;
    e.gradient = true;
    const GraphRecord::Op* rule = &ops_[bad.op];
    e.key = bad.input != AnomalyError::kInside ? input_key(*rule, bad.input) : bad_input(*rule);
    e.op = rule->node->op;
    e.scope = *rule->node->scope;
    std::vector<Source> list = handed(*rule);
    for (const Source& s : list) e.inputs.push_back(s.link);
    for (const Source& s : sources(*rule)) e.inputs.push_back(s.link);
    while (!list.empty()) {
      const Source largest = *std::max_element(
          list.begin(), list.end(),
          [](const Source& a, const Source& b) { return magnitude(a.link) < magnitude(b.link); });
      e.chain.push_back(largest.link);
      list = handed_to_readers(*largest.maker);
    }
    return e;
  }

  const RecordedStep& step_;
  const std::vector<GraphRecord::Op>& ops_;
  std::vector<std::string> keys_, leaf_keys_;
};

std::string line(const ChainLink& l) {
  std::string text = fmt::format("  {:<70} {:>11.4g} to {:<11.4g}", l.key, l.min, l.max);
  if (l.non_finite > 0) text += fmt::format(" {} not finite", l.non_finite);
  return text + "\n";
}

void print(const Explosion& e) {
  const char* what = e.gradient ? "gradient" : "value";
  say("update {}: the first {} that is not finite is that of {}\n", e.step, what, e.key);
  if (e.op.empty()) {
    say("no single op caused this; it arose when summing gradients, or in a hook\n");
    say("the gradients that its readers were handed:\n");
  } else {
    say("made by {}{} (scope {})\n", e.gradient ? "the gradient rule of " : "", e.op,
        e.scope.empty() ? "of the model itself" : e.scope);
    say("{}its inputs:\n", e.gradient ? "the gradient it was handed, and " : "");
  }
  for (const ChainLink& l : e.inputs) say("{}", line(l));
  if (e.chain.empty()) return;
  say("{}:\n", e.gradient ? "the gradients that led there, back to the loss"
                          : "the values that led there, by the largest magnitude");
  // Far from the place all is as it should be.
  constexpr size_t kShown = 25;
  for (size_t i = 0; i < std::min(kShown, e.chain.size()); ++i) say("{}", line(e.chain[i]));
  if (e.chain.size() > kShown) say("  … {} more\n", e.chain.size() - kShown);
}

}  // namespace

std::optional<Explosion> find_explosion(ModelStep& model) {
  for (const bool open : {true, false}) {
    model.model().zero_grad();
    const auto step = record_step(model, open);
    const Search search(*step);
    if (auto found = search.first_value()) return found;
    model.model().zero_grad();
    if (auto found = search.first_gradient(bad_rule(model, open))) return found;
  }
  return std::nullopt;
}

int explode_command(int argc, const char* const* argv) {
  StepSettings s;
  int64_t steps = 100;
  return run_program(
      argc, argv, "inspect explode",
      "Trains until a value or a gradient is not finite, and says where that began.",
      [&](Options& options) {
        s = step_settings(argc, argv);
        s.sentences = 0;
        declare_step_options(options, s, {.updates = true, .files = false});
        options.number("--steps", steps, at_least(1), "Updates to make, at most");
      },
      [&] {
        apply_common_options(s.model.common);
        check_settings(s.model);
        const InterruptGuard guard;
        ModelStep model(s);
        Progress progress(steps, "step");
        for (int64_t i = 1; i <= steps && !guard.interrupted(); ++i) {
          double loss = 0, norm = 0;
          std::string anomaly_found;
          try {
            const AnomalyMode anomaly;
            const Variable l = model.loss();
            loss = l.item();
            backward(l);
          } catch (const AnomalyError& error) {
            anomaly_found = error.what();
          }
          // A norm that is not finite changes nothing, so that the step can be run again.
          if (anomaly_found.empty()) norm = model.update();
          if (!anomaly_found.empty() || !std::isfinite(norm)) {
            progress.finish();
            if (const auto found = find_explosion(model))
              print(*found);
            else
              say("update {}: {}\n", model.step(),
                  anomaly_found.empty() ? "the norm of all gradients is not finite"
                                        : anomaly_found);
            return kFound;
          }
          progress.step({i, {{"loss", loss}, {"norm", norm}}, 0});
          model.next();
        }
        progress.finish();
        if (!guard.interrupted()) say("every value and gradient was finite\n");
        return guard.exit_code();
      });
}

}  // namespace macgrad::experiments
