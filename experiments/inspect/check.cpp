// A pass repeats itself to the bit, so that the n-th op that is recorded is the same in every pass:
// one pass finds what enters and leaves the part, and later ones change an entry of the result of
// op n when it enters the graph. The derivative of what leaves is total on both sides: when one
// input depends on another, both the differences and the gradients go that way too.
#include "macgrad/experiments/inspect/check.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <random>

#include "macgrad/autograd/fused.h"
#include "macgrad/autograd/graph_record.h"
#include "macgrad/autograd/ops.h"
#include "macgrad/experiments/common/interrupt.h"
#include "macgrad/experiments/common/progress.h"
#include "macgrad/experiments/inspect/step_record.h"

namespace macgrad::experiments {
namespace {

// Rounding errors of a pass, in units of the last place of what is summed.
constexpr double kUlps = 64;

// Where a value is made: output of the n-th op, or a parameter.
struct Place {
  std::string key;
  size_t op = 0;
  int output = 0;
  nn::Parameter* parameter = nullptr;
  Shape shape;
};

// Watches a pass: puts another number into one entry of one op's result, and keeps the Variables at
// places.
class Probe : public RecordTool {
 public:
  explicit Probe(const std::vector<const Place*>& keep) {
    for (const Place* p : keep)
      if (!p->parameter) wanted_[p->op].push_back(p);
  }
  void change(const Place& place, int64_t entry, double to) {
    place_ = &place;
    entry_ = entry;
    to_ = to;
  }
  const Variable& at(const Place& place) const { return kept_.at(&place); }

  void edit(const char*, const Variables&, Tensors& outputs) override {
    if (!place_ || place_->parameter || place_->op != count_) return;
    Tensor& t = outputs[static_cast<size_t>(place_->output)];
    t = t.clone();
    t.data<double>()[entry_] = to_;
  }
  void recorded(const std::shared_ptr<Node>& node, const Variables&,
                const Tensors& outputs) override {
    if (const auto it = wanted_.find(count_); it != wanted_.end())
      for (const Place* p : it->second) {
        const auto o = static_cast<size_t>(p->output);
        kept_.emplace(p, Variable(outputs[o], node->outputs[o].meta, node, p->output));
      }
    ++count_;
  }

 private:
  std::map<size_t, std::vector<const Place*>> wanted_;
  std::map<const Place*, Variable> kept_;
  const Place* place_ = nullptr;
  int64_t entry_ = 0;
  double to_ = 0;
  size_t count_ = 0;
};

// What enters and leaves a part of the graph.
struct Boundary {
  std::vector<Place> inputs, outputs;
};

Boundary boundary(ModelStep& model, const GraphRecord& graph, const std::string& part) {
  const auto& ops = graph.ops();
  const std::vector<std::string> keys = graph.op_keys();
  const auto inside = [&](size_t i) {
    const std::string& scope = *ops[i].node->scope;
    return part.empty() || keys[i] == part || scope == part || scope.starts_with(part + ".");
  };
  std::map<std::string, nn::Parameter*> parameters;
  for (const auto& [name, parameter] : model.model().named_parameters())
    parameters.emplace(name, parameter);
  Boundary b;
  std::map<std::pair<size_t, int>, bool> entered, left;
  std::map<std::string, bool> parameters_seen;
  bool found = false;
  for (size_t i = 0; i < ops.size(); ++i) {
    const bool in = inside(i);
    found = found || in;
    for (size_t k = 0; k < ops[i].leaves.size(); ++k) {
      if (const size_t l = ops[i].leaves[k]; l != GraphRecord::kNoLeaf) {
        const auto p = parameters.find(graph.leaves()[l].name);
        if (in && p != parameters.end() && !std::exchange(parameters_seen[p->first], true))
          b.inputs.push_back({p->first, 0, 0, p->second, p->second->shape()});
        continue;
      }
      const Node::Input& from = ops[i].node->inputs[k];
      if (!from.node) continue;
      const auto maker = static_cast<size_t>(graph.find(from.node->id) - ops.data());
      const Place place{output_key(keys[maker], from.output), maker, from.output, nullptr,
                        from.shape};
      if (in && !inside(maker) && is_floating(from.dtype) &&
          !std::exchange(entered[{maker, from.output}], true))
        b.inputs.push_back(place);
      if (!in && inside(maker) && !std::exchange(left[{maker, from.output}], true))
        b.outputs.push_back(place);
    }
  }
  require(found,
          "\"{}\" is neither a module nor an op of this model; keys are in the page and in "
          "gradients.csv of inspect, for instance \"{}\"",
          part, keys[keys.size() / 2]);
  // The loss leaves every part that it is in.
  if (inside(ops.size() - 1))
    b.outputs.push_back({keys.back(), ops.size() - 1, 0, nullptr, Shape{}});
  require(!b.inputs.empty() && !b.outputs.empty(), "\"{}\": nothing {} it", part,
          b.inputs.empty() ? "that has a gradient enters" : "leaves");
  return b;
}

class Checker {
 public:
  Checker(ModelStep& model, const CheckSettings& settings, const std::function<bool()>& stop)
      : model_(model), settings_(settings), stop_(stop), random_(model.settings().common.seed) {
    GraphRecord graph(GraphRecord::Keep::nothing);
    {
      const Opened opened(settings.open);
      const GraphRecord::Recording recording(graph);
      (void)model.loss();
    }
    boundary_ = boundary(model, graph, settings.part);
    for (const Place& p : boundary_.outputs) cotangents_.push_back(normal(p.shape));
    for (const Place& p : boundary_.inputs) directions_.push_back(normal(p.shape));
  }

