// RandomMaclaurinFeatures: the map φ of RMFA, with E[φ(q)·φ(k)] = f(τ·q·k/√d) for a dot-product
// kernel f (nn/README.md). It owns the draw and its fixed-size state, and runs the fused kernel of
// RMFA. The draws themselves are made by nn/maclaurin_draw.h.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "macgrad/nn/feature_map.h"
#include "macgrad/nn/maclaurin_draw.h"

namespace macgrad::nn {

class RandomMaclaurinFeatures : public RandomFeatures {
 public:
  /// settings.logit_scale is the scale of the first draw, which is made at once (number 0). Without
  /// `scale` rows keep the scale of the draw. Throws as feature_plan does.
  RandomMaclaurinFeatures(Module* parent, std::string name, DotProductKernel function,
                          const FeatureSettings& settings, RedrawPolicy redraw, int eval_draws,
                          ModelRandom& random, const LogitScale* scale = nullptr);

  /// f.
  const DotProductKernel& function() const { return function_; }

  int64_t columns() const override { return draw_.settings.features; }
  MappedRows map(const Variable& x, Side side, const Tensor& valid) override;
  double value_at_zero() const override { return function_.coefficient(0); }
  std::optional<PairKernel> kernel() const override { return function_; }
  void prepare(DType dtype, Device device) const override { (void)current(dtype, device); }
  std::string describe() const override;
  /// Runs rmfa(), unless keys have weights.
  Variable attend(const Variable& q, const Variable& k, const Variable& v,
                  const Variable& log_weight, const AttentionMask& mask, double delta,
                  Tensor* statistics) override;

  /// The draw in force: in training the policy's, in evaluation mode the chosen one of the
  /// eval_draws that the seed fixes (with policy never: the training draw). Its
  /// settings.logit_scale is the τ it stands for.
  const FeatureDraw& current(DType dtype = DType::float32, Device device = kCpu) const;
  /// The training draw, where and as it was last used.
  const FeatureDraw& training_draw() const {
    make_draw();
    return draw_;
  }
  /// Tells the τ of the step about to begin, before begin_step: the next draw is made for it. When
  /// it is more than 5 % from the one that the columns were allocated for, they are allocated and
  /// drawn anew at once (a host search for `optimal`).
  void set_logit_scale(double scale);

  /// What a captured step (core/step_graph.h) keeps of the training draw: replays are true while
  /// this is equal. On a device that captures steps, training draws are written to a fixed buffer
  /// of the size of draw_bounds, followed by their layout; the number of that buffer, whether there
  /// is a linear block and who draws is all that is kept. Nothing while the draw is larger than the
  /// buffer, or not on such a device: then it has its own memory and must not be captured.
  std::optional<std::vector<int64_t>> recorded_part() const;
  /// The operands of kernels::draw_features that renew the draw in its buffer at each replay, whose
  /// step its key reads (kLiveStep). Nothing where begin_step itself draws: another policy than
  /// `step`, a trained scale, no buffer.
  struct LiveDraw {
    Tensor law, omega, weight, layout;
    FeatureDrawArgs args;
  };
  std::optional<LiveDraw> live_draw() const;

 protected:
  uint32_t training_number() const override { return put_off_.value_or(draw_.key.step); }
  void redraw(uint32_t number) override;
  void on_begin_step(uint32_t step, int64_t epoch) override;
  void on_load() override;
  void on_read() override { make_draw(); }
  // recorded_part(), once the draw is where the step computes.
  std::optional<std::vector<int64_t>> on_capture(DType dtype, Device device) override;
  void on_captured_step(CapturedDraws& draws) override;

 private:
  const FeatureDraw& draw_on(DType dtype, Device device) const;
  Variable scaled_query(const Variable& q, const FeatureDraw& draw) const;
  void redraw(const FeatureSettings& settings, const FeaturePlan& plan, uint32_t number) const;
  // Makes the draw that begin_step put off.
  void make_draw() const;
  bool drawn_in_replays() const;
  // Makes `draw`, exact and on the CPU, the training draw on `device`.
  void take(FeatureDraw draw, Device device) const;

  // Where training draws lie on a device that records steps.
  struct Place {
    int64_t number = 0;  // counts the places there have been
    DrawBounds bounds;
    Tensor omega, weight, layout;
    Tensor law;  // of kernels::draw_features
  };

  DotProductKernel function_;
  double next_scale_;
  bool scale_changes_ = false;
  mutable FeatureDraw draw_;  // of training
  // The draw of a step that may be a replay, which makes it itself: made here when it is asked for.
  mutable std::optional<uint32_t> put_off_;
  mutable Place place_;
  mutable std::vector<FeatureDraw> eval_;  // each made when first asked for
  Buffer record_;  // int64 (kRecordHeader + D): the training draw, of the same shape whatever it is
};

}  // namespace macgrad::nn
