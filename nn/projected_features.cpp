#include "macgrad/nn/projected_features.h"

#include <algorithm>
#include <cmath>

#include "macgrad/autograd/ops.h"

namespace macgrad::nn {

namespace {

constexpr int64_t kRecordFormat = 1;
// Draws of head h have the draw number of head 0 plus h times this, beyond all evaluation draws.
constexpr uint32_t kHeadStride = 1u << 16;

// FNV-1a, so that a draw of another matrix is rejected.
int64_t name_hash(const std::string& name) {
  uint64_t hash = 0xcbf29ce484222325u;
  for (const char c : name) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
  return static_cast<int64_t>(hash);
}

}  // namespace

ProjectedFeatures::ProjectedFeatures(Module* parent, std::string name, std::string map,
                                     const AttentionSettings& settings, const AttentionSite& site,
                                     const LogitScale* scale, int64_t columns_per_row,
                                     double native)
    : RandomFeatures(parent, std::move(name), scale, settings.redraw, settings.eval_draws,
                     *site.random),
      map_(std::move(map)),
      matrix_(settings.matrix ? *settings.matrix : projection_matrix(settings.map.matrix)),
      kernel_(settings.kernel),
      heads_(settings.draws_per_head ? site.heads : 1),
      head_dim_(site.head_dim),
      columns_(settings.features),
      rows_(columns_ / columns_per_row),
      native_(native),
      unit_rows_(settings.unit_rows_given),
      logit_scale_(settings.logit_scale),
      record_(this, "draw", record()) {}

std::string ProjectedFeatures::describe() const {
  return fmt::format("{} {}, {} features of {} projections, matrix {}{}, {}", map_, kernel_.name(),
                     columns_, rows_, matrix_.name, heads_ > 1 ? " per head" : "",
                     describe_draws());
}

// (d, m), or (H, d, m).
Tensor ProjectedFeatures::draw(const DrawKey& key) const {
  std::vector<Variable> heads;
  for (int64_t h = 0; h < heads_; ++h) {
    DrawKey of_head = key;
    of_head.draw += static_cast<uint32_t>(h) * kHeadStride;
    const Tensor one = matrix_.draw(of_head, rows_, head_dim_).transpose(0, 1);
    heads.emplace_back(one.unsqueeze(0));
  }
  const NoGrad off;
  const Tensor all = concat(heads, 0).value();
  return heads_ > 1 ? all : all.reshape(Shape{head_dim_, rows_});
}

Tensor ProjectedFeatures::omega(DType dtype, Device device) const {
  const auto usable = [&](const Tensor& t) {
    return t.defined() && t.dtype() == dtype && t.device() == device;
  };
  if (uses_training_draw()) {
    check_drawn_for_step();
    if (!usable(training_)) {
      training_ = draw(training_key(number_)).to(dtype).to(device);
      ++buffers_;
    }
    return training_;
  }
  if (eval_.empty()) eval_.resize(static_cast<size_t>(eval_draws()));
  Tensor& one = eval_[static_cast<size_t>(eval_index())];
  if (!usable(one)) one = draw(evaluation_key(eval_index())).to(dtype).to(device);
  return one;
}

MappedRows ProjectedFeatures::map(const Variable& x, Side side, const Tensor&) {
  require(function().has_value(), "[features] {} overrides neither map() nor function()", map_);
  const Variable rows = scaled(x);
  return {projected_features(rows, omega(x.dtype(), x.device()), {.function = *function()}),
          log_weight(rows, side)};
}

Variable ProjectedFeatures::attend(const Variable& q, const Variable& k, const Variable& v,
                                   const Variable& log_weight, const AttentionMask& mask,
                                   double delta, Tensor* statistics) {
  if (!function() || normaliser() != Normaliser::quotient)
    return RandomFeatures::attend(q, k, v, log_weight, mask, delta, statistics);
  // A trained scale has a gradient; the kernel multiplies by a fixed one.
  const bool trained = scale()->trained();
  ProjectedAttentionArgs args;
  args.function = *function();
  args.scale = trained ? 1.0 : scale()->root();
  args.floor = delta * value_at_zero();
  // NaN at padding must not reach the gradients of the scale and of the weights.
  const auto rows = [&](const Variable& x, const Tensor& valid) {
    return scaled(without_invalid(x, valid));
  };
  const Variable keys = trained || weighs_keys() ? rows(k, mask.key_valid) : k;
  return projected_attention(trained ? rows(q, mask.query_valid) : q, trained ? keys : k, v,
                             sum_of_weights(this->log_weight(keys, Side::key), log_weight), mask,
                             omega(q.dtype(), q.device()), args, statistics);
}

Variable ProjectedFeatures::projected(const Variable& x) const {
  return matmul(x, Variable(omega(x.dtype(), x.device()))).named("projections");
}

bool ProjectedFeatures::weighs_keys() const {
  // Both are linear in |x|² for all kernels of the tables.
  const bool none = kernel_.log_factor(1.0) == native_ && kernel_.log_factor(2.0) == 2.0 * native_;
  return !unit_rows_ && !none;
}

Variable ProjectedFeatures::log_weight(const Variable& x, Side side) const {
  if (side == Side::query || !weighs_keys()) return Variable();
  const Variable wide = cast(x, DType::float64);
  const Variable own = mul(squared_norm(wide), -native_);
  return kernel_.has_factor() ? add(own, kernel_.log_factor(wide)) : own;
}

double ProjectedFeatures::rows_of_block() const {
  if (!matrix_.orthogonal_blocks) return 0.0;
  double others = 0.0;
  for (int64_t from = 0; from < rows_; from += head_dim_) {
    const auto block = static_cast<double>(std::min(head_dim_, rows_ - from));
    others += block * (block - 1.0);
  }
  return others / static_cast<double>(rows_);
}

double ProjectedFeatures::reference_norm() const {
  const double root = std::sqrt(static_cast<double>(head_dim_));
  return unit_rows_ ? logit_scale_ / root : logit_scale_ * root;
}

void ProjectedFeatures::redraw(uint32_t number) {
  number_ = number;
  if (training_.defined()) training_.copy_from(draw(training_key(number_)));
  record_.set(record());
}

std::optional<std::vector<int64_t>> ProjectedFeatures::on_capture(DType dtype, Device device) {
  (void)omega(dtype, device);
  return std::vector<int64_t>{buffers_, uses_training_draw() ? -1 : eval_index()};
}

Tensor ProjectedFeatures::record() const {
  const DrawKey key = training_key(number_);
  return Tensor::from_vector(std::vector<int64_t>{kRecordFormat, rows_, head_dim_, heads_,
                                                  static_cast<int64_t>(key.seed), key.stream,
                                                  number_, name_hash(matrix_.name)});
}

void ProjectedFeatures::on_load() {
  const auto loaded = record_.value().to_vector<int64_t>();
  const auto own = record().to_vector<int64_t>();
  for (const size_t same : {0, 1, 2, 3, 7})
    require(loaded[same] == own[same],
            "[features] the draw is of {} projections of {} dimensions for {} heads with another "
            "matrix or format, the model has {} of {} for {} with matrix {}",
            loaded[1], loaded[2], loaded[3], rows_, head_dim_, heads_, matrix_.name);
  follow({static_cast<uint64_t>(loaded[4]), static_cast<uint32_t>(loaded[5]), 0, 0});
  eval_.clear();
  redraw(static_cast<uint32_t>(loaded[6]));
}

double hypergeometric_1f1(double a, double b, double z) {
  // Kummer's transformation keeps the terms of one sign.
  if (z < 0.0) return std::exp(z) * hypergeometric_1f1(b - a, b, -z);
  double term = 1.0, sum = 1.0;
  for (int n = 0; n < 10000 && std::abs(term) > 1e-17 * std::abs(sum); ++n) {
    term *= (a + n) / (b + n) * z / (n + 1);
    sum += term;
  }
  return sum;
}

}  // namespace macgrad::nn