  CheckResult run() {
    CheckResult result;
    for (const Place& p : boundary_.inputs) result.inputs.push_back(p.key);
    for (const Place& p : boundary_.outputs) result.outputs.push_back(p.key);
    std::vector<std::vector<double>> analytic[2];
    {
      const Pass pass(*this);
      const bool second = settings_.order > 1;
      for (const Variable& v : pass.inputs()) values_.push_back(v.value().to_vector<double>());
      const Variables g = pass.gradients(second);
      for (const Variable& v : g) analytic[0].push_back(v.value().to_vector<double>());
      if (second)
        for (const Variable& v : pass.second(g))
          analytic[1].push_back(v.value().to_vector<double>());
    }
    int64_t entries = 0;
    for (const Place& p : boundary_.inputs) entries += std::min(settings_.entries, p.shape.numel());
    Progress progress(entries, "entry");
    int64_t done = 0;
    for (size_t i = 0; i < boundary_.inputs.size(); ++i) {
      const Place& place = boundary_.inputs[i];
      for (const int64_t entry : sample(place.shape.numel())) {
        if (stop_()) return result;
        const std::vector<Difference> numeric = differences(i, entry);
        for (int order = 1; order <= settings_.order; ++order) {
          const auto& all = analytic[order - 1][i];
          double scale = 0;
          for (const double v : all) scale = std::max(scale, std::abs(v));
          const Difference& n = numeric[static_cast<size_t>(order - 1)];
          result.entries.push_back(
              {place.key, entry, order, all[static_cast<size_t>(entry)], n.value, scale, n.noise});
        }
        progress.step({++done, {}, 0});
      }
    }
    return result;
  }

 private:
  // Opens fused ops while alive, if asked to.
  struct Opened {
    explicit Opened(bool open) {
      if (open) unfused.emplace();
    }
    std::optional<Unfused> unfused;
  };

