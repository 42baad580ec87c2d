// Variable's small methods and the recording mode, which is one flag for each thread. Data about a
// leaf (gradient, name, hooks) sits in shared Meta, so that copies of a Variable are one variable.
#include "macgrad/autograd/variable.h"

#include <algorithm>

#include "macgrad/autograd/node.h"

namespace macgrad {
namespace {
thread_local bool grad_mode = true;
}

bool grad_enabled() {
  return grad_mode;
}
GradMode::GradMode(bool enabled) : previous_(grad_mode) {
  grad_mode = enabled;
}
GradMode::~GradMode() {
  grad_mode = previous_;
}

Variable::Variable(Tensor value, bool requires_grad, std::string name)
    : value_(std::move(value)), meta_(std::make_shared<Meta>()) {
  meta_->name = std::move(name);
  if (requires_grad) set_requires_grad(true);
}

Variable::Variable(Tensor value, std::shared_ptr<Meta> meta, std::shared_ptr<Node> node, int output)
    : value_(std::move(value)), meta_(std::move(meta)), node_(std::move(node)), output_(output) {}

bool Variable::requires_grad() const {
  return node_ != nullptr || (meta_ && meta_->requires_grad);
}

void Variable::set_requires_grad(bool value) const {
  require(meta_ != nullptr && is_leaf(), "set_requires_grad on {}, which is not a leaf", *this);
  require(!value || is_floating(dtype()), "{} of {} cannot have a gradient; cast it first", *this,
          macgrad::name(dtype()));
  meta_->requires_grad = value;
}

void Variable::set_value(Tensor value) {
  require(is_leaf(), "set_value on {}, which is not a leaf", *this);
  value_ = std::move(value);
}

const Variable& Variable::grad() const {
  static const Variable none;
  return meta_ ? meta_->grad : none;
}

void Variable::set_grad(Variable gradient) const {
  require(meta_ != nullptr, "set_grad on an undefined Variable");
  meta_->grad = std::move(gradient);
}

void Variable::retain_grad() const {
  require(meta_ != nullptr && requires_grad(), "retain_grad on {}, which has no gradient", *this);
  meta_->retain_grad = true;
}

const Variable& Variable::named(std::string name) const {
  require(meta_ != nullptr, "an undefined Variable cannot be named {}", name);
  meta_->name = std::move(name);
  return *this;
}

std::string Variable::name() const {
  if (!defined()) return "undefined";
  if (meta_ && !meta_->name.empty()) return meta_->name;
  if (!node_) return "leaf";
  return output_ == 0 ? node_->text() : fmt::format("{}.{}", node_->text(), output_);
}

int Variable::add_hook(Hook hook) const {
  require(meta_ != nullptr && requires_grad(), "a hook on {}, which has no gradient", *this);
  meta_->hooks.emplace_back(meta_->next_hook, std::move(hook));
  return meta_->next_hook++;
}

void Variable::remove_hook(int id) const {
  if (meta_) std::erase_if(meta_->hooks, [id](const auto& entry) { return entry.first == id; });
}

}  // namespace macgrad
