// RandomMaclaurinFeatures: a feature map phi with E[phi(q)·phi(k)] = f(τ·q·k/√d) (nn/README.md). It
// owns the draw: when it is renewed in training, which draws evaluation uses, and its fixed-size
// state. The draws themselves are made by nn/maclaurin_draw.h.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "macgrad/nn/dot_product_kernels.h"
#include "macgrad/nn/maclaurin_draw.h"
#include "macgrad/nn/module.h"

namespace macgrad::nn {

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

class RandomMaclaurinFeatures : public Module {
 public:
  /// settings.logit_scale is the scale of the first draw, which is made at once (number 0). Throws
  /// as feature_plan does. A map serves one thread at a time: draws are made when they are asked
  /// for.
  RandomMaclaurinFeatures(Module* parent, std::string name, DotProductKernel kernel,
                          const FeatureSettings& settings, RedrawPolicy redraw, int eval_draws,
                          ModelRandom& random);

  const DotProductKernel& kernel() const { return kernel_; }
  const RedrawPolicy& redraw_policy() const { return redraw_; }
  int eval_draws() const { return eval_draws_; }

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
  /// this is equal. On a device that records steps, training draws are written to one place in
  /// memory, of the size of draw_bounds, together with their layout; the place, whether there is a
  /// linear block and who draws is all that is kept. Nothing while the draw is larger than that
  /// place, or not on such a device: then it lies by itself and must not be recorded.
  std::optional<std::vector<int64_t>> recorded_part() const;
  /// The operands of kernels::draw_features that renew the draw in its place at each replay, whose
  /// step its key reads (kLiveStep). Nothing where begin_step itself draws: another policy than
  /// `step`, a trained scale, no place.
  struct LiveDraw {
    Tensor law, omega, weight, layout;
    FeatureDrawArgs args;
  };
  std::optional<LiveDraw> live_draw() const;

 protected:
  void on_begin_step(uint32_t step, int64_t epoch) override;
  void on_eval_draw(int index) override;
  void on_load() override;
  void on_read() override { make_draw(); }
  // recorded_part(), once the draw is where the step computes.
  std::optional<std::vector<int64_t>> on_capture(DType dtype, Device device) override;
  void on_captured_step(CapturedDraws& draws) override;

 private:
  const FeatureDraw& draw_on(DType dtype, Device device) const;
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

  DotProductKernel kernel_;
  RedrawPolicy redraw_;
  int eval_draws_;
  int eval_index_ = 0;
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
