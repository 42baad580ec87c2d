// Adam and AdamW on the adam and sum_of_squares kernels.
#include "macgrad/nn/optimizer.h"

#include <cmath>
#include <limits>

#include "macgrad/autograd/ops.h"
#include "macgrad/core/kernels.h"
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

Adam::Adam(std::vector<ParameterGroup> groups, AdamSettings settings) : settings_(settings) {
  for (const ParameterGroup& g : groups) {
    Group group{{}, {}, g.weight_decay, g.lr_scale};
    for (Parameter* p : g.parameters) {
      const bool low = p->dtype() == DType::bfloat16;
      const DType kept = compute_dtype(p->dtype());
      const auto zeros = [&] { return Tensor::zeros(p->shape(), kept, p->device()); };
      group.slots.push_back({p, zeros(), zeros(), low ? p->value().to(kept) : Tensor(), {}, 0});
      if (low) group.slots.back().remember();
      group.bounds.insert(lower_bound(*p));
    }
    groups_.push_back(std::move(group));
  }
}

std::vector<Parameter*> Adam::all() const {
  std::vector<Parameter*> parameters;
  for (const Group& g : groups_)
    for (const Slot& s : g.slots) parameters.push_back(s.parameter);
  return parameters;
}

void Adam::Slot::remember() {
  storage = parameter->value().storage();
  version = parameter->value().version();
}

void Adam::take_written_parameters() {
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

double Adam::step(double lr, const StepOptions& options) {
  take_written_parameters();
  const double norm = gradient_norm(all()) * options.grad_scale;
  if (!std::isfinite(norm)) {
    ++skipped_;
    return norm;
  }
  double scale = options.grad_scale;
  if (options.clip_norm > 0.0 && norm > options.clip_norm) scale *= options.clip_norm / norm;
  ++steps_;
  AdamArgs args;
  args.lr = lr;
  args.grad_scale = scale;
  args.step = steps_;
  update(args);
  return norm;
}

void Adam::record_step(double clip_norm) {
  const Tensor total = squared_norm(all());
  if (!total.defined()) return;
  clip_recorded_gradients(total, clip_norm);
  AdamArgs args;
  args.lr = 1.0;
  args.step = kLiveAdamStep;
  update(args);
}

void Adam::count_replay(double norm) {
  ++(std::isfinite(norm) ? steps_ : skipped_);
}

void Adam::update(AdamArgs args) {
  const double lr = args.lr;
  for (Group& g : groups_) {
    args.lr = lr * g.lr_scale;
    args.beta1 = settings_.beta1;
    args.beta2 = settings_.beta2;
    args.eps = settings_.eps;
    args.weight_decay = g.weight_decay;
    args.decoupled = settings_.decoupled;
    for (const double bound : g.bounds) {
      args.lower_bound = bound;
      for (const bool masters : {false, true}) update(g, masters, args);
    }
    for (Slot& s : g.slots)
      if (s.master.defined()) s.remember();
  }
}

void Adam::update(const Group& group, bool masters, const AdamArgs& args) {
  Tensors values, kept, gradients, first, second;
  for (const Slot& s : group.slots) {
    if (s.master.defined() != masters || !s.parameter->grad().defined() ||
        lower_bound(*s.parameter) != args.lower_bound)
      continue;
    values.push_back(s.parameter->value());
    if (masters) kept.push_back(s.master);
    gradients.push_back(s.parameter->grad().value().contiguous());
    first.push_back(s.first);
    second.push_back(s.second);
  }
  if (!values.empty()) kernels::adam(values, kept, gradients, first, second, args);
}

void Adam::zero_grad() {
  for (const Parameter* p : all()) p->zero_grad();
}

std::map<std::string, Tensor> Adam::state_dict() const {
  std::map<std::string, Tensor> state;
  for (const Group& g : groups_) {
    for (const Slot& s : g.slots) {
      state[s.parameter->name() + "/first"] = s.first;
      state[s.parameter->name() + "/second"] = s.second;
      if (s.master.defined()) state[s.parameter->name() + "/master"] = s.master;
    }
  }
  state["steps"] = Tensor::from_vector(std::vector<int64_t>{steps_});
  return state;
}

void Adam::load_state_dict(const std::map<std::string, Tensor>& state) {
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

}  // namespace macgrad::nn
