// Module: a named tree of parameters, buffers and children. Registration is declaration: members
// are constructed with their parent and name, `Linear q_proj{this, "q_proj", C, C, random}`, in
// the order in which they are listed, and their dotted path is the name that state dicts, errors,
// records and gradients show. Modules do not move or copy, because children know their parents.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "macgrad/autograd/scope.h"
#include "macgrad/autograd/variable.h"
#include "macgrad/core/generator.h"

namespace macgrad::nn {

class Module;
struct CapturedDraws;  // nn/captured_draws.h

/// What the optimizer has to know of a parameter.
struct ParameterOptions {
  bool decay = true;                  // weight decay applies (not to norms, biases, gamma, beta)
  std::optional<double> lower_bound;  // kept >= this after every update
};

/// A trained Variable, named by its path.
class Parameter : public Variable {
 public:
  Parameter(Module* parent, const std::string& name, Tensor value, ParameterOptions options = {});
  Parameter(const Parameter&) = delete;
  Parameter& operator=(const Parameter&) = delete;

  const ParameterOptions& options() const { return options_; }
  /// The module that declares it.
  Module& module() const { return *module_; }

 private:
  Module* module_;
  ParameterOptions options_;
};

/// A Tensor of fixed shape and dtype that is state but not trained (running statistics, a draw).
class Buffer {
 public:
  /// Floating buffers follow Module::to(dtype) unless `keeps_dtype`, but not to bfloat16: running
  /// statistics move by less than its half ulp. They are float32 then.
  Buffer(Module* parent, const std::string& name, Tensor value, bool keeps_dtype = false);
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  const Tensor& value() const { return value_; }
  /// Overwrites the contents (broadcast, cast).
  void set(const Tensor& value) const { value_.copy_from(value); }

 private:
  friend class Module;
  Tensor value_;
  bool keeps_dtype_;
};

/// Random streams of one model: initialisation, dropout, and one stream per feature map. Modules
/// keep a pointer to it; begin_step makes every dropout draw a function of (seed, step,
/// micro-batch, how many draws came before it in that micro-batch) alone. Dropout and SoftmaxCore
/// call it; another module that draws calls it in on_micro_batch.
class ModelRandom {
 public:
  explicit ModelRandom(uint64_t seed = 0);

  uint64_t seed() const { return seed_; }
  Generator& init() { return init_; }
  Generator& dropout() { return dropout_; }
  /// A separate stream for each feature map, in order of construction.
  uint32_t next_feature_stream() { return kFeatures + feature_maps_++; }
  /// Dropout draws of this micro-batch of `step` are counted from 0 again.
  void begin_step(uint32_t step, uint32_t micro_batch = 0) {
    dropout_.begin_step(step, micro_batch);
  }

  // Streams of a seed, below 2^16; feature map n has kFeatures + n.
  static constexpr uint32_t kInit = 0x1001;
  static constexpr uint32_t kDropout = 0x1002;
  static constexpr uint32_t kFeatures = 0x2000;

 private:
  uint64_t seed_;
  Generator init_;
  Generator dropout_;
  uint32_t feature_maps_ = 0;
};

class Module {
 public:
  /// A root has no parent and may have no name.
  explicit Module(Module* parent = nullptr, std::string name = "");
  virtual ~Module() = default;
  Module(const Module&) = delete;
  Module& operator=(const Module&) = delete;

  const std::string& name() const { return name_; }
  /// "encoder.layers.0.self_attention"; "" for a root without a name.
  std::string path() const;
  const std::vector<Module*>& children() const { return children_; }
  /// This module and all below it, parents first, in order of declaration.
  std::vector<Module*> modules();
  /// The module without a parent above this one, or this one.
  Module& root();

  bool training() const { return training_; }
  /// Sets the mode of this module and all below it. Modules start in training mode.
  void train(bool on = true);
  void eval() { train(false); }

  /// Trained parameters in order of declaration, each once.
  std::vector<Parameter*> parameters();
  std::vector<std::pair<std::string, Parameter*>> named_parameters();
  /// Number of trained values.
  int64_t parameter_count();
  void zero_grad();

  /// Parameters and buffers by path relative to this module. The Tensors share the model's memory:
  /// clone what must not follow it.
  std::map<std::string, Tensor> state_dict();
  /// Copies every entry in (casting, between devices if need be). Throws one Error that lists all
  /// missing, unexpected and misshapen names; nothing is changed then.
  void load_state_dict(const std::map<std::string, Tensor>& state);

  /// Moves or casts parameters and buffers. Make optimizers afterwards: gradients and moments do
  /// not follow.
  void to(Device device);
  void to(DType dtype);

  /// Starts a training step in every module below, and its micro-batch 0: feature draws are renewed
  /// by their policy, statistics of the last step are cleared. Once an optimizer has updated a
  /// model, training forward calls that draw random numbers are an Error until the next begin_step:
  /// they would repeat the draws of the step before. An optimizer of several models updates them
  /// all, so that each of them needs the call. TrainingStep (nn/training_step.h) makes these calls.
  void begin_step(uint32_t step, int64_t epoch);
  /// Starts micro-batch `micro_batch` (below 2^16) of `step`, after begin_step. Dropout is drawn
  /// anew, as a function of (seed, step, micro_batch) alone; the micro-batches of a step share its
  /// feature draws, so that their summed gradient is that of one large batch.
  void begin_micro_batch(uint32_t step, uint32_t micro_batch);
  /// Called by optimizers on the roots of their parameters, after an update.
  void parameters_updated();
  /// Chooses which of the fixed evaluation draws feature maps use, from 0.
  void use_eval_draw(int index);

