// FeatureMap: φ with E[φ_q(x)·φ_k(y)] = K(x, y), the part of linear attention that varies
// (nn/README.md). A map is one file and one row of the table in nn/feature_maps.cpp. Shape letters:
// B batch, H heads, N rows, d head dimension, M columns of φ.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "macgrad/autograd/linear_attention.h"
#include "macgrad/nn/logit_scale.h"
#include "macgrad/nn/module.h"
#include "macgrad/nn/pair_kernel.h"

namespace macgrad::nn {

enum class Side { query, key };

struct MappedRows {
  Variable features;    // (B,H,N,M): φ, or log φ of maps with log_features(); undefined: M = 0
  Variable log_weight;  // (B,H,N): logarithm of a factor of each row; undefined: 1
  double constant = 0;  // κ, added to every φ_q·φ_k; the same on both sides
};

class FeatureMap : public Module {
 public:
  /// `scale` is the logit scale of the attention and must outlive the map.
  FeatureMap(Module* parent, std::string name, const LogitScale* scale)
      : Module(parent, std::move(name)), scale_(scale) {}

  /// M. The columns of some draws of a random map may be fewer.
  virtual int64_t columns() const = 0;
  /// φ of rows x (B,H,N,d), as attention gets them: the map applies the logit scale itself. Invalid
  /// rows, false in valid (B,N), are 0; valid is undefined when all rows count.
  virtual MappedRows map(const Variable& x, Side side, const Tensor& valid) = 0;
  /// Whether map() treats each row by itself. A map that does not, for instance one with landmarks
  /// among the rows, has no causal form and no decoding.
  virtual bool row_by_row() const { return true; }
  /// Whether map() returns log φ, which linear attention stabilises exactly. Only for φ >= 0.
  virtual bool log_features() const { return false; }
  /// What φ_q·φ_k + κ estimates at x·y = 0, by which the floor of denominators is measured; 0 for
  /// maps that need no floor.
  virtual double value_at_zero() const { return 0.0; }
  /// Whether the result is divided by the sum of the weights, and otherwise its factor.
  virtual Normaliser normaliser() const { return Normaliser::quotient; }
  virtual double factor() const { return 1.0; }
  /// K; empty for maps that estimate no kernel.
  virtual std::optional<PairKernel> kernel() const { return std::nullopt; }
  /// Whether the mean over draws is K exactly.
  virtual bool unbiased() const { return kernel().has_value(); }
  /// Variance over draws of the estimate of K(x, y) for scaled rows with |x|², |y|² and x·y; empty
  /// where no closed form is known.
  virtual std::optional<double> predicted_variance(double /*squared_x*/, double /*squared_y*/,
                                                   double /*dot*/) const {
    return std::nullopt;
  }
  /// Makes the draw in force for operands of this type, if it is not made yet; map() does the same.
  virtual void prepare(DType, Device) const {}
  /// For start tables: the map, its columns, its draws.
  virtual std::string describe() const = 0;

  /// Linear attention with this map: q (B,H,T,d), k (B,H,S,d), v (B,H,S,dv), log_weight (B,H,S)
  /// float64 or undefined -> (B,H,T,dv).
  /// Denominators are floored at delta·value_at_zero() per visible key (0: not floored);
  /// `statistics` as in linear_attention(). The default runs linear_attention() on map().
  virtual Variable attend(const Variable& q, const Variable& k, const Variable& v,
                          const Variable& log_weight, const AttentionMask& mask, double delta,
                          Tensor* statistics);

 protected:
  /// x·√τ/d^¼.
  Variable scaled(const Variable& x) const { return scale_->apply_root(x); }
  const LogitScale* scale() const { return scale_; }

 private:
  const LogitScale* scale_;
};

/// The sum of two logarithms of weights, either of which may be undefined (0), in float64.
Variable sum_of_weights(const Variable& a, const Variable& b);

/// When training draws anew: every step (Macformer), every epoch, every K steps, or never.
struct RedrawPolicy {
  enum class Kind { step, epoch, every, never };
  Kind kind = Kind::step;
  int64_t interval = 1;  // K of `every`

  /// "step", "epoch", "every:K", "never"; an Error lists them.
  static RedrawPolicy parse(const std::string& text);
  std::string text() const;
  /// Number of the draw that `step` of `epoch` uses: equal numbers mean the same draw.
  int64_t draw_number(int64_t step, int64_t epoch) const;
};

/// What all random maps share: when a draw is renewed in training, which draws evaluation uses, and
/// their keys. Not thread-safe: draws are made lazily.
class RandomFeatures : public FeatureMap {
 public:
  const RedrawPolicy& redraw_policy() const { return redraw_; }
  int eval_draws() const { return eval_draws_; }

 protected:
  /// Throws an Error unless eval_draws >= 1, and = 1 with policy `never`.
  RandomFeatures(Module* parent, std::string name, const LogitScale* scale, RedrawPolicy redraw,
                 int eval_draws, ModelRandom& random);

  /// Whether forward passes now use the training draw: in training, and with policy `never`, since
  /// a model trained on a single draw fits that draw and fails on others.
  bool uses_training_draw() const {
    return training() || redraw_.kind == RedrawPolicy::Kind::never;
  }
  /// An Error when an optimizer has updated the model since begin_step: a forward call in training
  /// would repeat a draw that the policy renews.
  void check_drawn_for_step() const {
    if (training() && redraw_.kind != RedrawPolicy::Kind::never) check_step_begun();
  }
  /// The key of training draw `number`.
  DrawKey training_key(uint32_t number) const { return {seed_, stream_, 0, number}; }
  /// The key of evaluation draw 0 … eval_draws - 1, which no step of training uses.
  DrawKey evaluation_key(int index) const {
    return {seed_, stream_, static_cast<uint32_t>(index) + 1, 0};
  }
  /// Continues with the seed and stream of a loaded draw.
  void follow(const DrawKey& loaded) {
    seed_ = loaded.seed;
    stream_ = loaded.stream;
  }
  int eval_index() const { return eval_index_; }
  /// ", redraw step, 2 evaluation draws".
  std::string describe_draws() const;

  /// Number of the training draw that is in force or due.
  virtual uint32_t training_number() const = 0;
  /// Makes draw `number` the training draw; called when the policy wants another one.
  virtual void redraw(uint32_t number) = 0;

  void on_begin_step(uint32_t step, int64_t epoch) override;
  void on_eval_draw(int index) override;

 private:
  RedrawPolicy redraw_;
  int eval_draws_;
  int eval_index_ = 0;
  uint64_t seed_;
  uint32_t stream_;
};

}  // namespace macgrad::nn
