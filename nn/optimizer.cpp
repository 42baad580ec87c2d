// Optimizers on the adam, sgd and sum_of_squares kernels.
#include "macgrad/nn/optimizer.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "macgrad/autograd/ops.h"
#include "macgrad/core/kernels/optimizer.h"
#include "macgrad/core/step_graph.h"

namespace macgrad::nn {

std::vector<ParameterGroup> decay_groups(Module& module, double weight_decay) {
  std::vector<ParameterGroup> groups(2);
  groups[0].weight_decay = weight_decay;
  for (Parameter* p : module.parameters())
    groups[p->options().decay ? 0 : 1].parameters.push_back(p);
  return groups;
}

namespace {

// What the updated parameter is kept at or above.
double lower_bound(const Parameter& parameter) {
  return parameter.options().lower_bound.value_or(-std::numeric_limits<double>::infinity());
}

// For a kernel; 0 in StepOptions means no limit.
double limit_of(const StepOptions& options) {
  return options.clip_value > 0.0 ? options.clip_value : std::numeric_limits<double>::infinity();
}

// (1) float64; undefined when nothing has a gradient.
Tensor squared_norm(const std::vector<Parameter*>& parameters) {
  Tensors gradients;
  for (const Parameter* p : parameters)
    if (p->grad().defined()) gradients.push_back(p->grad().value().contiguous());
  if (gradients.empty()) return Tensor();
  const Tensor total = Tensor::empty(Shape{1}, DType::float64, gradients[0].device());
  kernels::sum_of_squares(gradients, total);
  return total;
}

}  // namespace

double gradient_norm(const std::vector<Parameter*>& parameters) {
  const Tensor total = squared_norm(parameters);
  return total.defined() ? std::sqrt(total.item()) : 0.0;
}

Optimizer::Optimizer(std::vector<ParameterGroup> groups, std::vector<std::string> moments,
                     double momentum)
    : moments_(std::move(moments)), momentum_(momentum) {
  std::set<Module*> seen;
  for (const ParameterGroup& g : groups) {
    Group group{{}, {}, g.weight_decay, g.lr_scale};
    for (Parameter* p : g.parameters) {
      const bool low = p->dtype() == DType::bfloat16;
      const DType kept = compute_dtype(p->dtype());
      Slot slot{p, {}, low ? p->value().to(kept) : Tensor(), {}, 0};
      for (size_t i = 0; i < moments_.size(); ++i)
        slot.moments.push_back(Tensor::zeros(p->shape(), kept, p->device()));
      if (low) slot.remember();
      group.slots.push_back(std::move(slot));
      group.bounds.insert(lower_bound(*p));
      Module* const root = &p->module().root();
      if (seen.insert(root).second) roots_.push_back(root);
    }
    groups_.push_back(std::move(group));
  }
}

std::vector<Parameter*> Optimizer::parameters() const {
  std::vector<Parameter*> all;
  for (const Group& g : groups_)
    for (const Slot& s : g.slots) all.push_back(s.parameter);
  return all;
}

void Optimizer::Slot::remember() {
  storage = parameter->value().storage();
  version = parameter->value().version();
}

void Optimizer::take_written_parameters() {
  for (Group& g : groups_) {
    for (Slot& s : g.slots) {
      const Tensor& value = s.parameter->value();
      if (!s.master.defined() ||
          (s.storage.lock() == value.storage() && s.version == value.version()))
        continue;
      // Where the parameter is the master rounded, the master knows more.
      const Tensor same = equal(value, s.master.to(value.dtype()));
      s.master.copy_from(
          where(same, Variable(s.master), Variable(value.to(s.master.dtype()))).value());
      s.remember();
    }
  }
}

double Optimizer::step(double lr, const StepOptions& options) {
  require(!options.momentum || !moments_.empty(),
          "[step] a momentum of {} for an optimizer without one; make it with a momentum above 0",
          options.momentum.value_or(0.0));
  take_written_parameters();
  const double norm = gradient_norm(parameters()) * options.grad_scale;
  updated();
  if (!std::isfinite(norm)) {
    ++skipped_;
    return norm;
  }
  double scale = options.grad_scale;
  if (options.clip_norm > 0.0 && norm > options.clip_norm) scale *= options.clip_norm / norm;
  ++steps_;
  update_groups({.lr = lr,
                 .momentum = options.momentum.value_or(momentum_),
                 .weight_decay = 0.0,
                 .grad_scale = scale,
                 .clip_value = limit_of(options),
                 .lower_bound = 0.0,
                 .step = steps_});
  return norm;
}

void Optimizer::capture_step(const StepOptions& options, const Tensor& loss) {
  const Tensor total = squared_norm(parameters());
  check(total.defined(), "[capture_step] no parameter of the optimizer has a {}", "gradient");
  clip_recorded_gradients(total, options.clip_norm, loss);
  update_groups({.lr = 1.0,
                 .momentum = 0.0,
                 .weight_decay = 0.0,
                 .grad_scale = 1.0,
                 .clip_value = limit_of(options),
                 .lower_bound = 0.0,
                 .step = kLiveUpdate});
}

void Optimizer::count_update(double norm) {
  ++(std::isfinite(norm) ? steps_ : skipped_);
  updated();
}

void Optimizer::updated() {
  for (Module* root : roots_) root->parameters_updated();
}

void Optimizer::update_groups(UpdateArgs args) {
  const double lr = args.lr;
  for (Group& g : groups_) {
    args.lr = lr * g.lr_scale;
    args.weight_decay = g.weight_decay;
    for (const double bound : g.bounds) {
      args.lower_bound = bound;
      for (const bool masters : {false, true})
        if (const Lists lists = lists_of(g, masters, bound); !lists.values.empty())
          update(lists, args);
    }
    for (Slot& s : g.slots)
      if (s.master.defined()) s.remember();
  }
}

Optimizer::Lists Optimizer::lists_of(const Group& group, bool masters, double bound) const {
  Lists lists;
  lists.moments.resize(moments_.size());
  for (const Slot& s : group.slots) {
    if (s.master.defined() != masters || !s.parameter->grad().defined() ||
        lower_bound(*s.parameter) != bound)
      continue;
    lists.values.push_back(s.parameter->value());
    if (masters) lists.masters.push_back(s.master);
    lists.gradients.push_back(s.parameter->grad().value().contiguous());
    for (size_t i = 0; i < s.moments.size(); ++i) lists.moments[i].push_back(s.moments[i]);
  }
  return lists;
}

void Optimizer::zero_grad() {
  for (const Parameter* p : parameters()) p->zero_grad();
}

std::map<std::string, Tensor> Optimizer::state_dict() const {
  std::map<std::string, Tensor> state;
  for (const Group& g : groups_) {
    for (const Slot& s : g.slots) {
      for (size_t i = 0; i < moments_.size(); ++i)
        state[s.parameter->name() + "/" + moments_[i]] = s.moments[i];
      if (s.master.defined()) state[s.parameter->name() + "/master"] = s.master;
    }
  }
  state["steps"] = Tensor::from_vector(std::vector<int64_t>{steps_});
  return state;
}

void Optimizer::load_state_dict(const std::map<std::string, Tensor>& state) {
  const std::map<std::string, Tensor> own = state_dict();
  std::string problems;
  for (const auto& [name, value] : own) {
    const auto found = state.find(name);
    if (found == state.end())
      problems += fmt::format("\n  missing: {}", name);
    else if (!(found->second.shape() == value.shape()))
      problems += fmt::format("\n  misshapen: {} is {} and must be {}", name, found->second.shape(),
                              value.shape());
    else if (found->second.dtype() != value.dtype())
      problems += fmt::format("\n  of another precision: {} is {} and must be {}", name,
                              macgrad::name(found->second.dtype()), macgrad::name(value.dtype()));
  }
  for (const auto& [name, value] : state)
    if (!own.contains(name)) problems += fmt::format("\n  unexpected: {} {}", name, value.shape());
  if (!problems.empty())
    throw Error(
        "[load_state_dict] the state does not fit the optimizer; continue with the same "
        "parameters, "
        "in the precision in which it was saved:{}",
        problems);
  for (const auto& [name, value] : own) value.copy_from(state.at(name).to(value.device()));
  for (Group& g : groups_) {
    for (Slot& s : g.slots) {
      if (!s.master.defined()) continue;
      s.parameter->value().copy_from(s.master);
      s.remember();
    }
  }
  steps_ = static_cast<int64_t>(state.at("steps").item());
}

Adam::Adam(std::vector<ParameterGroup> groups, AdamSettings settings)
    : Optimizer(std::move(groups), {"first", "second"}, settings.beta1), settings_(settings) {}

Adam::Adam(Module& model, double weight_decay, AdamSettings settings)
    : Adam(decay_groups(model, weight_decay), settings) {}

void Adam::update(const Lists& lists, const UpdateArgs& u) const {
  AdamArgs args;
  args.lr = u.lr;
  args.beta1 = u.momentum;
  args.beta2 = settings_.beta2;
  args.eps = settings_.eps;
  args.weight_decay = u.weight_decay;
  args.decoupled = settings_.decoupled;
  args.grad_scale = u.grad_scale;
  args.clip_value = u.clip_value;
  args.step = u.step;
  args.lower_bound = u.lower_bound;
  kernels::adam(lists.values, lists.masters, lists.gradients, lists.moments[0], lists.moments[1],
                args);
}

SGD::SGD(std::vector<ParameterGroup> groups, double momentum)
    : Optimizer(std::move(groups),
                momentum > 0.0 ? std::vector<std::string>{"momentum"} : std::vector<std::string>{},
                momentum) {}

SGD::SGD(Module& model, double momentum, double weight_decay)
    : SGD(decay_groups(model, weight_decay), momentum) {}

void SGD::update(const Lists& lists, const UpdateArgs& u) const {
  const SgdArgs args{.lr = u.lr,
                     .momentum = u.momentum,
                     .weight_decay = u.weight_decay,
                     .grad_scale = u.grad_scale,
                     .clip_value = u.clip_value,
                     .step = u.step,
                     .lower_bound = u.lower_bound};
  kernels::sgd(lists.values, lists.masters, lists.gradients,
               lists.moments.empty() ? Tensors{} : lists.moments[0], args);
}

}  // namespace macgrad::nn