  /// Called with the result of every forward call of this module (not of its children); a defined
  /// Variable of the same shape and dtype takes its place. For gradients, hook the result itself:
  /// `[](const Variable& y) { y.add_hook(...); return Variable(); }`. Returns an id for
  /// remove_forward_hook. TrainingStep does not capture the steps of a model that has hooks.
  using ForwardHook = std::function<Variable(const Variable& result)>;
  int add_forward_hook(ForwardHook hook);
  void remove_forward_hook(int id);
  /// Whether this module or one below it has a hook.
  bool has_forward_hooks();

  /// A term of the training objective that depends on the parameters alone (0-dimensional), or
  /// undefined. TrainingStep adds those of all modules to the mean loss, once per update. A term
  /// that depends on activations belongs in the loss.
  virtual Variable penalty() { return Variable(); }

  /// For TrainingStep: what a captured step (core/step_graph.h) has fixed of this module and those
  /// below, after begin_step. A replay is valid while this is equal to what it was at the capture;
  /// nothing when this step cannot be captured or replayed. Throws an Error that names the first
  /// module which has to override on_capture and does not.
  std::optional<std::vector<int64_t>> captured_state();
  /// While a step is captured, before its forward call: queues the draws that each replay renews.
  void queue_captured_draws();

 protected:
  /// Called for every module by begin_step, use_eval_draw and after load_state_dict. A module that
  /// overrides on_begin_step also overrides on_capture, or its steps are not captured.
  virtual void on_begin_step(uint32_t step, int64_t epoch);
  virtual void on_eval_draw(int /*index*/) {}
  virtual void on_load() {}
  /// Called before buffers are listed by state_dict: what was put off is written to them now.
  virtual void on_read() {}
  /// Called for every module by begin_step (micro-batch 0) and begin_micro_batch. Draw keys of
  /// forward calls are made from these numbers. In a captured step `step` is kLiveStep: kernels
  /// then read the step of each replay, and reading such a draw on the host is an Error.
  virtual void on_micro_batch(uint32_t /*step*/, uint32_t /*micro_batch*/) {}
  /// This module's part of captured_state(), for a step that computes in `dtype` on `device`:
  /// numbers that change when begin_step has changed something that a replay would not see (a
  /// tensor in other memory, a value of the host that forward passes to a kernel). What is written
  /// in place, into memory that stays, needs none. Nothing: not this step. The default holds for
  /// modules that do not override on_begin_step; an override must not call Module::on_begin_step.
  virtual std::optional<std::vector<int64_t>> on_capture(DType dtype, Device device);
  /// Called by queue_captured_draws: draws whose key has the step kLiveStep.
  virtual void on_captured_step(CapturedDraws& /*draws*/) {}
  /// To be called by forward functions in training before they draw random numbers: an Error when
  /// an optimizer has updated this model since begin_step.
  void check_step_begun() const;

  /// Opened by forward functions: what is recorded while it lives carries this module's path.
  class ForwardScope {
   public:
    explicit ForwardScope(const Module& module) : module_(module), scope_(module.name()) {}
    /// What a forward function returns, seen by the module's hooks.
    Variable result(Variable y) const { return module_.seen_by_hooks(std::move(y)); }

   private:
    const Module& module_;
    Scope scope_;
  };
  ForwardScope scope() const { return ForwardScope(*this); }

 private:
  friend class Parameter;
  friend class Buffer;
  struct Entry {
    std::string name;
    Tensor value;
  };
  Variable seen_by_hooks(Variable y) const;
  void check_name(const std::string& name) const;
  /// Entries of the state dict with their paths relative to `this`, given `prefix`.
  void collect(const std::string& prefix, std::vector<Entry>& entries);
  void collect(const std::string& prefix, std::vector<std::pair<std::string, Parameter*>>& entries);
  /// Replaces every tensor; `change` is told the buffer, nullptr for a parameter.
  void move(const std::function<Tensor(const Tensor&, const Buffer*)>& change);

  Module* parent_;
  std::string name_;
  bool training_ = true;
  bool updated_ = false;      // since begin_step
  bool begins_steps_ = true;  // overrides on_begin_step, as far as is known
  std::vector<Parameter*> parameters_;
  std::vector<std::string> parameter_names_;
  std::vector<Buffer*> buffers_;
  std::vector<std::string> buffer_names_;
  std::vector<Module*> children_;
  std::vector<std::pair<int, ForwardHook>> forward_hooks_;
  int next_forward_hook_ = 0;
};

/// Evaluation mode while alive; the mode before, and evaluation draw 0, afterwards.
class EvalScope {
 public:
  explicit EvalScope(Module& model) : model_(model), was_training_(model.training()) {
    model_.eval();
  }
  ~EvalScope() {
    model_.use_eval_draw(0);
    model_.train(was_training_);
  }
  EvalScope(const EvalScope&) = delete;
  EvalScope& operator=(const EvalScope&) = delete;

 private:
  Module& model_;
  bool was_training_;
};

}  // namespace macgrad::nn
