// Adam and AdamW on the adam and sum_of_squares kernels.
#include "nn/optimizer.h"

#include <cmath>
#include <limits>

#include "autograd/ops.h"
#include "core/kernels.h"

namespace macgrad::nn {

std::vector<ParameterGroup> decay_groups(Module& module, double weight_decay) {
  std::vector<ParameterGroup> groups(2);
  groups[0].weight_decay = weight_decay;
  for (Parameter* p : module.parameters())
    groups[p->options().decay ? 0 : 1].parameters.push_back(p);
  return groups;
}

double gradient_norm(const std::vector<Parameter*>& parameters) {
  Tensors gradients;
  for (const Parameter* p : parameters)
    if (p->grad().defined()) gradients.push_back(p->grad().value().contiguous());
  if (gradients.empty()) return 0.0;
  const Tensor total = Tensor::empty(Shape{1}, DType::float64, gradients[0].device());
  kernels::sum_of_squares(gradients, total);
  return std::sqrt(total.item());
}

Adam::Adam(std::vector<ParameterGroup> groups, AdamSettings settings) : settings_(settings) {
  for (const ParameterGroup& g : groups) {
    Group group{{}, g.weight_decay, g.lr_scale};
    for (Parameter* p : g.parameters) {
      const auto zeros = [&] { return Tensor::zeros(p->shape(), p->dtype(), p->device()); };
      group.slots.push_back({p, zeros(), zeros()});
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

double Adam::step(double lr, const StepOptions& options) {
  const double norm = gradient_norm(all()) * options.grad_scale;
  if (!std::isfinite(norm)) {
    ++skipped_;
    return norm;
  }
  double scale = options.grad_scale;
  if (options.clip_norm > 0.0 && norm > options.clip_norm) scale *= options.clip_norm / norm;
  ++steps_;
  for (const Group& g : groups_) {
    Tensors values, gradients, first, second;
    for (const Slot& s : g.slots) {
      if (!s.parameter->grad().defined()) continue;
      values.push_back(s.parameter->value());
      gradients.push_back(s.parameter->grad().value().contiguous());
      first.push_back(s.first);
      second.push_back(s.second);
    }
    if (values.empty()) continue;
    AdamArgs args;
    args.lr = lr * g.lr_scale;
    args.beta1 = settings_.beta1;
    args.beta2 = settings_.beta2;
    args.eps = settings_.eps;
    args.weight_decay = g.weight_decay;
    args.decoupled = settings_.decoupled;
    args.grad_scale = scale;
    args.step = steps_;
    kernels::adam(values, gradients, first, second, args);
    for (const Slot& s : g.slots) {
      const std::optional<double>& bound = s.parameter->options().lower_bound;
      if (!bound) continue;
      const Tensor value = s.parameter->value();
      value.copy_from(
          clamp(Variable(value), *bound, std::numeric_limits<double>::infinity()).value());
    }
  }
  return norm;
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
  }
  for (const auto& [name, value] : state)
    if (!own.contains(name)) problems += fmt::format("\n  unexpected: {} {}", name, value.shape());
  if (!problems.empty())
    throw Error("[load_state_dict] the state does not fit the optimizer:{}", problems);
  for (const auto& [name, value] : own) value.copy_from(state.at(name).to(value.device()));
  steps_ = static_cast<int64_t>(state.at("steps").item());
}

}  // namespace macgrad::nn
