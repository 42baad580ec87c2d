// What a backward pass shows of its gradients: statistics, and the record of them (engine.h). Norms
// are summed on the gradient's device and read when somebody asks for them.
#include <cmath>

#include "macgrad/autograd/engine.h"
#include "macgrad/core/kernels/optimizer.h"

namespace macgrad {

namespace {

template <class T>
GradStatistics statistics_of(const T* x, int64_t n) {
  GradStatistics s;
  s.count = n;
  s.min = INFINITY;
  s.max = -INFINITY;
  double sum = 0, squares = 0;
  for (int64_t i = 0; i < n; ++i) {
    const auto v = static_cast<double>(x[i]);
    if (!std::isfinite(v)) {
      ++s.non_finite;
      continue;
    }
    s.min = std::min(s.min, v);
    s.max = std::max(s.max, v);
    s.zeros += v == 0;
    sum += v;
    squares += v * v;
  }
  const auto finite = static_cast<double>(s.count - s.non_finite);
  if (finite == 0) {
    s.min = s.max = NAN;
    return s;
  }
  s.mean = sum / finite;
  s.rms = std::sqrt(squares / finite);
  s.l2 = std::sqrt(squares);
  return s;
}

}  // namespace

GradStatistics statistics(const Tensor& t) {
  if (t.numel() == 0) return {};
  if (t.device() == kCpu && t.is_contiguous() && t.dtype() == DType::float32)
    return statistics_of(t.data<float>(), t.numel());
  const auto values = t.to_vector<double>();
  return statistics_of(values.data(), t.numel());
}

const std::vector<GradRecord::Entry>& GradRecord::entries() const {
  for (const auto& [i, squares] : pending_) {
    GradStatistics& s = entries_[i].stats;
    s.l2 = std::sqrt(squares.item());
    s.rms = s.count > 0 ? s.l2 / std::sqrt(static_cast<double>(s.count)) : 0.0;
    if (!std::isfinite(s.l2)) s.l2 = s.rms = NAN;
  }
  pending_.clear();
  return entries_;
}

const GradRecord::Entry& GradRecord::at(const std::string& name) const {
  for (const Entry& e : entries())
    if (e.name == name) return e;
  throw Error("no gradient named '{}' among the {} recorded", name, entries_.size());
}

double GradRecord::rule_seconds(uint64_t node) const {
  const auto it = rule_seconds_.find(node);
  return it == rule_seconds_.end() ? 0.0 : it->second;
}

void GradRecord::add(GradPlace place, const Tensor& gradient) {
  if (filter_ && !filter_(place.scope, place.op)) return;
  Entry entry{std::move(place), {}, {}};
  if (keep_ == Keep::norms) {
    const Tensor squares = Tensor::empty({1}, DType::float64, gradient.device());
    kernels::sum_of_squares(Tensors{gradient.contiguous()}, squares);
    entry.stats.count = gradient.numel();
    pending_.emplace_back(entries_.size(), squares);
  } else {
    entry.stats = statistics(gradient);
  }
  if (keep_ == Keep::gradients) entry.gradient = gradient;
  entries_.push_back(std::move(entry));
}

}  // namespace macgrad
