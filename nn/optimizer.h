// Optimizers over groups of parameters: Adam (Kingma & Ba 2015), AdamW (Loshchilov & Hutter 2019)
// and SGD with momentum, one fused kernel call per group. Gradients are those that backward() left
// in grad(). A bfloat16 parameter has a float32 master, to which updates are added that are too
// small for the parameter, and float32 moments (Micikevicius et al. 2018, section 3.1).
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "macgrad/core/kernels/optimizer.h"
#include "macgrad/nn/module.h"

namespace macgrad::nn {

/// Parameters that share settings.
struct ParameterGroup {
  std::vector<Parameter*> parameters;
  double weight_decay = 0.0;
  double lr_scale = 1.0;
};

/// Two groups: parameters that decay (ParameterOptions::decay) and those that do not.
std::vector<ParameterGroup> decay_groups(Module& module, double weight_decay);

/// √Σ|g|² over all gradients of the parameters (those without count 0); reads one number back.
double gradient_norm(const std::vector<Parameter*>& parameters);

struct StepOptions {
  double grad_scale = 1.0;  // multiplies every gradient first (1/tokens of summed losses)
  double clip_norm = 0.0;   // scaled gradients are shrunk to this global norm; 0: not clipped
  double clip_value = 0.0;  // their elements are then kept within ±clip_value; 0: not clipped
  // β₁ of Adam or the momentum of SGD in this update; otherwise that of the settings.
  std::optional<double> momentum = {};
};

/// What all optimizers share: groups, masters, clipping, captured steps and state.
class Optimizer {
 public:
  virtual ~Optimizer() = default;
  Optimizer(Optimizer&&) = default;

  /// One update with learning rate `lr`; parameters without a gradient stay as they are. Returns
  /// the global norm of the scaled gradients before clipping. When it is not finite nothing is
  /// changed and skipped() counts one more.
  double step(double lr, const StepOptions& options = {});
  void zero_grad();

  /// step() while a training step is captured (core/step_graph.h): learning rate, gradient scale,
  /// momentum and the number of the update are read from the ReplayValues of each replay; clipping
  /// is that of the options. A replay whose `loss` (one number) is not finite changes nothing.
  /// Counts nothing.
  void capture_step(const StepOptions& options, const Tensor& loss);
  /// Masters of bfloat16 parameters that something else has written to (Module::load_state_dict,
  /// say) take the values written. step() calls it; to be called before a captured step is
  /// replayed.
  void take_written_parameters();
  /// Counts an update that step() has not made: of a replay whose gradients had this norm, or, when
  /// it is not finite, one that was skipped.
  void count_update(double norm);

  /// All parameters, group by group.
  std::vector<Parameter*> parameters() const;
  /// β₁ or the momentum of the settings.
  double momentum() const { return momentum_; }
  /// Updates made so far.
  int64_t steps() const { return steps_; }
  int64_t skipped() const { return skipped_; }

  /// Moments by parameter path, "<path>/first" and so on, "<path>/master" of bfloat16 parameters,
  /// and "steps". They share memory.
  std::map<std::string, Tensor> state_dict() const;
  /// Parameters with a master become the loaded master rounded. Throws one Error listing missing,
  /// unexpected and misshapen names, and those of another dtype.
  void load_state_dict(const std::map<std::string, Tensor>& state);

 protected:
  /// Operands of one kernel call; an empty list is absent.
  struct Lists {
    Tensors values, masters, gradients;
    std::vector<Tensors> moments;  // one list per name given to the constructor
  };
  /// Of one kernel call; the fields mean what they mean in AdamArgs.
  struct UpdateArgs {
    double lr, momentum, weight_decay, grad_scale, clip_value, lower_bound;
    int64_t step;
  };

  /// Masters are copies of the parameters as they are now. `moments`: the names, in state_dict, of
  /// the tensors of each parameter's shape that the method keeps; zeros at first.
  Optimizer(std::vector<ParameterGroup> groups, std::vector<std::string> moments, double momentum);
  /// Calls the method's kernel.
  virtual void update(const Lists& lists, const UpdateArgs& args) const = 0;

 private:
  struct Slot {
    Parameter* parameter;
    Tensors moments;
    Tensor master;  // of a bfloat16 parameter
    // The parameter as this optimizer left it. Replays, which the host does not see, leave both.
    std::weak_ptr<Storage> storage;
    uint64_t version = 0;
    void remember();
  };
  struct Group {
    std::vector<Slot> slots;
    std::set<double> bounds;  // of the parameters; -infinity: none
    double weight_decay;
    double lr_scale;
  };
  /// args but for the group's decay and the bound; its lr multiplies the group's scale.
  void update_groups(UpdateArgs args);
  /// Of the slots with a master, or of those without, whose parameters have this bound.
  Lists lists_of(const Group& group, bool masters, double lower_bound) const;
  void updated();

  std::vector<Group> groups_;
  std::vector<std::string> moments_;
  std::vector<Module*> roots_;
  double momentum_;
  int64_t steps_ = 0;
  int64_t skipped_ = 0;
};

struct AdamSettings {
  double beta1 = 0.9;
  double beta2 = 0.999;
  double eps = 1e-8;
  bool decoupled = true;  // AdamW; false: decay is added to the gradient
};

class Adam : public Optimizer {
 public:
  explicit Adam(std::vector<ParameterGroup> groups, AdamSettings settings = {});
  /// All parameters of `model`; weight_decay applies to those of decay_groups.
  explicit Adam(Module& model, double weight_decay = 0.0, AdamSettings settings = {});

 protected:
  void update(const Lists& lists, const UpdateArgs& args) const override;

 private:
  AdamSettings settings_;
};

/// As torch.optim.SGD: weight decay is added to the gradient g, b = momentum·b + g, p -= lr·b.
class SGD : public Optimizer {
 public:
  explicit SGD(std::vector<ParameterGroup> groups, double momentum = 0.0);
  explicit SGD(Module& model, double momentum = 0.0, double weight_decay = 0.0);

 protected:
  void update(const Lists& lists, const UpdateArgs& args) const override;
};

}  // namespace macgrad::nn
