// Adam (Kingma & Ba 2015) and AdamW (Loshchilov & Hutter 2019) over groups of parameters, one fused
// kernel call a group. Gradients are those that backward() left in grad(). A bfloat16 parameter has
// a float32 master, to which updates are added that are too small for the parameter, and float32
// moments (Micikevicius et al. 2018, section 3.1).
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "macgrad/core/kernels.h"
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

struct AdamSettings {
  double beta1 = 0.9;
  double beta2 = 0.999;
  double eps = 1e-8;
  bool decoupled = true;  // AdamW; false: decay is added to the gradient
};

struct StepOptions {
  double grad_scale = 1.0;  // multiplies every gradient first (1/tokens of summed losses)
  double clip_norm = 0.0;   // scaled gradients are shrunk to this global norm; 0: not clipped
};

class Adam {
 public:
  /// Masters are copies of the parameters as they are now.
  explicit Adam(std::vector<ParameterGroup> groups, AdamSettings settings = {});

  /// One update with learning rate `lr`; parameters without a gradient stay as they are. Returns
  /// the global norm of the scaled gradients before clipping. When it is not finite nothing is
  /// changed and skipped() counts one more.
  double step(double lr, const StepOptions& options = {});
  void zero_grad();

  /// step() for a recorded training step (core/step_graph.h): learning rate, gradient scale and the
  /// number of the update are read from the ReplayValues of each replay. Counts nothing.
  void record_step(double clip_norm);
  /// Masters of bfloat16 parameters that something else has written to (Module::load_state_dict,
  /// say) take the values written. step() calls it; to be called before a recorded step is
  /// replayed.
  void take_written_parameters();
  /// After a replay whose gradients had this norm: counts its update, or that it was passed over.
  void count_replay(double norm);

  /// Updates made so far.
  int64_t steps() const { return steps_; }
  int64_t skipped() const { return skipped_; }

  /// Moments by parameter path, "<path>/first", "<path>/second", "<path>/master" of bfloat16
  /// parameters, and "steps". They share memory.
  std::map<std::string, Tensor> state_dict() const;
  /// Parameters with a master become the loaded master rounded. Throws one Error listing missing,
  /// unexpected and misshapen names, and those of another dtype.
  void load_state_dict(const std::map<std::string, Tensor>& state);

 private:
  struct Slot {
    Parameter* parameter;
    Tensor first;   // running mean of gradients
    Tensor second;  // running mean of squares
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
  std::vector<Parameter*> all() const;
  /// args but for the group's decay; its lr multiplies the group's scale.
  void update(AdamArgs args);
  /// Of the slots with a master, or of those without, whose parameters have args.lower_bound.
  static void update(const Group& group, bool masters, const AdamArgs& args);

  std::vector<Group> groups_;
  AdamSettings settings_;
  int64_t steps_ = 0;
  int64_t skipped_ = 0;
};

}  // namespace macgrad::nn