  // One forward pass with an entry moved, and what follows from it.
  class Pass {
   public:
    explicit Pass(Checker& c, const Place* place = nullptr, int64_t entry = 0, double to = 0)
        : c_(c), opened_(c.settings_.open), probe_(c.places()) {
      if (place) probe_.change(*place, entry, to);
      // Parameters are moved where they are, and put back.
      double* moved =
          place && place->parameter ? place->parameter->value().data<double>() + entry : nullptr;
      const double before = moved ? *moved : 0;
      if (moved) *moved = to;
      {
        const RecordTool::Watch watch(probe_);
        loss_ = c.model_.loss();
      }
      for (size_t i = 0; i < c.boundary_.outputs.size(); ++i)
        outputs_.push_back(probe_.at(c.boundary_.outputs[i]));
      for (const Place& p : c.boundary_.inputs)
        inputs_.push_back(p.parameter ? *p.parameter : probe_.at(p));
      value_ = 0;
      for (size_t i = 0; i < outputs_.size(); ++i) {
        const NoGrad off;
        const Variable terms = outputs_[i].detach() * c.cotangents_[i];
        value_ += sum(terms).item();
        value_size_ += sum(abs(terms)).item();
      }
      if (c.settings_.order > 1 && place) {
        // <gradient, direction> at this point.
        const Variables g = gradients(false);
        for (size_t i = 0; i < g.size(); ++i) {
          const NoGrad off;
          const Variable terms = g[i] * c.directions_[i];
          slope_ += sum(terms).item();
          slope_size_ += sum(abs(terms)).item();
        }
      }
      if (moved) *moved = before;
    }
    const Variables& inputs() const { return inputs_; }
    double value() const { return value_; }
    double slope() const { return slope_; }
    // Sums of the magnitudes of their terms.
    double value_size() const { return value_size_; }
    double slope_size() const { return slope_size_; }
    Variables gradients(bool create_graph) const {
      GradOptions options;
      options.create_graph = create_graph;
      options.allow_unused = true;
      Variables g = grad(outputs_, inputs_, c_.cotangents_, options);
      for (size_t i = 0; i < g.size(); ++i)
        if (!g[i].defined())
          g[i] = Variable(Tensor::zeros(inputs_[i].shape(), DType::float64, inputs_[i].device()));
      return g;
    }
    // Gradients of <g, directions>.
    Variables second(const Variables& g) const {
      Variables live, directions;
      for (size_t i = 0; i < g.size(); ++i) {
        if (!g[i].requires_grad()) continue;
        live.push_back(g[i]);
        directions.push_back(c_.directions_[i]);
      }
      Variables result;
      GradOptions options;
      options.allow_unused = true;
      if (!live.empty()) result = grad(live, inputs_, directions, options);
      result.resize(inputs_.size());
      for (size_t i = 0; i < result.size(); ++i)
        if (!result[i].defined())
          result[i] = Variable(Tensor::zeros(inputs_[i].shape(), DType::float64));
      return result;
    }

   private:
    Checker& c_;
    Opened opened_;
    Probe probe_;
    Variable loss_;
    Variables outputs_, inputs_;
    double value_ = 0, slope_ = 0, value_size_ = 0, slope_size_ = 0;
  };

  std::vector<const Place*> places() const {
    std::vector<const Place*> list;
    for (const auto* side : {&boundary_.inputs, &boundary_.outputs})
      for (const Place& p : *side) list.push_back(&p);
    return list;
  }

  struct Difference {
    double value, noise;
  };
  std::vector<Difference> differences(size_t input, int64_t entry) {
    const Place& place = boundary_.inputs[input];
    const double x = values_[input][static_cast<size_t>(entry)];
    const double h = settings_.step * std::max(1.0, std::abs(x));
    // What x ± h is after rounding.
    const double above = x + h, below = x - h;
    const Pass up(*this, &place, entry, above), down(*this, &place, entry, below);
    // The terms of a sum are each off by some ulps.
    const auto quotient = [&](double a, double b, double size) {
      return Difference{(a - b) / (above - below), kUlps * 0x1p-52 * size / (above - below)};
    };
    return {quotient(up.value(), down.value(), up.value_size()),
            quotient(up.slope(), down.slope(), up.slope_size())};
  }

  Variable normal(const Shape& shape) {
    std::normal_distribution<double> law;
    std::vector<double> values(static_cast<size_t>(shape.numel()));
    for (double& v : values) v = law(random_);
    return Variable(Tensor::from_vector(values, shape));
  }

  std::vector<int64_t> sample(int64_t n) {
    std::vector<int64_t> all(static_cast<size_t>(n)), chosen;
    for (int64_t i = 0; i < n; ++i) all[static_cast<size_t>(i)] = i;
    std::sample(all.begin(), all.end(), std::back_inserter(chosen), settings_.entries, random_);
    return chosen;
  }

