// AttentionCore: attention between given q, k and v, without projections. Softmax attention, exact
// kernelized attention (any pair kernel, quadratic, the oracle), linear attention with any feature
// map (RMFA is one of them), and ppSBN around any of these. The kinds that settings can name are
// the table in nn/attention_kinds.cpp. Definitions: nn/README.md. Shape letters: B batch, H heads,
// T queries, S keys, d head dimension.
//
// Every core attends with logits t = τ·q·k/√d, τ the logit scale (1 unless set or trained).
#pragma once

#include <memory>
#include <string>

#include "macgrad/autograd/attention.h"
#include "macgrad/nn/attention_settings.h"
#include "macgrad/nn/decode_state.h"
#include "macgrad/nn/logit_scale.h"
#include "macgrad/nn/module.h"

namespace macgrad::nn {

using Mask = AttentionMask;

/// Queries, keys and values of one attention. Any strides with the last 1.
struct AttentionInputs {
  Variable q, k, v;  // (B,H,T,d), (B,H,S,d), (B,H,S,dv)
  Mask mask = {};
  /// ℓ (B,H,S) float64: the weight of key j is multiplied by exp(ℓ_j), finite; hide keys with the
  /// mask. Undefined: 0. With a state, all keys have ℓ or none has.
  Variable log_weight = {};
};

/// Which of the keys in `in` are valid, (B,n) bool or undefined: with a state, the mask's last n.
Tensor valid_new_keys(const AttentionInputs& in, const DecodeState* state);

class AttentionCore : public Module {
 public:
  using Module::Module;
  /// -> (B,H,T,dv). Rows of invalid queries and rows without a visible key are 0, with gradients 0.
  ///
  /// With a state (evaluation without recording) k, v and log_weight hold the new positions alone
  /// and join it, and q attends to all it has seen; undefined k and v add no keys. mask.key_valid
  /// then covers every position so far. Equals the whole at once to rounding.
  virtual Variable forward(const AttentionInputs& in, DecodeState* state = nullptr) = 0;
  /// One line for start tables: method, kernel, features, scale, policies.
  virtual std::string describe() const = 0;
};

/// softmax(τ·q·kᵀ/√d + ℓ)·v, with dropout on the weights in training.
class SoftmaxCore : public AttentionCore {
 public:
  SoftmaxCore(Module* parent, std::string name, const AttentionSettings& settings,
              const AttentionSite& site);
  Variable forward(const AttentionInputs& in, DecodeState* state = nullptr) override;
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

/// Σ_j w_j K_ij v_j / Σ_j w_j K_ij over visible keys for any pair kernel K; in O(T·S) memory,
/// except for kernels r(x)·r(y)·exp(x·y) with a factor r, which run as softmax attention.
class ExactKernelCore : public AttentionCore {
 public:
  ExactKernelCore(Module* parent, std::string name, const AttentionSettings& settings,
                  const AttentionSite& site);
  Variable forward(const AttentionInputs& in, DecodeState* state = nullptr) override;
  std::string describe() const override;

  LogitScale logit_scale;

 private:
  PairKernel kernel_;
  int64_t head_dim_;
};

/// Linear attention with a feature map: φ(q)·Σ w φ(k) vᵀ / φ(q)·Σ w φ(k), in O((T + S)·D·d) time.
class LinearAttentionCore : public AttentionCore {
 public:
  LinearAttentionCore(Module* parent, std::string name, const AttentionSettings& settings,
                      const AttentionSite& site);
  Variable forward(const AttentionInputs& in, DecodeState* state = nullptr) override;
  std::string describe() const override;

  FeatureMap& map() { return *map_; }
  const FeatureMap& map() const { return *map_; }

  /// Of all forward calls without a state since the last begin_step: floored rows (with no floor:
  /// denominators <= 0) and the smallest denominator per visible key.
  DenominatorStatistics statistics() const;
  /// Those that nobody has read yet, one per call, where q was.
  const Tensors& pending_statistics() const { return pending_; }

  LogitScale logit_scale;

 protected:
  void on_begin_step(uint32_t step, int64_t epoch) override;
  // A trained scale is a parameter; the draw that is made for it is the map's.
  std::optional<std::vector<int64_t>> on_capture(DType, Device) override {
    return std::vector<int64_t>{};
  }

 private:
  void settle() const;
  Variable decode(const AttentionInputs& in, DecodeState& state);

  double delta_;  // δ of equation (18)
  std::unique_ptr<FeatureMap> map_;
  mutable Tensors pending_;
  mutable DenominatorStatistics settled_;
};

/// The sum over all LinearAttentionCores of a model.
DenominatorStatistics denominator_statistics(Module& model);

/// pending_statistics() of every LinearAttentionCore of a model, one after the other.
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
  PpSbn(Module* parent, std::string name, const AttentionSettings& settings,
        const AttentionSite& site);
  Variable forward(const AttentionInputs& in, DecodeState* state = nullptr) override;
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
  QkNorm(Module* parent, std::string name, const AttentionSettings& settings,
         const AttentionSite& site);
  Variable forward(const AttentionInputs& in, DecodeState* state = nullptr) override;
  std::string describe() const override;

 private:
  std::unique_ptr<AttentionCore> inner_;
};

/// The core that the settings describe. Throws an Error for combinations that leave a kernel's
/// domain: a finite radius without ppSBN or qk_norm, or a logit scale beyond the radius.
std::unique_ptr<AttentionCore> make_attention_core(Module* parent, const std::string& name,
                                                   const AttentionSettings& settings,
                                                   const AttentionSite& site);

}  // namespace macgrad::nn
