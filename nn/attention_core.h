// AttentionCore: attention between given q, k and v, without projections. Softmax attention, exact
// kernelized attention (any dot-product kernel, quadratic, the oracle), RMFA (Macformer, linear),
// and ppSBN around any of them. Definitions: nn/README.md. Shape letters: B batch, H heads, T
// queries, S keys, d head dimension.
//
// Every core attends with logits t = τ·q·k/√d, τ the logit scale (1 unless set or trained).
#pragma once

#include <memory>
#include <string>

#include "macgrad/autograd/attention.h"
#include "macgrad/nn/attention_settings.h"
#include "macgrad/nn/decode_state.h"
#include "macgrad/nn/feature_map.h"
#include "macgrad/nn/module.h"

namespace macgrad::nn {

using Mask = AttentionMask;

/// The factor τ on logits: fixed, or trained as τ = 0.95·R·√d·sigmoid(θ) for kernels of finite
/// radius R and τ = exp(θ) for the others.
class LogitScale : public Module {
 public:
  /// Throws an Error when `initial` does not keep |τ·q·k/√d| inside the radius.
  LogitScale(Module* parent, std::string name, double initial, bool trained, double radius,
             int64_t head_dim);
  /// τ now. For a trained one this reads θ back.
  double value() const;
  bool trained() const { return theta.has_value(); }
  /// x·τ/relative_to; x itself when nothing changes. A trained τ is divided by what
  /// `live_relative_to`, (1) on x's device, has at the time, where it is given: a recorded step
  /// meets other values there.
  Variable apply(const Variable& x, double relative_to = 1.0,
                 const Tensor& live_relative_to = {}) const;

  std::optional<Parameter> theta;  // (1)

 private:
  double fixed_;
  double limit_;  // 0.95·R·√d, infinite for an infinite radius
};

class AttentionCore : public Module {
 public:
  using Module::Module;
  /// q (B,H,T,d), k (B,H,S,d), v (B,H,S,dv), any strides with the last 1 -> (B,H,T,dv). Rows of
  /// invalid queries and rows without a visible key are 0, with gradients 0.
  ///
  /// With a state (evaluation without recording) k and v hold the new places alone and join it, and
  /// q attends to all it has seen; undefined k and v bring nothing new. mask.key_valid then covers
  /// every place so far. Equals the whole at once to rounding.
  virtual Variable forward(const Variable& q, const Variable& k, const Variable& v,
                           const Mask& mask, DecodeState* state = nullptr) = 0;
  /// One line for start tables: method, kernel, features, scale, policies.
  virtual std::string describe() const = 0;
};

/// softmax(τ·q·kᵀ/√d)·v, with dropout on the weights in training.
class SoftmaxCore : public AttentionCore {
 public:
  SoftmaxCore(Module* parent, std::string name, const AttentionSettings& settings, int64_t head_dim,
              ModelRandom& random);
  Variable forward(const Variable& q, const Variable& k, const Variable& v, const Mask& mask,
                   DecodeState* state = nullptr) override;
  std::string describe() const override;

  LogitScale logit_scale;

 protected:
  void on_micro_batch(uint32_t step, uint32_t micro_batch) override {
    random_->begin_step(step, micro_batch);
  }

 private:
  int64_t head_dim_;
  double dropout_;
  ModelRandom* random_;
};

/// Σ_j f(t_ij)·v_j / Σ_j f(t_ij) over visible keys, in O(T·S) memory.
class ExactKernelCore : public AttentionCore {
 public:
  ExactKernelCore(Module* parent, std::string name, const AttentionSettings& settings,
                  int64_t head_dim);
  Variable forward(const Variable& q, const Variable& k, const Variable& v, const Mask& mask,
                   DecodeState* state = nullptr) override;
  std::string describe() const override;

  LogitScale logit_scale;

 private:
  DotProductKernel kernel_;
  int64_t head_dim_;
};

/// Random Maclaurin feature attention: phi(q)·Σ phi(k) vᵀ / phi(q)·Σ phi(k).
class RmfaCore : public AttentionCore {
 public:
  RmfaCore(Module* parent, std::string name, const AttentionSettings& settings, int64_t heads,
           int64_t head_dim, ModelRandom& random);
  Variable forward(const Variable& q, const Variable& k, const Variable& v, const Mask& mask,
                   DecodeState* state = nullptr) override;
  std::string describe() const override;

  /// Of all forward calls without a state since the last begin_step: floored rows (with policy
  /// none: denominators <= 0) and the smallest denominator per visible key.
  RmfaStatistics statistics() const;
  /// Those that nobody has read yet, one a call, where q was.
  const Tensors& pending_statistics() const { return pending_; }

