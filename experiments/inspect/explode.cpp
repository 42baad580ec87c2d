// Steps run under AnomalyMode, which stops at the first value or gradient that is not finite; the
// same step is then recorded, and the record searched. Composites first, which show the inner op;
// what only the kernels do is found in a record of them.
#include "experiments/inspect/explode.h"

#include <algorithm>
#include <cmath>

#include "autograd/engine.h"
#include "autograd/node.h"
#include "experiments/common/interrupt.h"
#include "experiments/common/progress.h"
#include "experiments/inspect/step_record.h"

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

// Looks through one record.
class Search {
 public:
  explicit Search(const RecordedStep& step)
      : step_(step),
        ops_(step.graph.ops()),
        keys_(step.graph.op_keys()),
        leaf_keys_(step.graph.leaf_keys()) {}

  std::optional<Explosion> run() const {
    for (size_t i = 0; i < ops_.size(); ++i)
      for (size_t o = 0; o < ops_[i].outputs.size(); ++o)
        if (!all_finite(ops_[i].outputs[o])) return value(i, o);
    for (const GradRecord::Entry& e : step_.gradients.entries())
      if (!all_finite(e.gradient)) return gradient(e);
    return std::nullopt;
  }

 private:
  // An input of an op: its link, and the op that made it.
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

  // The consumers of a value, by the gradients that they were handed.
  std::vector<Source> consumers(uint64_t node, int output, const Variable::Meta* leaf) const {
    std::vector<Source> list;
    for (const GraphRecord::Op& op : ops_) {
      for (size_t k = 0; k < op.leaves.size(); ++k) {
        const Node::Input& in = op.node->inputs[k];
        const bool reads = node != 0 ? in.node && in.node->id == node && in.output == output
                                     : op.leaves[k] != GraphRecord::kNoLeaf &&
                                           step_.graph.leaves()[op.leaves[k]].meta.get() == leaf;
        if (!reads) continue;
        for (size_t o = 0; o < op.outputs.size(); ++o)
          if (const auto* g = step_.gradient(op.node->id, static_cast<int>(o)))
            list.push_back({link(output_key(key(op), static_cast<int>(o)), g->gradient), &op});
        break;
      }
    }
    return list;
  }

  Explosion gradient(const GradRecord::Entry& entry) const {
    Explosion e;
    e.step = step_.step;
    e.gradient = true;
    const GraphRecord::Op* self = step_.graph.find(entry.node);
    e.key = self ? output_key(key(*self), entry.output) : entry.name;
    std::vector<Source> list = consumers(entry.node, entry.output, entry.meta.get());
    const auto by_size = [](const Source& a, const Source& b) {
      return magnitude(a.link) < magnitude(b.link);
    };
    auto largest = std::max_element(list.begin(), list.end(), by_size);
    if (largest == list.end()) return e;
    const GraphRecord::Op* rule = largest->maker;
    e.op = rule->node->op;
    e.scope = *rule->node->scope;
    e.inputs.push_back(largest->link);
    for (const Source& s : sources(*rule)) e.inputs.push_back(s.link);
    while (largest != list.end()) {
      e.chain.push_back(largest->link);
      const GraphRecord::Op* op = largest->maker;
      list = consumers(op->node->id, 0, nullptr);
      largest = std::max_element(list.begin(), list.end(), by_size);
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
  fmt::print("update {}: the first {} that is not finite is that of {}\n", e.step, what, e.key);
  fmt::print("made by {}{} (scope {})\n", e.gradient ? "the gradient rule of " : "", e.op,
             e.scope.empty() ? "of the model itself" : e.scope);
  fmt::print("{}its inputs:\n", e.gradient ? "the gradient it was handed, and " : "");
  for (const ChainLink& l : e.inputs) fmt::print("{}", line(l));
  fmt::print("{}:\n", e.gradient ? "the gradients that led there, back to the loss"
                                 : "the values that led there, by the largest magnitude");
  // Far from the place all is as it should be.
  constexpr size_t kShown = 25;
  for (size_t i = 0; i < std::min(kShown, e.chain.size()); ++i) fmt::print("{}", line(e.chain[i]));
  if (e.chain.size() > kShown) fmt::print("  … {} more\n", e.chain.size() - kShown);
}

}  // namespace

std::optional<Explosion> find_explosion(ModelStep& model) {
  for (const bool open : {true, false}) {
    model.model().zero_grad();
    const auto step = record_step(model, open);
    if (auto found = Search(*step).run()) return found;
  }
  return std::nullopt;
}

int explode_command(int argc, const char* const* argv) {
  StepSettings s;
  int64_t steps = 100;
  return run_program(
      argc, argv, "inspect explode",
      "Trains until a value or a gradient is not finite, and says where that began.",
      [&](CLI::App& app) {
        s = step_settings(argc, argv);
        s.sentences = 0;
        declare_step_options(app, s);
        app.add_option("--steps", steps, "Updates to make, at most")
            ->check(CLI::Validator(CLI::PositiveNumber).description(""))
            ->capture_default_str();
      },
      [&] {
        apply_common_options(s.model.common);
        check_settings(s.model);
        const InterruptGuard guard;
        ModelStep model(s);
        Progress progress(steps, "step");
        for (int64_t i = 1; i <= steps && !guard.interrupted(); ++i) {
          double loss = 0, norm = 0;
          try {
            const AnomalyMode anomaly;
            const Variable l = model.loss();
            loss = l.item();
            backward(l);
          } catch (const Error&) {
            const auto found = find_explosion(model);
            if (!found) throw;
            progress.finish();
            print(*found);
            return 1;
          }
          norm = model.update();
          progress.step({i, {{"loss", loss}, {"norm", norm}}, 0});
          model.next();
        }
        progress.finish();
        fmt::print("every value and gradient was finite\n");
        return guard.exit_code();
      });
}

}  // namespace macgrad::experiments
