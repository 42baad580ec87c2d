// ProjectedFeatures: random maps that are functions of the projections x·ω, with ω the rows of a
// ProjectionMatrix (nn/README.md). Shape letters: m rows of Ω, d head dimension.
#pragma once

#include <string>
#include <vector>

#include "macgrad/autograd/projected_attention.h"
#include "macgrad/nn/attention_settings.h"

namespace macgrad::nn {

class ProjectedFeatures : public RandomFeatures {
 public:
  int64_t columns() const override { return columns_; }
  std::optional<PairKernel> kernel() const override { return kernel_; }
  bool unbiased() const override { return matrix_.gaussian_rows; }
  /// The function of the projections, if the fused kernel implements it. Other maps override map()
  /// and, where they need it, log_features(); a class that overrides map() returns nullopt here.
  virtual std::optional<ProjectionFunction> function() const { return std::nullopt; }
  MappedRows map(const Variable& x, Side side, const Tensor& valid) override;
  bool log_features() const override { return function() == ProjectionFunction::exponential; }
  /// Runs projected_attention() if the map has a function().
  Variable attend(const Variable& q, const Variable& k, const Variable& v,
                  const Variable& log_weight, const AttentionMask& mask, double delta,
                  Tensor* statistics) override;
  void prepare(DType dtype, Device device) const override { (void)omega(dtype, device); }
  std::string describe() const override;

  /// Ω, (d, m) or (H, d, m) with a draw per head: the draw in force, as in RandomFeatures. It is
  /// renewed in place, so that a captured step reads the draw of its replay.
  Tensor omega(DType dtype, Device device) const;

 protected:
  /// φ has `columns_per_row` columns per row of Ω. Without its weights φ_q·φ_k estimates
  /// exp(x·y + native·(|x|² + |y|²)).
  ProjectedFeatures(Module* parent, std::string name, std::string map,
                    const AttentionSettings& settings, const AttentionSite& site,
                    const LogitScale* scale, int64_t columns_per_row, double native);

  int64_t rows() const { return rows_; }
  int64_t head_dim() const { return head_dim_; }
  const ProjectionMatrix& matrix() const { return matrix_; }
  /// x·Ωᵀ: x (B,H,N,d), scaled -> (B,H,N,m).
  Variable projected(const Variable& x) const;
  /// Whether keys have a log_weight().
  bool weighs_keys() const;
  /// For keys, the logarithm of what turns φ·φ into an estimate of the kernel: scaled x (B,H,N,d)
  /// -> (B,H,N) float64, undefined where it is 0 or, with rows of unit norm, the same for every
  /// row. Undefined for queries, whose factors the quotient cancels.
  Variable log_weight(const Variable& x, Side side) const;
  /// Whether the variance formulas of nn/README.md hold for the matrix.
  bool has_variance_formula() const {
    return matrix_.gaussian_rows && (matrix_.independent_rows || matrix_.orthogonal_blocks);
  }
  /// Mean number of other rows in the block of a row; 0 without blocks.
  double rows_of_block() const;
  /// |x|² of scaled rows at the initial logit scale: of unit rows, or of standard normal rows.
  double reference_norm() const;
  bool unit_rows() const { return unit_rows_; }

  uint32_t training_number() const override { return number_; }
  void redraw(uint32_t number) override;
  void on_load() override;
  // Draws are written in place, so that only a move to other memory ends a capture.
  std::optional<std::vector<int64_t>> on_capture(DType dtype, Device device) override;

 private:
  Tensor draw(const DrawKey& key) const;
  Tensor record() const;

  std::string map_;
  ProjectionMatrix matrix_;
  PairKernel kernel_;
  int64_t heads_, head_dim_, columns_, rows_;
  double native_;
  bool unit_rows_;
  double logit_scale_;  // at the start
  uint32_t number_ = 0;
  mutable Tensor training_;      // made when first used, overwritten by later draws
  mutable int64_t buffers_ = 0;  // counts the tensors that training_ has been
  mutable std::vector<Tensor> eval_;
  Buffer record_;  // int64: format, m, d, heads, seed, stream, number, name of the matrix
};

/// Kummer's function ₁F₁(a; b; z), of the variance of orthogonal rows.
double hypergeometric_1f1(double a, double b, double z);

}  // namespace macgrad::nn