  LogitScale logit_scale;
  RandomMaclaurinFeatures features;

 protected:
  void on_begin_step(uint32_t step, int64_t epoch) override;
  // A trained scale is a parameter; the draw that is made for it is the map's.
  std::optional<std::vector<int64_t>> on_capture(DType, Device) override {
    return std::vector<int64_t>{};
  }

 private:
  double floor_ = 0.0;  // δ·f(0), 0 without a floor
  bool no_floor_at_zero_ = false;
  void settle() const;
  /// forward with a state (nn/rmfa_decode.cpp).
  Variable decode(const Variable& q, const Variable& k, const Variable& v, const Mask& mask,
                  DecodeState& state, const FeatureDraw& draw, const RmfaArgs& args);

  mutable Tensors pending_;
  mutable RmfaStatistics settled_;
};

/// Sum over all RmfaCores of a model: floored rows added, the smallest ratio of all.
RmfaStatistics rmfa_statistics(Module& model);

/// pending_statistics() of every RmfaCore of a model, one after the other.
Tensors pending_statistics(Module& model);

/// preSBN with its running statistics (Macformer, Algorithm 1, steps 1 and 2).
class PreSbn : public Module {
 public:
  PreSbn(Module* parent, std::string name, bool batch_statistics, int64_t heads, int64_t head_dim,
         double eps);
  /// x (B,H,T,d), valid (B,T) or undefined -> rows of unit norm. Batch statistics in training
  /// update the running ones (momentum 0.1, biased variance); evaluation uses those.
  Variable forward(const Variable& x, const Tensor& valid) const;

  std::optional<Buffer> running_mean;  // (H, d)
  std::optional<Buffer> running_var;

 private:
  double eps_;
};

/// While alive, preSBN with batch statistics takes those of the batch at hand in evaluation too, as
/// in training; the running ones are afterwards what they were. What evaluation would be if running
/// statistics were those of every batch.
class OwnStatisticsScope {
 public:
  explicit OwnStatisticsScope(Module& model);
  ~OwnStatisticsScope();
  OwnStatisticsScope(const OwnStatisticsScope&) = delete;
  OwnStatisticsScope& operator=(const OwnStatisticsScope&) = delete;

  /// PreSBN modules with batch statistics.
  size_t modules() const { return kept_.size(); }

 private:
  struct Kept {
    PreSbn* module;
    bool training;
    Tensor mean, var;
  };
  std::vector<Kept> kept_;
};

/// ppSBN around a core: preSBN on q and k, the core, then postSBN (γ·out)^β as a signed power.
class PpSbn : public AttentionCore {
 public:
  /// The inner core is made by make_attention_core with ppsbn off.
  PpSbn(Module* parent, std::string name, const AttentionSettings& settings, AttentionRole role,
        int64_t heads, int64_t head_dim, ModelRandom& random);
  Variable forward(const Variable& q, const Variable& k, const Variable& v, const Mask& mask,
                   DecodeState* state = nullptr) override;
  std::string describe() const override;
  AttentionCore& inner() { return *inner_; }

 private:
  bool batch_;
  AttentionRole role_;

 public:
  PreSbn query_norm;
  PreSbn key_norm;
  Parameter gamma;  // (1) or (d); no decay
  Parameter beta;   // (1) or (d); no decay, >= 0.1

 private:
  std::unique_ptr<AttentionCore> inner_;
};

/// Rows divided by their L2 norm; rows with a norm below 1e-12 are 0 with gradient 0. x (…, d).
Variable unit_rows(const Variable& x);

/// q and k through unit_rows before the inner core (settings.qk_norm without ppSBN).
class QkNorm : public AttentionCore {
 public:
  QkNorm(Module* parent, std::string name, const AttentionSettings& settings, AttentionRole role,
         int64_t heads, int64_t head_dim, ModelRandom& random);
  Variable forward(const Variable& q, const Variable& k, const Variable& v, const Mask& mask,
                   DecodeState* state = nullptr) override;
  std::string describe() const override;

 private:
  std::unique_ptr<AttentionCore> inner_;
};

/// The core that the settings describe. Throws an Error for combinations that leave a kernel's
/// domain: a finite radius without ppSBN or qk_norm, or a logit scale beyond the radius.
std::unique_ptr<AttentionCore> make_attention_core(Module* parent, const std::string& name,
                                                   const AttentionSettings& settings,
                                                   AttentionRole role, int64_t heads,
                                                   int64_t head_dim, ModelRandom& random);

}  // namespace macgrad::nn