  ModelStep& model_;
  const CheckSettings& settings_;
  const std::function<bool()>& stop_;
  std::mt19937_64 random_;
  Boundary boundary_;
  Variables cotangents_, directions_;
  std::vector<std::vector<double>> values_;  // of the inputs
};

void print_keys(const char* what, const std::vector<std::string>& keys) {
  constexpr size_t kShown = 6;
  const auto end = keys.begin() + static_cast<std::ptrdiff_t>(std::min(kShown, keys.size()));
  say("{}: {}", what, fmt::join(keys.begin(), end, ", "));
  say("{}\n", keys.size() > kShown ? fmt::format(" and {} more", keys.size() - kShown) : "");
}

}  // namespace

double CheckedEntry::raw() const {
  const double error = std::abs(analytic - numeric);
  const double share = error > 0 ? error / std::max(scale, std::abs(numeric)) : error;
  return std::isnan(share) ? INFINITY : share;
}

double CheckedEntry::relative() const {
  const double error = std::abs(analytic - numeric);
  if (!std::isfinite(error)) return INFINITY;
  return error <= noise ? 0.0 : raw() * (1 - noise / error);
}

namespace {
bool worse(const CheckedEntry& a, const CheckedEntry& b) {
  return std::pair(a.relative(), a.raw()) > std::pair(b.relative(), b.raw());
}
}  // namespace

const CheckedEntry& CheckResult::worst(int order) const {
  const CheckedEntry* found = nullptr;
  for (const CheckedEntry& e : entries)
    if (e.order == order && (!found || worse(e, *found))) found = &e;
  require(found != nullptr, "no entry of order {} was checked", order);
  return *found;
}

CheckResult check_gradients(ModelStep& model, const CheckSettings& settings,
                            const std::function<bool()>& stop) {
  require(dtype_of(model.settings().common) == DType::float64 && model.settings().device() == kCpu,
          "differences need --precision float64 and --device cpu");
  return Checker(model, settings, stop).run();
}

int check_command(int argc, const char* const* argv) {
  StepSettings step;
  CheckSettings s;
  double tolerance = 1e-5;
  return run_program(
      argc, argv, "inspect check",
      "Gradients of a module or op at a real point, against central differences.",
      [&](Options& options) {
        step = step_settings(argc, argv);
        step.model.common.precision = "float64";
        step.model.common.device = "cpu";
        step.model.common.math = "exact";
        step.sentences = 2;
        declare_step_options(options, step, {.files = false});
        options.text("--part", s.part,
                     "A module's path or an op's key; without: parameters to loss", "NAME");
        options.number("--order", s.order, between(1, 2),
                       "1, or 2: gradients of gradients as well");
        options.number("--entries", s.entries, at_least(1),
                       "Entries checked of each value that enters");
        options.number("--difference", s.step, above(0), "Half the step of the differences");
        options.flag("--open", s.open, "Check the composites of fused ops, not their kernels");
        options.number("--tolerance", tolerance, above(0),
                       "Largest error, relative to the gradient's size");
      },
      [&] {
        apply_common_options(step.model.common);
        check_settings(step.model);
        const InterruptGuard guard;
        ModelStep model(step);
        const CheckResult r = check_gradients(model, s, [&] { return guard.interrupted(); });
        if (guard.interrupted()) return guard.exit_code();
        print_keys("enters", r.inputs);
        print_keys("leaves", r.outputs);
        bool good = true;
        for (int order = 1; order <= s.order; ++order) {
          const CheckedEntry& w = r.worst(order);
          good = good && w.relative() <= tolerance;
          say("order {}: {} entries, the worst {}[{}]: {:.10g}, differences {:.10g}; off by "
              "{:.2g} of its size, {:.2g} beyond rounding\n",
              order, r.entries.size() / static_cast<size_t>(s.order), w.key, w.entry, w.analytic,
              w.numeric, w.raw(), w.relative());
        }
        say("gradients are {} {}\n", good ? "right to" : "OFF by more than", tolerance);
        return good ? 0 : kFound;
      });
}

}  // namespace macgrad::experiments
