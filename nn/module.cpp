// The module tree: registration, paths, state dicts, modes.
#include "macgrad/nn/module.h"

#include <algorithm>
#include <set>

#include "macgrad/nn/captured_draws.h"

namespace macgrad::nn {

namespace {

std::string join(const std::string& a, const std::string& b) {
  if (a.empty() || b.empty()) return a + b;
  return a + "." + b;
}

}  // namespace

Parameter::Parameter(Module* parent, const std::string& name, Tensor value,
                     ParameterOptions options)
    : Variable(std::move(value), true, join(parent->path(), name)),
      module_(parent),
      options_(options) {
  parent->check_name(name);
  parent->parameters_.push_back(this);
  parent->parameter_names_.push_back(name);
}

Buffer::Buffer(Module* parent, const std::string& name, Tensor value, bool keeps_dtype)
    : value_(std::move(value)), keeps_dtype_(keeps_dtype || !is_floating(value_.dtype())) {
  parent->check_name(name);
  parent->buffers_.push_back(this);
  parent->buffer_names_.push_back(name);
}

ModelRandom::ModelRandom(uint64_t seed)
    : seed_(seed), init_(seed, kInit), dropout_(seed, kDropout) {}

Module::Module(Module* parent, std::string name) : parent_(parent), name_(std::move(name)) {
  if (!parent_) return;
  require(!name_.empty(), "[module] a child of '{}' has no name", parent_->path());
  parent_->check_name(name_);
  parent_->children_.push_back(this);
}

void Module::check_name(const std::string& name) const {
  bool taken =
      std::find(parameter_names_.begin(), parameter_names_.end(), name) != parameter_names_.end() ||
      std::find(buffer_names_.begin(), buffer_names_.end(), name) != buffer_names_.end();
  for (const Module* child : children_) taken = taken || child->name_ == name;
  require(!taken, "[module] '{}' has two members named '{}'", path(), name);
}

std::string Module::path() const {
  return parent_ ? join(parent_->path(), name_) : name_;
}

std::vector<Module*> Module::modules() {
  std::vector<Module*> all;
  const auto append = [&all](const auto& self, Module* module) -> void {
    all.push_back(module);
    for (Module* child : module->children_) self(self, child);
  };
  append(append, this);
  return all;
}

Module& Module::root() {
  Module* top = this;
  while (top->parent_) top = top->parent_;
  return *top;
}

void Module::train(bool on) {
  training_ = on;
  for (Module* child : children_) child->train(on);
}

void Module::collect(const std::string& prefix,
                     std::vector<std::pair<std::string, Parameter*>>& entries) {
  for (size_t i = 0; i < parameters_.size(); ++i)
    entries.emplace_back(join(prefix, parameter_names_[i]), parameters_[i]);
  for (Module* child : children_) child->collect(join(prefix, child->name_), entries);
}

void Module::collect(const std::string& prefix, std::vector<Entry>& entries) {
  on_read();
  for (size_t i = 0; i < parameters_.size(); ++i)
    entries.push_back({join(prefix, parameter_names_[i]), parameters_[i]->value()});
  for (size_t i = 0; i < buffers_.size(); ++i)
    entries.push_back({join(prefix, buffer_names_[i]), buffers_[i]->value()});
  for (Module* child : children_) child->collect(join(prefix, child->name_), entries);
}

std::vector<std::pair<std::string, Parameter*>> Module::named_parameters() {
  std::vector<std::pair<std::string, Parameter*>> entries;
  collect("", entries);
  return entries;
}

std::vector<Parameter*> Module::parameters() {
  std::vector<Parameter*> result;
  for (const auto& [name, parameter] : named_parameters()) result.push_back(parameter);
  return result;
}

int64_t Module::parameter_count() {
  int64_t count = 0;
  for (const Parameter* p : parameters()) count += p->numel();
  return count;
}

void Module::zero_grad() {
  for (const Parameter* p : parameters()) p->zero_grad();
}

std::map<std::string, Tensor> Module::state_dict() {
  std::vector<Entry> entries;
  collect("", entries);
  std::map<std::string, Tensor> state;
  for (Entry& e : entries) state.emplace(std::move(e.name), std::move(e.value));
  return state;
}

void Module::load_state_dict(const std::map<std::string, Tensor>& state) {
  const std::map<std::string, Tensor> own = state_dict();
  std::string problems;
  for (const auto& [name, value] : own) {
    const auto found = state.find(name);
    if (found == state.end())
      problems += fmt::format("\n  missing: {} {}", name, value.shape());
    else if (!(found->second.shape() == value.shape()))
      problems += fmt::format("\n  misshapen: {} is {} and must be {}", name, found->second.shape(),
                              value.shape());
    else if (is_floating(found->second.dtype()) != is_floating(value.dtype()))
      problems += fmt::format("\n  misshapen: {} holds {} and must hold {}", name,
                              macgrad::name(found->second.dtype()), macgrad::name(value.dtype()));
  }
  for (const auto& [name, value] : state)
    if (!own.contains(name)) problems += fmt::format("\n  unexpected: {} {}", name, value.shape());
  if (!problems.empty())
    throw Error("[load_state_dict] the state does not fit the model:{}", problems);
  // Buffers first: a module may refuse what it reads in them.
  std::set<std::string> parameters;
  for (const auto& [name, parameter] : named_parameters()) parameters.insert(name);
  std::map<std::string, Tensor> before;
  const auto load_buffers = [&](const std::map<std::string, Tensor>& from) {
    for (const auto& [name, value] : own)
      if (!parameters.contains(name)) value.copy_from(from.at(name).to(value.device()));
    for (Module* m : modules()) m->on_load();
  };
  for (const auto& [name, value] : own)
    if (!parameters.contains(name)) before.emplace(name, value.clone());
  try {
    load_buffers(state);
  } catch (...) {
    load_buffers(before);
    throw;
  }
  for (const std::string& name : parameters) {
    const Tensor& value = own.at(name);
    value.copy_from(state.at(name).to(value.device()));
  }
}

void Module::move(const std::function<Tensor(const Tensor&, const Buffer*)>& change) {
  for (Module* m : modules()) {
    for (Parameter* p : m->parameters_) {
      p->set_value(change(p->value(), nullptr));
      p->zero_grad();
    }
    for (Buffer* b : m->buffers_) b->value_ = change(b->value_, b);
  }
}

void Module::to(Device device) {
  move([&](const Tensor& t, const Buffer*) { return t.to(device); });
}

void Module::to(DType dtype) {
  require(is_floating(dtype), "[to] a model cannot be stored as {}", macgrad::name(dtype));
  move([&](const Tensor& t, const Buffer* buffer) {
    if (!buffer) return t.to(dtype);
    return buffer->keeps_dtype_ ? t : t.to(compute_dtype(dtype));
  });
}

void Module::begin_step(uint32_t step, int64_t epoch) {
  for (Module* m : modules()) {
    m->updated_ = false;
    m->on_begin_step(step, epoch);
  }
  begin_micro_batch(step, 0);
}

void Module::begin_micro_batch(uint32_t step, uint32_t micro_batch) {
  require(micro_batch <= 0xffff, "[begin_micro_batch] micro-batch {}; a step has at most {}",
          micro_batch, 1 << 16);
  for (Module* m : modules()) m->on_micro_batch(step, micro_batch);
}

void Module::parameters_updated() {
  updated_ = true;
  for (Module* child : children_) child->parameters_updated();
}

void Module::check_step_begun() const {
  if (!updated_) return;
  throw Error(
      "'{}' draws random numbers, but no training step has begun since an optimizer updated the "
      "model: they would repeat those of the step before. Call begin_step(step, epoch) on the "
      "model "
      "before the forward calls of every update, or train with nn::TrainingStep",
      path());
}

void Module::on_begin_step(uint32_t, int64_t) {
  begins_steps_ = false;
}

std::optional<std::vector<int64_t>> Module::on_capture(DType, Device) {
  if (begins_steps_)
    throw Error(
        "'{}' overrides on_begin_step but not on_capture, which has to tell what a captured step "
        "keeps of it",
        path());
  return std::vector<int64_t>{};
}

std::optional<std::vector<int64_t>> Module::captured_state() {
  std::vector<int64_t> all;
  const std::vector<Parameter*> trained = parameters();
  const DType dtype = trained.empty() ? DType::float32 : trained[0]->dtype();
  const Device device = trained.empty() ? kCpu : trained[0]->device();
  for (const Parameter* p : trained) all.push_back(p->requires_grad());
  for (Module* m : modules()) {
    const auto part = m->on_capture(dtype, device);
    if (!part) return std::nullopt;
    all.push_back(m->training());
    all.insert(all.end(), part->begin(), part->end());
  }
  return all;
}

void Module::queue_captured_draws() {
  CapturedDraws draws;
  for (Module* m : modules()) m->on_captured_step(draws);
  draws.queue();
}

int Module::add_forward_hook(ForwardHook hook) {
  forward_hooks_.emplace_back(next_forward_hook_, std::move(hook));
  return next_forward_hook_++;
}

void Module::remove_forward_hook(int id) {
  std::erase_if(forward_hooks_, [id](const auto& entry) { return entry.first == id; });
}

bool Module::has_forward_hooks() {
  const std::vector<Module*> all = modules();
  return std::any_of(all.begin(), all.end(),
                     [](const Module* m) { return !m->forward_hooks_.empty(); });
}

Variable Module::seen_by_hooks(Variable y) const {
  if (forward_hooks_.empty()) return y;
  const auto hooks = forward_hooks_;  // a hook may add or remove hooks
  for (const auto& [id, hook] : hooks) {
    Variable replaced = hook(y);
    if (!replaced.defined()) continue;
    check(replaced.shape() == y.shape() && replaced.dtype() == y.dtype(),
          "a forward hook of '{}' returned {} {} for a result of {} {}", path(),
          macgrad::name(replaced.dtype()), replaced.shape(), macgrad::name(y.dtype()), y.shape());
    y = std::move(replaced);
  }
  return y;
}

void Module::use_eval_draw(int index) {
  // Without a list of modules, since ~EvalScope calls this.
  on_eval_draw(index);
  for (Module* child : children_) child->use_eval_draw(index);
}

}  // namespace macgrad::nn
